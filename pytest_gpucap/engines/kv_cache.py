"""How many tokens a server's KV cache and its blocks hold, by what its page of metrics tells."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from pytest_gpucap.engines.errors import MetricsUnavailable
from pytest_gpucap.engines.protocol import Server


def told_kv_tokens(server: Server) -> int | None:
    """Tokens that fit the KV cache, over all engines, by ``vllm:cache_config_info``; None if it is not told."""
    engines: dict[str, int] = {}
    for labels in _told(server):
        # Every front end of an engine may show it, with or without its size.
        with suppress(KeyError, ValueError):
            index = labels.get("engine", "")
            engines[index] = max(engines.get(index, 0), _cache_size(labels))
    return sum(engines.values()) if engines else None


def told_block_tokens(server: Server) -> int | None:
    """Tokens of the largest block of the KV cache, in which a prefix cache finds prompts; None if it is not told."""
    largest = 0
    for labels in _told(server):
        with suppress(KeyError, ValueError):
            largest = max(largest, int(labels["block_size"]))
    return largest or None


def _told(server: Server) -> list[Mapping[str, str]]:
    """The labels of ``vllm:cache_config_info``, of each engine and front end that shows it."""
    try:
        return [sample.labels for sample in server.metrics().find("vllm:cache_config_info")]
    except MetricsUnavailable:
        return []


def _cache_size(labels: Mapping[str, str]) -> int:
    """Tokens that an engine's KV cache holds, by the labels of ``vllm:cache_config_info``."""
    # Prefer vLLM's own count: hybrid models share blocks between layers of several kinds.
    if "kv_cache_size_tokens" in labels:
        return int(labels["kv_cache_size_tokens"])
    return int(labels["num_gpu_blocks"]) * int(labels["block_size"])
