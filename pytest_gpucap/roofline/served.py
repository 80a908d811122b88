"""Where a server's model and arguments meet the figures of its GPU class: the physical limit of a measurement.

A limit is known only where the model's ``config.json`` is at hand and its family is understood, and where the class has
a bandwidth. Nothing is guessed: without it there is no limit, and the result says why.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.protocol import Capabilities, Server
from pytest_gpucap.gpu.classes import GpuClass, file_entry
from pytest_gpucap.requirement import Workload
from pytest_gpucap.roofline.deployment import Deployment, Hardware
from pytest_gpucap.roofline.limits import NoLimit, Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.user_files import MOST_CONFIG, home_folder, is_file, is_folder, read_bytes
from pytest_gpucap.vllm_arguments import VllmArguments

_FP4_OVER_FP8: Final = 2.0
"""Dense rates: 9 against 4.5 PFLOPS of a B200 (NVIDIA Blackwell architecture technical brief)."""
_FP4_FROM: Final = (10, 0)
_NOT_BOUNDED: Final = ("cpu_offload_gb", "lora_modules", "pooler_config")
"""Arguments under which these limits do not describe the server."""
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
"""A model's name at the hub, with or without its owner."""


@dataclass(frozen=True, slots=True)
class _Served:
    """What a server serves and how; `declared`: what of it only the test and the command line say."""

    names: tuple[str, ...]
    config: Mapping[str, Any] | None
    arguments: VllmArguments
    declared: str = ""


