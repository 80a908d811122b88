"""Where a server's model and arguments meet the figures of its GPU class: the physical limit of a measurement.

A limit is known only where the model's ``config.json`` is at hand and its family is understood, and where the class has
a bandwidth. Nothing is guessed: without it there is no limit, and nothing is said of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.capacity.limits import Deployment, Hardware, Roofline
from pytest_gpucap.capacity.model import UnknownModel, model_of
from pytest_gpucap.capacity.precision import precision_of
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.requirement import Workload
from pytest_gpucap.server import synthetic
from pytest_gpucap.server.vllm import VllmServer
from pytest_gpucap.suite.rig import Target

_FP4_OVER_FP8: Final = 2.0
"""Dense rates: 9 against 4.5 PFLOPS of a B200 (NVIDIA Blackwell architecture technical brief)."""
_FP4_FROM: Final = (10, 0)
_NOT_BOUNDED: Final = ("data_parallel_size", "cpu_offload_gb", "lora_modules", "pooler_config")
"""Arguments under which these limits do not describe the server."""


def roofline_of(target: Target, workload: Workload) -> Roofline | None:
    """The limits of what is measured; None where they are not known (see the module)."""
    server, gpu_class = target.server, target.gpu_class
    if not isinstance(server, VllmServer) or gpu_class is None or workload.arrivals.trace is not None:
        return None  # a trace has lengths of its own, which the workload does not tell
    config = config_of(server.spec.model)
    if config is None:
        return None
    arguments = {name.replace("-", "_"): value for name, value in server.spec.args.items()}
    if any(arguments.get(name) not in {None, 1, 0, "1"} for name in _NOT_BOUNDED):
        return None
    tensor = int(str(arguments.get("tensor_parallel_size") or 1))
    pipeline = int(str(arguments.get("pipeline_parallel_size") or 1))
    hardware = hardware_of(gpu_class, tensor, pipeline)
    if hardware is None:
        return None
    try:
        deployment = Deployment(
            max_num_seqs=server.max_num_seqs,
            kv_tokens=server.kv_tokens,
            tokens_per_pass=_tokens_per_pass(arguments.get("speculative_config")),
            kv_split=arguments.get("decode_context_parallel_size") is not None,
        )
        return build(config, arguments, hardware, workload, deployment)
    except UnknownModel:
        return None


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


def hardware_of(gpu_class: GpuClass, tensor: int = 1, pipeline: int = 1) -> Hardware | None:
    """The class's figures for a replica of tensor x pipeline GPUs; None where its bandwidth is not known."""
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
    """Tokens that one pass can yield: one more than those drafted.

    Raises:
        UnknownModel: if speculation is on and the number of drafted tokens is not given.
    """
    if not speculative:
        return 1
    try:
        settings = json.loads(str(speculative)) if not isinstance(speculative, Mapping) else speculative
        return 1 + int(settings["num_speculative_tokens"])
    except (ValueError, KeyError, TypeError):
        raise UnknownModel("speculative_config names no num_speculative_tokens") from None
