"""Limits beside the rate on one H200: energy, KV capacity, preemptions and the start."""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap


@pytest.mark.vllm(model="synthetic:qwen2.5-14b", max_model_len=1024, enable_prefix_caching=False)
@pytest.mark.gpucap(
    name="14B, limits",
    qps=8,
    gpus=1,
    input_tokens=256,
    output_tokens=512,
    endpoint="completions",
    e2e_p95="8s",
    startup="300s",
    kv_tokens=400_000,
    joules_per_1k_tokens=500,
    preemptions=0.01,
)
def test_limits(gpucap: GpuCap) -> None:
    """All of them hold."""
    gpucap.check()
