"""What a report must name beside the figures: GPU, driver, clocks, server, model and host."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import Any

from pytest_gpucap import __version__
from pytest_gpucap.gpu.inventory import Inventory
from pytest_gpucap.rig import Target
from pytest_gpucap.server.endpoint import Endpoint
from pytest_gpucap.server.vllm import VllmServer


def environment(target: Target) -> dict[str, Any]:
    """Names to plain values, the most telling first; what is not known is left out."""
    facts: dict[str, Any] = {}
    if target.placement.profile is not None:
        facts["gpu"] = f"SIMULATED ({target.placement.profile.name})"
        facts["profile"] = target.placement.profile.source
    if target.gpu_class is not None:
        facts["gpu_class"] = target.gpu_class.name
        facts["gpu"] = _devices(target) or f"no GPU, {_processor()}"
    if target.inventory is not None and target.lease is not None and target.lease.devices:
        facts |= _settings(target, target.inventory)
    if target.server is not None:
        facts |= _server(target.server)
    facts["host"] = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    facts["plugin"] = f"pytest-gpucap {__version__}, Python {platform.python_version()}"
    return facts


def _devices(target: Target) -> str:
    devices = target.lease.devices if target.lease is not None else ()
    names = sorted({f"{device.name}{f' MIG {device.mig_profile}' if device.mig_profile else ''}" for device in devices})
    return f"{len(devices)} x {', '.join(names)}" if devices else ""


def _settings(target: Target, inventory: Inventory) -> dict[str, Any]:
    assert target.lease is not None  # noqa: S101 - the caller looked
    first = target.lease.devices[0]
    return {
        "driver": f"{inventory.driver} (CUDA {inventory.cuda})",
        "clocks": f"SM {first.sm_clock_mhz} of {first.max_sm_clock_mhz} MHz idle, memory {first.memory_clock_mhz} MHz",
        "power_limit": f"{first.power_limit_w} W of {first.default_power_limit_w} W",
        "gpu_state": (
            f"{first.temperature_c} C before, ECC {'on' if first.ecc_mode else 'off'} "
            f"({first.ecc_errors} uncorrected errors), persistence {'on' if first.persistence else 'off'}, "
            f"MIG {'on' if first.mig_mode else 'off'}"
        ),
        "gpu_uuids": [device.uuid for device in target.lease.devices],
    }


def _server(server: Endpoint) -> dict[str, Any]:
    facts: dict[str, Any] = {"server": f"vLLM {server.version}" if server.version else server.base_url}
    if isinstance(server, VllmServer):
        facts["model"] = server.spec.model
        facts["command"] = shlex.join(server.command)
        facts["log"] = str(server.log.path)
    else:
        facts["model"] = server.model
        facts["url"] = server.base_url
    if server.max_num_seqs is not None:
        facts["max_num_seqs"] = server.max_num_seqs
    if server.kv_tokens is not None:
        facts["kv_tokens"] = server.kv_tokens
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
