"""What a report names beside the figures: GPU, driver, clocks, server, model and host."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pytest_gpucap import __version__
from pytest_gpucap.engines.protocol import MetricNames
from pytest_gpucap.engines.url import UrlEngine
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.inventory import Inventory
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results.environment import DeviceState, Environment
from pytest_gpucap.session.placement import SIMULATOR
from pytest_gpucap.session.server_manager import SystemUnderTest
from pytest_gpucap.telemetry.dcgm import DcgmExporter

SHOWN: Final = "as the DCGM exporter shows"
DECLARED: Final = "as declared: what is behind a URL cannot be seen"


def environment_of(target: SystemUnderTest, workload: Workload) -> Environment:
    """What a target is under a workload; what is not known is left out."""
    known = {
        **_place(target),
        **target.endpoint.facts(),
        "engine": _engine(target),
        "not_told": _not_told(target),
        "startup_s": _startup_s(target),
        "start": None if _is_reused(target) else getattr(target.endpoint, "start", None),
        "reused": _is_reused(target),
        "remarks": (
            *_reuse(target),
            *getattr(target.runner, "remarks", ()),
            *_repeated(target, workload),
            *_remarks_on_gpus(target),
        ),
        **host_and_plugin(),
    }
    return Environment(**known)


_OF_NO_ENGINE: Final = frozenset({UrlEngine.name, SIMULATOR})
"""What starts no server whose software is known."""
_FIGURES: Final = {
    "running": "requests running",
    "waiting": "requests waiting",
    "kv_use": "KV cache use",
    "preemptions": "preemptions",
    "prefix_hits": "prefix hits",
}
"""Names of an engine's metrics, and what they are called in reports."""


def _engine(target: SystemUnderTest) -> str | None:
    """The name of the engine that started the server; None where nobody did, or nothing was started."""
    name: str = getattr(target.engine, "one", target.engine).name
    return None if name in _OF_NO_ENGINE else name


def _not_told(target: SystemUnderTest) -> tuple[str, ...]:
    """Evidence that the engine of a started server does not give."""
    known = target.endpoint.capabilities()
    if _engine(target) is None or known.simulated:
        return ()
    if known.metrics == MetricNames():
        missing = ["metrics"]
    else:
        missing = [shown for name, shown in _FIGURES.items() if not getattr(known.metrics, name)]
    if known.max_num_seqs is None:
        missing.append("requests at once")
    if known.kv_tokens is None:
        missing.append("KV cache size")
    if known.dialect.exact_length is None:
        missing.append("answers of an exact length")
    if not known.resets:
        missing.append("emptying its caches")
    return tuple(missing)


def _startup_s(target: SystemUnderTest) -> float | None:
    if _is_reused(target):
        return None  # it was measured by the run that started it
    told: float | None = getattr(target.endpoint, "startup_s", None)  # servers of other plugins need not tell
    return None if told is None else round(told, 2)


def _is_reused(target: SystemUnderTest) -> bool:
    return bool(getattr(target.endpoint, "reused", False))


def _reuse(target: SystemUnderTest) -> list[str]:
    """That an earlier run started the server, if it did."""
    if not _is_reused(target):
        return []
    began_s: float = target.endpoint.started_at  # type: ignore[attr-defined]  # a reused server is a launched one
    when = datetime.fromtimestamp(began_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [f"the server was reused (--gpucap-reuse): an earlier run started it at {when}; start-up was not measured"]


def _repeated(target: SystemUnderTest, workload: Workload) -> list[str]:
    """That prompts or sessions of the user's own were sent more than once, if they were."""
    if target.runner is None:
        return []
    if workload.recorded is not None:
        from pytest_gpucap.load.recorded_sessions import repeated

        columns = target.runner.journal().sessions
        told = "" if columns is None else repeated(workload.recorded, columns.session)
        return [told] if told else []
    if workload.prompts is None:
        return []
    from pytest_gpucap.load.prompt_lengths import repeats

    said = repeats(workload, target.runner.journal().status.size)
    return [said] if said else []


def host_and_plugin() -> dict[str, Any]:
    """Fields that are known without a server."""
    return {
        "host": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "plugin": f"pytest-gpucap {__version__}, Python {platform.python_version()}",
    }


def _place(target: SystemUnderTest) -> dict[str, Any]:
    """Fields on the GPUs, or on what replaces them."""
    inventory, gpu_class = target.inventory, target.gpu_class
    if inventory is not None and target.lease is not None:
        devices = target.lease.devices
        described, *remarks = inventory.describe(devices)
        return {
            "gpu": described if devices else f"{described}, {_processor()}",
            "gpu_remarks": (*remarks, *target.lease.remarks()),
            "gpu_class": None if gpu_class is None else gpu_class.name,
            "driver": inventory.driver,
            "cuda": inventory.cuda,
            "devices": tuple(map(device_state, devices)),
            "problems": tuple(inventory.problems),
            "clocks": _clocks(devices[0]) if devices else None,
        }
    if exporters := getattr(target.telemetry, "exporters", ()):
        return _elsewhere(exporters, gpu_class)
    if gpu_class is not None and not target.endpoint.capabilities().simulated:
        return {"gpu": f"{gpu_class.name}, {DECLARED}", "gpu_class": gpu_class.name}
    return {}


def _elsewhere(exporters: Sequence[DcgmExporter], gpu_class: GpuClass | None) -> dict[str, Any]:
    """The same of GPUs that exporters show."""
    devices = [device for exporter in exporters for device in exporter.devices]
    driver = next(filter(None, (exporter.driver for exporter in exporters)), None)
    described, *remarks = Inventory(driver=driver).describe(devices)
    return {
        "gpu": f"{described}, {SHOWN}",
        "gpu_remarks": tuple(remarks),
        "gpu_class": None if gpu_class is None else gpu_class.name,
        "driver": driver,
        "devices": tuple(map(device_state, devices)),
    }


def _remarks_on_gpus(target: SystemUnderTest) -> list[str]:
    """What weakens the evidence of the telemetry of devices, if any are watched."""
    return [] if target.telemetry is None else target.telemetry.remarks()


def device_state(device: Device) -> DeviceState:
    """One device's settings and state."""
    version = device.compute_capability
    return DeviceState(
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        mig_profile=device.mig_profile,
        mig_mode=device.mig_mode,
        memory_bytes=device.memory_bytes,
        compute_capability=None if version is None else f"{version[0]}.{version[1]}",
        sm_clock_mhz=device.sm_clock_mhz,
        max_sm_clock_mhz=device.max_sm_clock_mhz,
        memory_clock_mhz=device.memory_clock_mhz,
        max_memory_clock_mhz=device.max_memory_clock_mhz,
        power_limit_w=device.power_limit_w,
        default_power_limit_w=device.default_power_limit_w,
        temperature_c=device.temperature_c,
        ecc_mode=device.ecc_mode,
        ecc_errors=device.ecc_errors,
        persistence=device.persistence,
        unreadable=dict(device.unreadable),
    )


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
