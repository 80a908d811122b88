"""What a report must name beside the figures: GPU, driver, clocks, server, model and host."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

from pytest_gpucap import __version__
from pytest_gpucap.gpu.description import describe_devices, environment_facts
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.session.server_manager import SystemUnderTest

DECLARED: Final = "as declared: what is behind a URL cannot be seen"


def environment(target: SystemUnderTest) -> dict[str, Any]:
    """Names to plain values, the most telling first; what is not known is left out."""
    facts: dict[str, Any] = {}
    if target.inventory is not None and target.lease is not None:
        described, *remarks = describe_devices(target.inventory, target.lease.devices)
        facts["gpu"] = described if target.lease.devices else f"{described}, {_processor()}"
        facts["gpu_remarks"] = remarks
        facts |= environment_facts(target.inventory, target.lease.devices, target.gpu_class)
        if target.lease.devices:
            facts["clocks"] = _clocks(target.lease.devices[0])
    elif target.gpu_class is not None and not target.endpoint.capabilities().simulated:
        facts |= {"gpu": f"{target.gpu_class.name}, {DECLARED}", "gpu_class": target.gpu_class.name}
    facts |= target.endpoint.facts()
    facts["host"] = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    facts["plugin"] = f"pytest-gpucap {__version__}, Python {platform.python_version()}"
    return facts


def _clocks(device: Device) -> str:
    return (
        f"SM at most {device.max_sm_clock_mhz} MHz, memory {device.memory_clock_mhz} MHz, power limit "
        f"{device.power_limit_w} W, {device.temperature_c} C before"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
