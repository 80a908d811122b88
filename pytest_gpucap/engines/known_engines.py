"""Which engine a running server is, by what it says of itself: the owner of its models, the names of its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Final

from pytest_gpucap.engines.protocol import MetricNames

SOFTWARE: Final[Mapping[str, str]] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tensorrt_llm": "TensorRT-LLM",
    "llamacpp": "llama.cpp",
}
"""``owned_by`` in the list of models -> the engine. A gateway names others, or what stands in its configuration."""


def engine_on(page: str) -> tuple[str, MetricNames] | None:
    """The engine whose figures stand on a page of metrics, and their names; None if none is known."""
    text = "\n" + page
    for software, names in _known():
        if any(text.find(f"\n{name}") >= 0 for every in astuple(names) for name in every):
            return software, names
    return None


def _known() -> Iterator[tuple[str, MetricNames]]:
    from pytest_gpucap.engines.llama_cpp import LlamaEngine
    from pytest_gpucap.engines.sglang import SglangEngine
    from pytest_gpucap.engines.tensorrt_llm import TensorRtEngine
    from pytest_gpucap.engines.vllm import METRICS

    yield SOFTWARE["vllm"], METRICS
    for engine in (SglangEngine, TensorRtEngine, LlamaEngine):
        yield engine.title, engine.metrics
