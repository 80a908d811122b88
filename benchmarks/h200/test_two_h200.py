"""The plugin on two H200s of one host: one server over both, and two servers at a time, one on each.

GPUCAP_SUITE=benchmarks/h200/test_two_h200.py bash benchmarks/h200/run.sh OUT python3 parallel
GPUCAP_SUITE=benchmarks/h200/test_two_h200.py bash benchmarks/h200/run.sh OUT python3 alone -n 2
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap

MODEL = "synthetic:qwen2-1.5b"
SERVER = {"max_model_len": 4096, "gpu_memory_utilization": 0.8}

pytestmark = pytest.mark.gpucap(
    input_tokens=256, output_tokens=512, e2e_p95="4s", ttft_p95="500ms", endpoint="completions"
)


@pytest.mark.vllm(model=MODEL, data_parallel_size=2, **SERVER)
@pytest.mark.gpucap(name="data parallel", gpus=2)
def test_parallel(gpucap: GpuCap) -> None:
    """Two engines behind one API server."""
    gpucap.check()


def _server(prefix_caching: bool) -> object:
    return pytest.param(prefix_caching, marks=pytest.mark.vllm(enable_prefix_caching=prefix_caching))


@pytest.mark.parametrize("prefix_caching", [_server(prefix_caching=True), _server(prefix_caching=False)])
@pytest.mark.vllm(model=MODEL, **SERVER)
@pytest.mark.gpucap(gpus=1)
def test_alone(gpucap: GpuCap, prefix_caching: bool) -> None:
    """Under ``pytest -n 2``: each worker leases a GPU of its own."""
    del prefix_caching  # it is in the marks
    gpucap.check()
