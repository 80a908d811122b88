"""What GPUs there are, which of them this process may use, and which belong to a class."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu import binding
from pytest_gpucap.gpu.classes import (
    GIB,
    GpuClass,
    class_named_by_nvml,
    file_entry,
    is_named_by_nvml,
    known_classes,
)
from pytest_gpucap.gpu.cuda_visible_devices import visible_devices
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.nvml import FieldReader, NvmlUnavailable, described, memory_used, nvml_session, text

AMD_DRIVER = Path("/dev/kfd")
"""The device file of AMD's compute driver."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The machine's GPUs.

    Attributes:
        devices: those that CUDA shows to this process, in CUDA's order. Of a GPU split by MIG only the slices are
            listed.
        hidden: those that ``CUDA_VISIBLE_DEVICES`` hides from this process.
        driver, cuda: versions, such as ``570.124.06`` and ``12.8``.
        problems: one sentence each: NVML missing or broken, a GPU lost, a ``CUDA_VISIBLE_DEVICES`` that names nothing.
    """

    devices: tuple[Device, ...] = ()
    hidden: tuple[Device, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problems: tuple[str, ...] = ()

    def describe(self, devices: Sequence[Device]) -> list[str]:
        """One line on the leased devices, then one for each thing about them that is out of the ordinary."""
        if not devices:
            return ["CPU only"]
        first = devices[0]
        line = f"{len(devices)}x {first.name}"
        if first.mig_profile:
            line += f" MIG {first.mig_profile}"
        if first.memory_bytes is not None:
            line += f", {first.memory_bytes / GIB:.0f} GiB"
        if self.driver:
            line += f", driver {self.driver}"
        if self.cuda:
            line += f", CUDA {self.cuda}"
        return [line, *(remark for device in devices for remark in device.remarks())]


WITHOUT_ONE: Final = "to try the suite without one, say --gpu-class sim:fast or cpu"
"""What to do where there is no GPU."""


class NoGpu(GpuCapError):  # noqa: N818 - reads as what is wrong
    """There is no GPU that this process may use, and no class was named."""


class WrongGpuClass(GpuCapError):  # noqa: N818 - reads as what is wrong
    """The machine has no device of the class; the message says what it has, and how that differs."""


def take_inventory(environment: Mapping[str, str] | None = None) -> Inventory:
    """Ask NVML for the devices, and apply ``CUDA_VISIBLE_DEVICES`` of `environment` (None: this process's own)."""
    environment = os.environ if environment is None else environment
    try:
        with nvml_session() as pynvml:
            try:
                return _read(pynvml, environment)
            except Exception as error:  # noqa: BLE001 - a broken binding may give answers of any type
                fault = f"gives no usable answers ({described(error)})"
                return Inventory(problems=(binding.complaint(pynvml, fault),))
    except NvmlUnavailable as error:
        amd = ["the AMD GPUs that are here are not supported"] if AMD_DRIVER.exists() else []
        return Inventory(problems=(str(error), *amd))


def devices_of_class(inventory: Inventory, gpu_class: GpuClass, extra: Iterable[GpuClass] = ()) -> tuple[Device, ...]:
    """The devices of a class, in CUDA's order; empty for the class ``cpu``.

    Raises:
        WrongGpuClass: if there is none.
    """
    if gpu_class.is_cpu:
        return ()
    found = tuple(device for device in inventory.devices if _is_of(device, gpu_class))
    if found:
        return found
    raise WrongGpuClass(f"GPU class {gpu_class.name}: {_what_is_there(inventory, gpu_class, tuple(extra))}")


def detect_class(inventory: Inventory, extra: Iterable[GpuClass] = ()) -> GpuClass:
    """The class of this machine's GPUs, for a session that names none.

    A GPU of no known class gets a class of its own, with the memory that NVML reports and no other figures.

    Raises:
        NoGpu: if there is no GPU to use; the message says why.
        WrongGpuClass: if there are GPUs of several classes, so that one must be named.
    """
    if not inventory.devices:
        raise NoGpu(_why_none(inventory))
    extra = tuple(extra)
    classes = {c.name: c for c in (class_of(device, extra) for device in inventory.devices)}
    if len(classes) > 1:
        known = [c.name for c in classes.values() if _is_known(c, extra)]
        new = [c for c in classes.values() if not _is_known(c, extra)]
        mend = [f"name one with --gpu-class: {', '.join(known)}"] if known else []
        raise WrongGpuClass(f"GPUs of several classes here: {'; '.join([*mend, *map(_how_to_name, new)])}")
    return next(iter(classes.values()))


def class_of(device: Device, extra: Iterable[GpuClass] = ()) -> GpuClass:
    """The class of one device; where none is known, one made from NVML's answers."""
    known = class_named_by_nvml(device.name, device.mig_profile, extra)
    if known is not None:
        return known
    slug = re.sub(r"[^a-z0-9.]+", "-", device.name.casefold().removeprefix("nvidia")).strip("-")
    return GpuClass(
        name=f"{slug}-{device.mig_profile}" if device.mig_profile else slug,
        family=slug,
        nvml_names=(device.name,),
        memory_bytes=device.memory_bytes,
        compute_capability=device.compute_capability,
        mig_profile=device.mig_profile,
        sources={"default": "NVML, on this machine"},
    )


def _is_of(device: Device, gpu_class: GpuClass) -> bool:
    return is_named_by_nvml(gpu_class, device.name, device.mig_profile)


def _why_none(inventory: Inventory) -> str:
    reasons = list(inventory.problems)
    if inventory.hidden:
        reasons.append(f"CUDA_VISIBLE_DEVICES hides {_count(inventory.hidden)}")
    return "no GPU here" + (f" ({'; '.join(reasons)})" if reasons else "")


def _what_is_there(inventory: Inventory, wanted: GpuClass, extra: tuple[GpuClass, ...]) -> str:
    hidden = [device for device in inventory.hidden if _is_of(device, wanted)]
    if hidden:
        return f"CUDA_VISIBLE_DEVICES hides {_count(hidden)}; let it name one of them"
    if not inventory.devices:
        return f"{_why_none(inventory)}; {WITHOUT_ONE}"
    parts = [f"this machine has {_count(inventory.devices)}"]
    seen: dict[str, GpuClass] = {}
    for device in inventory.devices:
        seen.setdefault(class_of(device, extra).name, class_of(device, extra))
    near = [miss for other in seen.values() if (miss := _near_miss(wanted, other, extra))]
    mend = f"run this where a {wanted.name} is, or say --gpu-class {' or '.join(seen)}"
    return "; ".join([*parts, *(near or [mend])])


def _is_known(gpu_class: GpuClass, extra: tuple[GpuClass, ...]) -> bool:
    return gpu_class in known_classes(extra)


def _how_to_name(gpu_class: GpuClass) -> str:
    """How a device of a class that is not known becomes one of a known class."""
    product = gpu_class.nvml_names[0]
    if gpu_class.mig_profile and not re.fullmatch(r"[1-7]g\.[0-9]+gb", gpu_class.mig_profile):
        return f"a slice {gpu_class.mig_profile} of {product} cannot be named"
    return (
        f"{product} is of no known class: write {file_entry(gpu_class)} to a file, with its bandwidth_gb_s and "
        f"bf16_tflops if you know them, and name the file with --gpucap-gpu-file"
    )


def _near_miss(wanted: GpuClass, other: GpuClass, extra: tuple[GpuClass, ...]) -> str:
    """How a device that is there differs from the wanted class; empty if nobody would confuse them."""
    if not _is_known(other, extra):
        return _how_to_name(other)
    if wanted.family != other.family:
        return ""
    if other.mig_profile and not wanted.mig_profile:
        return f"{other.name} is a MIG slice ({other.figures()}), not a whole GPU ({wanted.figures()})"
    if wanted.mig_profile and not other.mig_profile:
        profiles = [c.mig_profile for c in known_classes(extra) if c.parent == other.name and c.mig_profile]
        cut = (
            "has no such slice: MIG is off" if wanted.parent == other.name else f"can be cut into {', '.join(profiles)}"
        )
        return f"{other.name} is a whole GPU and {cut}"
    return f"{other.name} ({other.figures()}) is not {wanted.name} ({wanted.figures()}): say --gpu-class {other.name}"


def _count(devices: Iterable[Device]) -> str:
    """``2x NVIDIA A10, 1x NVIDIA H100 PCIe``."""
    counts: dict[str, int] = {}
    for device in devices:
        name = device.name + (f" MIG {device.mig_profile}" if device.mig_profile else "")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count}x {name}" for name, count in counts.items())


