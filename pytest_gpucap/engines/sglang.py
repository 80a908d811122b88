"""SGLang as an engine, by its documentation and its source (0.5.23). It was not run by this project: it needs a GPU.

Arguments: https://docs.sglang.ai/advanced_features/server_arguments.html. Metrics:
https://docs.sglang.ai/references/production_metrics.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Final

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.program import ProgramEngine, ProgramServer
from pytest_gpucap.engines.protocol import MetricNames
from pytest_gpucap.load.server_words import json_object

_MOST: Final = 2**40


class SglangServer(ProgramServer):
    """A server of SGLang."""

    @cached_property
    def info(self) -> Mapping[str, object]:
        """What ``/server_info`` (earlier ``/get_server_info``) tells; empty if there is none."""
        for path in ("/server_info", "/get_server_info"):
            try:
                return json_object(self.request(path))
            except EndpointError:
                continue
        return {}

    @property
    def max_num_seqs(self) -> int | None:
        """Requests that run at once, of all its schedulers."""
        each = self._size("max_running_requests") or self._size("effective_max_running_requests_per_dp")
        return super().max_num_seqs if each is None else each

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of its pool, of all its schedulers."""
        each = self._size("max_total_num_tokens")
        if each is None:
            return super().kv_tokens
        return each * (self.engine.count(("dp_size", "data_parallel_size", "dp")) or 1)

    def _size(self, name: str) -> int | None:
        found = self.info.get(name)
        return found if type(found) is int and 0 < found < _MOST else None

    def reset_caches(self) -> bool:
        """Flush the radix cache; it answers 400 while requests are in flight."""
        try:
            self.request("/flush_cache", method="POST")
        except EndpointError:
            return False
        return True


class SglangEngine(ProgramEngine):
    """Starts ``python -m sglang.launch_server``."""

    name = "sglang"
    title = "SGLang"
    call = ("python", "-m", "sglang.launch_server")
    model_flag = "--model-path"
    name_flag = "--served-model-name"
    fixed = ("--enable-metrics",)
    owned: ClassVar = {
        "model_path": "it is given by model=",
        "served_model_name": "every server gets a unique model name",
        "enable_metrics": "the plugin reads them",
        "api_key": "the server listens on loopback only",
        "admin_api_key": "the server listens on loopback only",
        "nnodes": "one server runs on one machine",
        "node_rank": "one server runs on one machine",
    }
    sizes = (
        ("tp_size", "tensor_parallel_size", "tp"),
        ("pp_size", "pipeline_parallel_size", "pp"),
        ("dp_size", "data_parallel_size", "dp"),
    )
    context = ("context_length",)
    sequences = ("max_running_requests",)
    cache = ("max_total_tokens",)
    vllm_names: ClassVar = {
        "tp_size": "tensor_parallel_size",
        "tensor_parallel_size": "tensor_parallel_size",
        "tp": "tensor_parallel_size",
        "pp_size": "pipeline_parallel_size",
        "pipeline_parallel_size": "pipeline_parallel_size",
        "dp_size": "data_parallel_size",
        "data_parallel_size": "data_parallel_size",
        "dp": "data_parallel_size",
        "dtype": "dtype",
        "quantization": "quantization",
        "kv_cache_dtype": "kv_cache_dtype",
    }
    metrics = MetricNames(
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_use=("sglang:token_usage",),
        preemptions=("sglang:num_retracted_requests_total",),
        prompt_tokens=("sglang:prompt_tokens_total",),
        output_tokens=("sglang:generation_tokens_total",),
        prefix_queries=("sglang:prompt_tokens_total",),
        prefix_hits=("sglang:cached_tokens_total",),
    )
    resets = True
    any_port = False  # its other ports are counted from this one
    package = "sglang"
    server_type = SglangServer

    @classmethod
    def gpus_per_replica(cls, arguments: Mapping[str, object]) -> int:
        """See `Engine.gpus_per_replica`. Groups of attention data parallelism lie inside the tensor-parallel one."""
        switched = {str(name).replace("-", "_"): value for name, value in arguments.items()}
        if switched.get("enable_dp_attention") is True:
            arguments = {name: value for name, value in switched.items() if name not in cls.sizes[2]}
        return super().gpus_per_replica(arguments)
