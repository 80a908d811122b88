"""Stands for SGLang's and TensorRT-LLM's servers: their documented arguments and pages, and the simulator's answers.

The first word says whose: ``sglang`` or ``tensorrt-llm``. Neither runs on a CPU. Names of arguments, endpoints and
metrics are those of SGLang 0.5.23 and of TensorRT-LLM's sources of November 2026.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_gpucap.simulator import profile, web

SGLANG = sys.argv.pop(1) == "sglang"
NAMES = {
    "num_requests_running": "sglang:num_running_reqs",
    "num_requests_waiting": "sglang:num_queue_reqs",
    "kv_cache_usage_perc": "sglang:token_usage",
    "prompt_tokens_total": "sglang:prompt_tokens_total",
    "generation_tokens_total": "sglang:generation_tokens_total",
}
if not SGLANG:
    NAMES = {
        "num_requests_running": "trtllm_num_requests_running",
        "num_requests_waiting": "trtllm_num_requests_waiting",
        "kv_cache_usage_perc": "trtllm_kv_cache_utilization",
        "prompt_tokens_total": "trtllm_prompt_tokens_total",
        "generation_tokens_total": "trtllm_generation_tokens_total",
        "prefix_cache_hits_total": "trtllm_prompt_cached_tokens_total",
    }
SIZES = """trtllm_kv_cache_max_blocks 1000.0
trtllm_kv_cache_tokens_per_block 32.0
trtllm_max_batch_size_static 2048.0
"""

parser = argparse.ArgumentParser()
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
if SGLANG:
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--enable-metrics", action="store_true", required=True)
    parser.add_argument("--mem-fraction-static", type=float)
    parser.add_argument("--disable-radix-cache", action="store_true")
else:
    parser.add_argument("model")
    parser.add_argument("--max_batch_size", type=int)
    parser.add_argument("--max_seq_len", type=int)
    parser.add_argument("--extra_llm_api_options", type=Path, required=True)


class Connection(web.ClientConnection):
    """One to a server of the engine."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._model = ARGUMENTS.served_model_name if SGLANG else Path(ARGUMENTS.model).name

    def _routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], None]]:
        routes = {route: answer for route, answer in super()._routes().items() if route[1] not in LACKING}
        if SGLANG:
            told = {"version": "0.5.23", "max_total_num_tokens": 4096, "max_running_requests": 32}
            return {
                **routes,
                ("GET", "/server_info"): lambda _: self._send(200, json.dumps(told).encode(), "application/json"),
                ("POST", "/flush_cache"): lambda _: self._send(200, b"Cache flushed.\n", "text/plain"),
            }
        page = routes.pop(("GET", "/metrics"))
        stats = b"[]"
        version = b'{"version": "1.3.0"}'
        return {
            **routes,
            ("GET", "/metrics"): lambda _: self._send(200, stats, "application/json"),
            ("GET", "/version"): lambda _: self._send(200, version, "application/json"),
            **({("GET", "/prometheus/metrics"): page} if OPTIONS.get("return_perf_metrics") else {}),
        }

    def _metrics(self) -> str:
        page = super()._metrics()
        for theirs, ours in NAMES.items():
            page = page.replace(f"vllm:{theirs}", ours)
        return re.sub(r"(?m)^.*vllm:.*\n", "", page) + ("" if SGLANG else SIZES)


LACKING = {"/version", "/reset_prefix_cache", *(() if SGLANG else ("/tokenize",))}
ARGUMENTS = parser.parse_args()
OPTIONS = {} if SGLANG else json.loads(ARGUMENTS.extra_llm_api_options.read_text())
web.ClientConnection = Connection  # type: ignore[misc]
asyncio.run(
    web.serve(profile.load("fast"), ARGUMENTS.host, ARGUMENTS.port, 0, lambda port: print("serving", port, flush=True))
)