def roofline_of(
    server: Server,
    gpu_class: GpuClass | None,
    workload: Workload,
    *,
    model: str | None = None,
    arguments: VllmArguments | None = None,
) -> Roofline | NoLimit:
    """The limits of what is measured, or why they are not known.

    A server behind a URL tells its model's name, often where it loaded the model from, and seldom its arguments; the
    GPU class, and what the server does not tell, are taken as declared.

    Args:
        server: that is measured.
        gpu_class: of the GPUs that it runs on; None if nobody says.
        workload: of the requests.
        model: as declared; asked for where the server does not tell its own.
        arguments: as declared; they count where the server does not tell its own.
    """
    try:
        return _limits(server, gpu_class, workload, model, arguments or VllmArguments())
    except (ValueError, OSError) as error:  # a measurement must not be lost for a name that is no good path
        return NoLimit(str(error))
    except (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # A config.json may hold anything.
        return NoLimit(f"its config.json is not understood: {type(error).__name__}: {error}")


class _Unknown(ValueError):  # noqa: N818 - what is lacking, never seen outside
    """Something without which there is no limit."""


def _limits(
    server: Server, gpu_class: GpuClass | None, workload: Workload, model: str | None, arguments: VllmArguments
) -> Roofline:
    known = server.capabilities()
    if known.simulated and not known.started:
        raise _Unknown("a SIMULATED server has no hardware")
    if not workload.endpoint.generates:
        raise _Unknown("it is known of answers with tokens only")
    if gpu_class is None:
        raise _Unknown("the GPU class behind the URL is not known: name it with --gpu-class")
    served = _told(known) if known.started else _declared(known, model, arguments)
    if served.config is None:
        mend = "" if known.started else ": name its folder with vllm(model=...)"
        raise _Unknown(f"no config.json of {' or '.join(served.names)} is at hand{mend}")
    if odd := [name for name in _NOT_BOUNDED if served.arguments.get(name) not in (None, 0, "0")]:
        raise _Unknown(f"what {odd[0]} does to speed is not known")
    if served.arguments.prefill_context_parallel_size > 1:
        raise _Unknown("what prefill_context_parallel_size does to speed is not known")
    hardware = hardware_under(gpu_class, served.arguments, known.replicas)
    if hardware is None:
        line = "" if gpu_class.is_cpu else f", with the line {file_entry(gpu_class)} and its bandwidth_gb_s added"
        raise _Unknown(f"no bandwidth is known of class {gpu_class.name}: --gpucap-gpu-file can give it one{line}")
    deployment = Deployment(
        max_num_seqs=known.max_num_seqs,
        kv_tokens=known.kv_tokens,
        tokens_per_pass=1 + served.arguments.speculative_tokens,  # a pass yields one more than is drafted for it
        kv_split=served.arguments.decode_context_parallel_size > 1,
    )
    if known.replicas > 1 and any(layer.experts for layer, _ in model_of(served.config).blocks):
        raise _Unknown("the limit of a fleet of a mixture of experts is not known")
    found = build(served.config, served.arguments, hardware, workload, deployment)
    return replace(found, decode_context=_decode_context(workload), declared=served.declared)


def _told(known: Capabilities) -> _Served:
    """By what the engine says of the server that it started."""
    if not known.models:
        raise _Unknown("the engine does not say where the files of its model are")
    configs = {name: config_of(name) for name in known.models}
    config = next((each for each in configs.values() if each is not None), None)
    return _Served(known.models, config, known.arguments)


def _declared(known: Capabilities, model: str | None, declared: VllmArguments) -> _Served:
    """By the server's own word where it gives one, and else as declared."""
    names = list(dict.fromkeys([*known.models, *([model] if model else [])]))
    arguments = declared.overlaid(known.arguments)
    for name in names:
        # What a server says of its model is no path on this machine, whatever it looks like.
        config = config_of(name) if name == model or synthetic.is_synthetic(name) else hub_config_of(name)
        if config is not None:
            return _Served((name,), config, arguments, "GPU class" if name in known.models else "GPU class and model")
    return _Served(tuple(names), None, arguments)


def _decode_context(workload: Workload) -> float | None:
    """Of a trace or a file, whose lengths are known row by row; None for lengths that are drawn."""
    if workload.prompts is not None:
        from pytest_gpucap.load.prompt_lengths import prompt_decode_context

        return prompt_decode_context(workload.prompts)
    if workload.sessions is not None:
        from pytest_gpucap.load.sessions import session_decode_context

        return session_decode_context(workload)
    if workload.arrivals.trace is None:
        return None
    from pytest_gpucap.load.trace import decode_context, read_trace

    return decode_context(read_trace(workload.arrivals.trace))


def build(
    config: Mapping[str, Any],
    arguments: VllmArguments,
    hardware: Hardware,
    workload: Workload,
    deployment: Deployment,
) -> Roofline:
    """The limits of a model under vLLM's arguments.

    Raises:
        UnknownModel: if the model, its precision or its quantisation is not understood.
    """
    if workload.prompts is not None or workload.sessions is not None:
        # They may share any part, and one that is sent again is in the prefix cache as a whole. Turns share most.
        workload = replace(workload, shared_prefix_tokens=round(workload.input_tokens.mean))
    precision = precision_of(
        config, dtype=arguments.dtype, quantization=arguments.quantization, kv_cache_dtype=arguments.kv_cache_dtype
    )
    return Roofline(model_of(config), precision, hardware, workload, deployment)


def hardware_under(gpu_class: GpuClass, arguments: VllmArguments, replicas: int = 1) -> Hardware | None:
    """The class's figures for the GPUs of so many replicas under these arguments; None as for `hardware_of`.

    Replicas share requests as data-parallel engines do, but for the experts of a mixture, which each replica holds.
    """
    return hardware_of(
        gpu_class,
        arguments.tensor_parallel_size,
        arguments.pipeline_parallel_size,
        arguments.data_parallel_size * replicas,
    )


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
    return _first([place / "config.json"] if is_folder(place) else [place]) or hub_config_of(model)


def hub_config_of(model: str) -> Mapping[str, Any] | None:
    """The same for the name that a server gives its model: no path is made of it."""
    return _first(_cached(model)) if _HUB_NAME.fullmatch(model) else None


def _first(candidates: Iterable[Path]) -> Mapping[str, Any] | None:
    """The content of the first file that holds a JSON object; only regular files of that kind are opened."""
    for path in candidates:
        if path.suffix != ".json" or not is_file(path):
            continue
        try:
            config = json.loads(read_bytes(path, MOST_CONFIG))
        except (ValueError, RecursionError):  # a `UserFileError` too
            continue
        if isinstance(config, dict):
            return config
    return None


def _cached(model: str) -> list[Path]:
    """Where the hub's cache keeps the config of a model, newest first (huggingface_hub's layout)."""
    try:
        home = Path(os.environ.get("HF_HOME") or home_folder() / ".cache" / "huggingface")
        hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
        found = hub.glob(f"models--{glob.escape(model.replace('/', '--'))}/snapshots/*/config.json")
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, ValueError):  # no home folder, or no name that a folder can have
        return []
