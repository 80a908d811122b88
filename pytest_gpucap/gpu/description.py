"""The state of the GPUs before a measurement, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gpucap.gpu.classes import GIB
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.inventory import Inventory


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