def _read(pynvml: Any, environment: Mapping[str, str]) -> Inventory:
    reader = FieldReader(pynvml)
    driver = reader.ask("driver", pynvml.nvmlSystemGetDriverVersion, read=text)
    cuda = reader.ask("cuda", pynvml.nvmlSystemGetCudaDriverVersion, read=_cuda_version)
    count = reader.ask("count", pynvml.nvmlDeviceGetCount, read=int)
    problems = [f"NVML: {reason}" for name, reason in reader.unreadable.items() if name == "count"]
    gpus: list[tuple[Device, ...]] = []
    for index in range(count or 0):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(_gpu(pynvml, handle, index))
        except pynvml.NVMLError as error:
            gpus.append(())  # its index stays taken
            problems.append(f"GPU {index} cannot be used: {error}")
        except Exception as error:  # noqa: BLE001 - a broken binding may give answers of any type
            gpus.append(())
            problems.append(binding.complaint(pynvml, f"gives GPU {index} no usable answers ({described(error)})"))
    seen = visible_devices([list(gpu) for gpu in gpus], environment)
    problems += seen.problems
    return Inventory(
        devices=tuple(seen.devices),
        hidden=tuple(d for gpu in gpus for d in gpu if d not in seen.devices),
        driver=driver,
        cuda=cuda,
        problems=tuple(problems),
    )


