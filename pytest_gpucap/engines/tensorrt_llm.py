"""TensorRT-LLM as an engine, by its documentation and its source. It was not run by this project: it needs a GPU.

Arguments: https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve/trtllm-serve.html. Its Prometheus page stands at
``/prometheus/metrics`` and exists only under ``return_perf_metrics``, which a file of options turns on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.engines.errors import MetricsUnavailable
from pytest_gpucap.engines.program import ProgramEngine, ProgramServer
from pytest_gpucap.engines.program_arguments import FlagStyle
from pytest_gpucap.engines.protocol import MetricNames, ServingIdentity

_METRICS: Final = "/metrics"
_OPTIONS: Final = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
_OPTION_FILES: Final = ("extra_llm_api_options", "config")
_BLOCKS, _BLOCK_TOKENS = "trtllm_kv_cache_max_blocks", "trtllm_kv_cache_tokens_per_block"
_MOST_AT_ONCE: Final = "trtllm_max_batch_size_static"


class TensorRtServer(ProgramServer):
    """A server of ``trtllm-serve``."""

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        timeout_s: float | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> str:
        """See `HttpServer.request`. What it has at ``/metrics`` is JSON, and empties itself when it is read."""
        there = f"/prometheus{_METRICS}" if path == _METRICS else path
        return super().request(there, method=method, timeout_s=timeout_s, content=content)

    @property
    def max_num_seqs(self) -> int | None:
        """The argument, or the size of a batch that its page tells."""
        return super().max_num_seqs or self._product(_MOST_AT_ONCE)

    @property
    def kv_tokens(self) -> int | None:
        """Its blocks times their tokens, once its page tells them."""
        return self._product(_BLOCKS, _BLOCK_TOKENS) or super().kv_tokens

    def _product(self, *names: str) -> int | None:
        """Of these figures of its page; None where it does not tell them (yet)."""
        try:
            page = self.metrics()
            return int(math.prod(page.value(name) for name in names)) or None
        except (MetricsUnavailable, KeyError, ValueError, OverflowError):
            return None


class TensorRtEngine(ProgramEngine):
    """Starts ``trtllm-serve``."""

    name = "tensorrt-llm"
    title = "TensorRT-LLM"
    call = ("trtllm-serve",)
    model_flag = ""
    style = FlagStyle(dashes=False)
    owned: ClassVar = {
        "server_role": "one server answers whole requests",
        "metadata_server_config_file": "the plugin finds its server itself",
        "disagg_cluster_uri": "one server answers whole requests",
    }
    sizes = (
        ("tensor_parallel_size", "tp_size"),
        ("pipeline_parallel_size", "pp_size"),
        ("context_parallel_size", "cp_size"),
    )
    context = ("max_seq_len",)
    sequences = ("max_batch_size",)
    vllm_names: ClassVar = {
        "tensor_parallel_size": "tensor_parallel_size",
        "tp_size": "tensor_parallel_size",
        "pipeline_parallel_size": "pipeline_parallel_size",
        "pp_size": "pipeline_parallel_size",
    }
    metrics = MetricNames(
        running=("trtllm_num_requests_running",),
        waiting=("trtllm_num_requests_waiting",),
        kv_use=("trtllm_kv_cache_utilization",),
        prompt_tokens=("trtllm_prompt_tokens_total",),
        output_tokens=("trtllm_generation_tokens_total",),
        prefix_queries=("trtllm_prompt_tokens_total",),
        prefix_hits=("trtllm_prompt_cached_tokens_total",),
        draft_tokens=("trtllm_spec_decode_num_draft_tokens_total",),
        accepted_tokens=("trtllm_spec_decode_num_accepted_tokens_total",),
    )
    dialect = ApiDialect(tokenizes=False)
    any_port = False
    server_type = TensorRtServer

    def command(self, model: str, known: ServingIdentity, port: int) -> list[str]:
        """See `ProgramEngine.command`. Without a file of options of the user's own, one turns its metrics on."""
        words = super().command(model, known, port)
        if "command" in self.request.arguments or any(name in self.arguments for name in _OPTION_FILES):
            return words
        options = self.request.new_log("tensorrt-llm-options").with_suffix(".yaml").absolute()
        options.parent.mkdir(parents=True, exist_ok=True)
        options.write_text(f"{json.dumps(_OPTIONS)}\n", encoding="utf-8")  # JSON is YAML
        return [*words, f"--{_OPTION_FILES[0]}", str(options)]
