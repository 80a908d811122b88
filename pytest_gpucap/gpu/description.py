"""The state of the GPUs before a measurement, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_gpucap.gpu.classes import GIB, GpuClass
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.inventory import Inventory


def environment_facts(inventory: Inventory, devices: Sequence[Device], gpu_class: GpuClass | None) -> dict[str, Any]:
    """Driver, CUDA and the settings of the leased devices, as plain values for JSON; None where NVML does not tell."""
    return {
        "gpu_class": None if gpu_class is None else gpu_class.name,
        "driver": inventory.driver,
        "cuda": inventory.cuda,
        "devices": [device_facts(device) for device in devices],
        "problems": list(inventory.problems),
    }


def device_facts(device: Device) -> dict[str, Any]:
    """One device's settings and state, as plain values."""
    return {
        "index": device.index,
        "uuid": device.uuid,
        "name": device.name,
        "mig_profile": device.mig_profile,
        "mig_mode": device.mig_mode,
        "memory_bytes": device.memory_bytes,
        "compute_capability": None if device.compute_capability is None else _dotted(device.compute_capability),
        "sm_clock_mhz": device.sm_clock_mhz,
        "max_sm_clock_mhz": device.max_sm_clock_mhz,
        "memory_clock_mhz": device.memory_clock_mhz,
        "max_memory_clock_mhz": device.max_memory_clock_mhz,
        "power_limit_w": device.power_limit_w,
        "default_power_limit_w": device.default_power_limit_w,
        "temperature_c": device.temperature_c,
        "ecc_mode": device.ecc_mode,
        "ecc_errors": device.ecc_errors,
        "persistence": device.persistence,
        "unreadable": dict(device.unreadable),
    }


def describe_devices(inventory: Inventory, devices: Sequence[Device]) -> list[str]:
    """A line or two for people: what was measured on, and what about it is out of the ordinary."""
    if not devices:
        return ["CPU only"]
    first = devices[0]
    line = f"{len(devices)}x {first.name}"
    if first.mig_profile:
        line += f" MIG {first.mig_profile}"
    if first.memory_bytes is not None:
        line += f", {first.memory_bytes / GIB:.0f} GiB"
    if inventory.driver:
        line += f", driver {inventory.driver}"
    if inventory.cuda:
        line += f", CUDA {inventory.cuda}"
    return [line, *(remark for device in devices for remark in _remarks(device))]


def _remarks(device: Device) -> list[str]:
    remarks = []
    limit, own = device.power_limit_w, device.default_power_limit_w
    if limit is not None and own is not None and limit != own:
        remarks.append(f"{device.label}: power limit {limit:.0f} W, {own:.0f} W as shipped")
    if device.ecc_errors:
        remarks.append(f"{device.label}: {device.ecc_errors} uncorrected memory errors since the driver was loaded")
    if device.persistence is False:
        remarks.append(f"{device.label}: persistence mode off, the first use after idling is slow")
    return remarks


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