def _gpu(pynvml: Any, handle: Any, index: int) -> tuple[Device, ...]:
    """The GPU itself, or its slices where it is split.

    Raises:
        pynvml.NVMLError: if not even its name or UUID can be read.
    """
    name, uuid = text(pynvml.nvmlDeviceGetName(handle)), text(pynvml.nvmlDeviceGetUUID(handle))
    reader = FieldReader(pynvml)
    fields = _settings(pynvml, handle, reader)
    whole = Device(index=index, uuid=uuid, name=name, **fields, unreadable=reader.unreadable)
    return tuple(_slices(pynvml, handle, whole)) if whole.mig_mode else (whole,)


def _settings(pynvml: Any, handle: Any, reader: FieldReader) -> dict[str, Any]:
    ask = reader.ask
    memory = ask("memory_bytes", memory_used, pynvml, handle)
    sm, mem, core = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU
    uncorrected, volatile = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    shipped = pynvml.nvmlDeviceGetPowerManagementDefaultLimit
    return {
        "memory_bytes": memory and memory[1],
        "memory_used_bytes": memory and memory[0],
        "compute_capability": ask(
            "compute_capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle, read=_two_numbers
        ),
        "pci_bus_id": ask("pci_bus_id", pynvml.nvmlDeviceGetPciInfo, handle, read=_bus_id),
        "mig_mode": ask("mig_mode", pynvml.nvmlDeviceGetMigMode, handle, read=_first_flag),
        "sm_clock_mhz": ask("sm_clock_mhz", pynvml.nvmlDeviceGetClockInfo, handle, sm, read=int),
        "memory_clock_mhz": ask("memory_clock_mhz", pynvml.nvmlDeviceGetClockInfo, handle, mem, read=int),
        "max_sm_clock_mhz": ask("max_sm_clock_mhz", pynvml.nvmlDeviceGetMaxClockInfo, handle, sm, read=int),
        "max_memory_clock_mhz": ask("max_memory_clock_mhz", pynvml.nvmlDeviceGetMaxClockInfo, handle, mem, read=int),
        "power_limit_w": ask("power_limit_w", pynvml.nvmlDeviceGetEnforcedPowerLimit, handle, read=_watts),
        "default_power_limit_w": ask("default_power_limit_w", shipped, handle, read=_watts),
        "temperature_c": ask("temperature_c", pynvml.nvmlDeviceGetTemperature, handle, core, read=int),
        "ecc_mode": ask("ecc_mode", pynvml.nvmlDeviceGetEccMode, handle, read=_first_flag),
        "ecc_errors": ask("ecc_errors", pynvml.nvmlDeviceGetTotalEccErrors, handle, uncorrected, volatile, read=int),
        "persistence": ask("persistence", pynvml.nvmlDeviceGetPersistenceMode, handle, read=bool),
    }


