"""Do two replicas add up? A fleet of two, one replica alone, and one replica of two GPUs.

GPUCAP_SUITE=benchmarks/h200/test_two_h200_fleet.py bash benchmarks/h200/run.sh OUT python3 small \
    --gpucap-router=client:least_outstanding

GPUCAP_MODEL=synthetic:tiny rehearses it without GPUs.
"""

from __future__ import annotations

import os

import pytest

from pytest_gpucap import GpuCap

SMALL = os.environ.get("GPUCAP_MODEL", "synthetic:qwen2-1.5b")
LARGE = os.environ.get("GPUCAP_MODEL", "synthetic:qwen2.5-14b")
SERVER = {"max_model_len": 1024, "enable_prefix_caching": False}

pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, endpoint="completions", gpus=2)


@pytest.mark.vllm(model=SMALL, **SERVER)
@pytest.mark.gpucap(name="1.5B, two replicas", replicas=2, e2e_p95="4s")
def test_small(gpucap: GpuCap) -> None:
    """Bound by its engine's CPU: replicas share the host's cores."""
    assert gpucap.measure().sustainable_rate is not None


@pytest.mark.vllm(model=LARGE, **SERVER)
@pytest.mark.gpucap(name="14B, two replicas", replicas=2, e2e_p95="8s")
def test_large(gpucap: GpuCap) -> None:
    """Bound by the GPU."""
    assert gpucap.measure().sustainable_rate is not None


@pytest.mark.vllm(model=LARGE, tensor_parallel_size=2, **SERVER)
@pytest.mark.gpucap(name="14B, tensor parallel 2", e2e_p95="8s")
def test_tensor_parallel(gpucap: GpuCap) -> None:
    """Both GPUs for one replica."""
    assert gpucap.measure().sustainable_rate is not None
