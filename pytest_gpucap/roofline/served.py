"""Where a server's model and arguments meet the figures of its GPU class: the physical limit of a measurement.

A limit is known only where the model's ``config.json`` is at hand and its family is understood, and where the class has
a bandwidth. Nothing is guessed: without it there is no limit, and the result says why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.server import Server
from pytest_gpucap.engines.url import ExternalServer
from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.markers import Declaration
from pytest_gpucap.requirement import Workload
from pytest_gpucap.roofline.deployment import Deployment, Hardware
from pytest_gpucap.roofline.limits import NoLimit, Roofline
from pytest_gpucap.roofline.model_shape import UnknownModel, model_of
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.session.server_manager import SystemUnderTest

_FP4_OVER_FP8: Final = 2.0
"""Dense rates: 9 against 4.5 PFLOPS of a B200 (NVIDIA Blackwell architecture technical brief)."""
_FP4_FROM: Final = (10, 0)
_NOT_BOUNDED: Final = ("cpu_offload_gb", "lora_modules", "pooler_config")
"""Arguments under which these limits do not describe the server."""
_PARALLEL: Final = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(frozen=True, slots=True)
class _Served:
    """What a server serves and how; `declared`: what of it only the test and the command line say."""

    names: tuple[str, ...]
    config: Mapping[str, Any] | None
    arguments: Mapping[str, Any]
    declared: str = ""


def roofline_of(target: SystemUnderTest, declared: Declaration) -> Roofline | NoLimit:
    """The limits of what is measured, or why they are not known.

    A server behind a URL tells its model's name, often where it loaded the model from, and seldom its arguments; the
    GPU class, and what the server does not tell, are taken as declared.
    """
    try:
        return _limits(target, declared)
    except (ValueError, OSError) as error:  # a measurement must not be lost for a name that is no good path
        return NoLimit(str(error))


class _Unknown(ValueError):  # noqa: N818 - what is lacking, never seen outside
    """Something without which there is no limit."""


def _limits(target: SystemUnderTest, declared: Declaration) -> Roofline:
    server, gpu_class = target.server, target.gpu_class
    if target.placement.profile is not None or (isinstance(server, ExternalServer) and server.simulated):
        raise _Unknown("a SIMULATED server has no hardware")
    if server is None or gpu_class is None:
        raise _Unknown("the GPU class behind the URL is not known: name it with --gpu-class")
    served = _ours(server) if isinstance(server, VllmServer) else _behind_url(server, declared)
    if served.config is None:
        mend = "" if isinstance(server, VllmServer) else ": name its folder with vllm(model=...)"
        raise _Unknown(f"no config.json of {' or '.join(served.names)} is at hand{mend}")
    if odd := [name for name in _NOT_BOUNDED if served.arguments.get(name) not in (None, 0, "0")]:
        raise _Unknown(f"what {odd[0]} does to speed is not known")
    hardware = hardware_of(gpu_class, *(int(str(served.arguments.get(name) or 1)) for name in _PARALLEL))
    if hardware is None:
        raise _Unknown(f"no bandwidth is known of class {gpu_class.name}: --gpucap-gpu-file can give it one")
    deployment = Deployment(
        max_num_seqs=server.max_num_seqs,
        kv_tokens=server.kv_tokens,
        tokens_per_pass=_tokens_per_pass(served.arguments.get("speculative_config")),
        kv_split=served.arguments.get("decode_context_parallel_size") is not None,
    )
    found = build(served.config, served.arguments, hardware, declared.workload, deployment)
    return replace(found, decode_context=_decode_context(declared.workload), declared=served.declared)


def _ours(server: VllmServer) -> _Served:
    model = server.spec.model
    return _Served((model,), config_of(model), _plain_names(server.spec.args))


def _behind_url(server: Server, declared: Declaration) -> _Served:
    """By the server's own word where it gives one: the origin of its model, its name, its configuration."""
    told = [server.origin] if isinstance(server, ExternalServer) and server.origin else []
    seen = list(dict.fromkeys([*told, server.model]))
    names = list(dict.fromkeys([*seen, *([declared.model] if declared.model else [])]))
    arguments = _plain_names(declared.vllm_args) | _told_arguments(server.config)
    for name in names:
        config = config_of(name)
        if config is not None:
            return _Served((name,), config, arguments, "GPU class" if name in seen else "GPU class and model")
    return _Served(tuple(names), None, arguments)