def _watts(milliwatts: Any) -> float:
    return int(milliwatts) / 1000


def _first_flag(answer: Any) -> bool:
    """The present state, of (present, pending)."""
    return bool(int(answer[0]))


def _two_numbers(answer: Any) -> tuple[int, int]:
    major, minor = answer
    return int(major), int(minor)


def _bus_id(answer: Any) -> str:
    return text(answer.busId.decode() if isinstance(answer.busId, bytes) else answer.busId)


def _cuda_version(number: Any) -> str:
    return f"{int(number) // 1000}.{int(number) % 1000 // 10}"


def _slices(pynvml: Any, handle: Any, whole: Device) -> Iterable[Device]:
    for position in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            piece = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
        except pynvml.NVMLError:
            continue  # fewer slices were made than the GPU can have
        reader = FieldReader(pynvml)
        memory = reader.ask("memory_bytes", memory_used, pynvml, piece)
        attributes = reader.ask("mig_profile", pynvml.nvmlDeviceGetAttributes, piece)
        yield Device(
            index=whole.index,
            uuid=text(pynvml.nvmlDeviceGetUUID(piece)),
            name=whole.name,
            memory_bytes=memory and memory[1],
            memory_used_bytes=memory and memory[0],
            compute_capability=whole.compute_capability,
            pci_bus_id=whole.pci_bus_id,
            mig_mode=True,
            mig_profile=_profile(attributes, whole.memory_bytes) or "of unknown size",
            parent_uuid=whole.uuid,
            multiprocessors=attributes and int(attributes.multiprocessorCount),
            sm_clock_mhz=whole.sm_clock_mhz,
            memory_clock_mhz=whole.memory_clock_mhz,
            max_sm_clock_mhz=whole.max_sm_clock_mhz,
            max_memory_clock_mhz=whole.max_memory_clock_mhz,
            power_limit_w=whole.power_limit_w,
            default_power_limit_w=whole.default_power_limit_w,
            temperature_c=whole.temperature_c,
            ecc_mode=whole.ecc_mode,
            ecc_errors=whole.ecc_errors,
            persistence=whole.persistence,
            unreadable={**whole.unreadable, **reader.unreadable},
        )


def _profile(attributes: Any, gpu_memory_bytes: int | None) -> str | None:
    """``3g.20gb`` from a slice's attributes, as nvidia-smi names it; ``1c.3g.20gb`` if it has part of the compute.

    The memory in a profile's name is its share of the GPU in eighths, rounded up, times the GPU's memory in whole GiB
    (github.com/NVIDIA/go-nvlib, ``mig_profile.go``).
    """
    if attributes is None or not gpu_memory_bytes:
        return None
    share = math.ceil(attributes.memorySizeMB * 2**20 / gpu_memory_bytes * 8) / 8
    memory_gb = round(share * ((gpu_memory_bytes + GIB - 1) // GIB))
    instance, compute = attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount
    prefix = "" if compute == instance else f"{compute}c."
    return f"{prefix}{instance}g.{memory_gb}gb"
