"""What a report must name beside the figures: GPU, driver, clocks, server, model and host."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import Any, Final

from pytest_gpucap import __version__
from pytest_gpucap.engines.server import Server
from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.session.placement import SIMULATED
from pytest_gpucap.session.server_manager import SystemUnderTest

DECLARED: Final = "as declared: what is behind a URL cannot be seen"


def environment(target: SystemUnderTest) -> dict[str, Any]:
    """Names to plain values, the most telling first; what is not known is left out."""
    facts: dict[str, Any] = {}
    if target.placement.profile is not None:
        facts["gpu"] = f"SIMULATED ({target.placement.profile.name})"
        facts["gpu_class"] = f"{SIMULATED}{target.placement.profile.name}"
        facts["profile"] = target.placement.profile.source
    if target.inventory is not None and target.lease is not None:
        described, *remarks = target.inventory.describe(target.lease.devices)
        facts["gpu"] = described if target.lease.devices else f"{described}, {_processor()}"
        facts["gpu_remarks"] = remarks
        facts |= target.inventory.facts(target.lease.devices, target.gpu_class)
        if target.lease.devices:
            facts["clocks"] = _clocks(target.lease.devices[0])
    elif target.gpu_class is not None and target.server is not None and not target.server.simulated:
        facts |= {"gpu": f"{target.gpu_class.name}, {DECLARED}", "gpu_class": target.gpu_class.name}
    if target.server is not None:
        facts |= _server(target.server)
    facts["host"] = f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"
    facts["plugin"] = f"pytest-gpucap {__version__}, Python {platform.python_version()}"
    return facts


def _clocks(device: Device) -> str:
    return (
        f"SM at most {device.max_sm_clock_mhz} MHz, memory {device.memory_clock_mhz} MHz, power limit "
        f"{device.power_limit_w} W, {device.temperature_c} C before"
    )


def _server(server: Server) -> dict[str, Any]:
    facts: dict[str, Any] = {"server": f"vLLM {server.version}" if server.version else server.base_url}
    if isinstance(server, VllmServer):
        facts["model"] = server.spec.model
        facts["server_args"] = dict(server.spec.args)
        facts |= _weights(server)
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


def _weights(server: VllmServer) -> dict[str, Any]:
    """How the server holds the weights, which the model's own files may decide; nothing where it does not tell."""
    try:
        config = server.config["model_config"]
        return {"quantization": config["quantization"], "dtype": str(config["dtype"]).removeprefix("torch.")}
    except (KeyError, TypeError):
        return {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