def _plain_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in arguments.items()}


def _told_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of vLLM's arguments that decide its limits, as its configuration has them; nothing where it tells none."""
    found: dict[str, Any] = {}
    for section, names in _SECTIONS.items():
        values = config.get(section) or {}
        found |= {argument: values[name] for name, argument in names.items() if values.get(name) is not None}
    return found


_SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "model_config": {"dtype": "dtype", "quantization": "quantization"},
    "cache_config": {"cache_dtype": "kv_cache_dtype", "cpu_offload_gb": "cpu_offload_gb"},
    "parallel_config": {name: name for name in _PARALLEL},
    "speculative_config": {"num_speculative_tokens": "speculative_config"},
}
"""Where vLLM's configuration keeps which argument."""


def _decode_context(workload: Workload) -> float | None:
    """Of a trace, whose lengths are known row by row; None for lengths that are drawn."""
    if workload.arrivals.trace is None:
        return None
    from pytest_gpucap.load.trace import decode_context, read_trace

    return decode_context(read_trace(workload.arrivals.trace))


def build(
    config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    hardware: Hardware,
    workload: Workload,
    deployment: Deployment,
) -> Roofline:
    """The limits of a model under vLLM's arguments.

    Raises:
        UnknownModel: if the model, its precision or its quantisation is not understood.
    """
    named = ("dtype", "quantization", "kv_cache_dtype")
    precision = precision_of(config, **{name: arguments.get(name) and str(arguments[name]) for name in named})
    return Roofline(model_of(config), precision, hardware, workload, deployment)


def hardware_of(gpu_class: GpuClass, tensor: int = 1, pipeline: int = 1, data: int = 1) -> Hardware | None:
    """The class's figures for a replica of tensor x pipeline x data GPUs; None where its bandwidth is not known."""
    if gpu_class.bandwidth_bytes_per_s is None:
        return None
    rates = {
        "bf16": gpu_class.bf16_flops,
        "fp16": gpu_class.fp16_flops,
        "fp8": gpu_class.fp8_flops,
        "int8": gpu_class.int8_ops,
    }
    if gpu_class.fp8_flops is not None and (gpu_class.compute_capability or (0, 0)) >= _FP4_FROM:
        rates["fp4"] = _FP4_OVER_FP8 * gpu_class.fp8_flops
    return Hardware(
        name=gpu_class.name,
        bandwidth_bytes_per_s=gpu_class.bandwidth_bytes_per_s,
        memory_bytes=gpu_class.memory_bytes,
        operations_per_s={kind: rate for kind, rate in rates.items() if rate is not None},
        tensor=tensor,
        pipeline=pipeline,
        data=data,
    )


def config_of(model: str) -> Mapping[str, Any] | None:
    """The ``config.json`` of a synthetic model, a folder, a file, or a hub model that the local cache holds.

    Nothing is downloaded: a server that runs has put its model's config into the cache.
    """
    if synthetic.is_synthetic(model):
        return synthetic.architecture(model).config
    place = Path(model)
    candidates = [place] if place.is_file() else [place / "config.json"] if place.is_dir() else _cached(model)
    for path in candidates:
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return None


def _cached(model: str) -> list[Path]:
    """Where the hub's cache keeps the config of a model, newest first (huggingface_hub's layout)."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    found = hub.glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _tokens_per_pass(speculative: Any) -> int:
    """Tokens that one pass can yield: one more than those drafted, given as vLLM's JSON or as their number.

    Raises:
        UnknownModel: if speculation is on and the number of drafted tokens is not given.
    """
    if not speculative:
        return 1
    if isinstance(speculative, int):
        return 1 + speculative
    try:
        settings = json.loads(str(speculative)) if not isinstance(speculative, Mapping) else speculative
        return 1 + int(settings["num_speculative_tokens"])
    except (ValueError, KeyError, TypeError):
        raise UnknownModel("speculative_config names no num_speculative_tokens") from None
