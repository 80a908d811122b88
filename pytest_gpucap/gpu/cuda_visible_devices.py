"""``CUDA_VISIBLE_DEVICES`` as CUDA reads it.

The rules (CUDA programming guide, environment variables): an entry is an index, a UUID, or the beginning of a UUID that
fits one device. The first entry that names no device ends the list. An empty list hides everything. Indices count in
CUDA's order, which equals NVML's only under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. The default, ``FASTEST_FIRST``, is a rule
that NVIDIA does not publish. On a machine of unlike GPUs indices are therefore refused under the default order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pytest_gpucap.gpu.device import Device


class VisibleDevices(NamedTuple):
    """The devices that CUDA shows, in its order, and what was wrong with the variable."""

    devices: list[Device]
    problems: list[str]


def visible_devices(gpus: Sequence[Sequence[Device]], environment: Mapping[str, str]) -> VisibleDevices:
    """The devices that the variable leaves visible. `gpus`: in NVML's order, each as itself or as its MIG slices."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    everything = [device for gpu in gpus for device in gpu]
    if value is None:
        return VisibleDevices(everything, [])
    order = environment.get("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    alike = len({device.name for device in everything}) <= 1
    chosen: list[Device] = []
    for entry in (part.strip() for part in value.split(",")):
        if re.fullmatch(r"[0-9]+", entry):
            if not alike and order != "PCI_BUS_ID":
                problem = (
                    f"CUDA_VISIBLE_DEVICES={value} names GPUs by index, and without CUDA_DEVICE_ORDER=PCI_BUS_ID "
                    "the order of unlike GPUs is not known: set it, or name UUIDs (nvidia-smi -L)"
                )
                return VisibleDevices([], [problem])
            # CUDA uses the first slice of a GPU that is split and named by index.
            found = gpus[int(entry)][:1] if int(entry) < len(gpus) else []
        else:
            found = _by_uuid(everything, entry)
        if len(found) != 1:
            problem = f"CUDA_VISIBLE_DEVICES={value}: {entry!r} names no device here, and ends the list"
            return VisibleDevices(chosen, [problem] if entry not in {"", "-1", "NoDevFiles", "none"} else [])
        if found[0] in chosen:
            return VisibleDevices(
                [], [f"CUDA_VISIBLE_DEVICES={value}: {entry!r} names a device twice; CUDA then shows none"]
            )
        chosen.append(found[0])
    return VisibleDevices(chosen, [])


def _by_uuid(devices: Sequence[Device], entry: str) -> Sequence[Device]:
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    if exact := [device for device in devices if device.uuid == entry]:
        return exact
    started = [device for device in devices if device.uuid.startswith(entry)]
    # A GPU that is split, named by its own UUID: CUDA uses its first slice.
    return started or [device for device in devices if (device.parent_uuid or "").startswith(entry)][:1]
