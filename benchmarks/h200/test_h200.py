"""The plugin on one H200: what it finds, what that costs, and whether it finds it again.

The model is the Qwen2 1.5B architecture with dummy weights, which do not change the speed; 256 tokens in, 512 out.
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap

MODEL = "synthetic:qwen2-1.5b"
SERVER = {"max_model_len": 4096, "gpu_memory_utilization": 0.8}

pytestmark = pytest.mark.gpucap(
    input_tokens=256, output_tokens=512, e2e_p95="4s", ttft_p95="500ms", endpoint="completions", gpus=1
)


@pytest.mark.vllm(model=MODEL, **SERVER)
class TestBf16:
    """The baseline server, shared by these tests."""

    @pytest.mark.gpucap(name="holds", headroom=1.3)
    def test_holds(self, gpucap: GpuCap) -> None:
        """The rate of --target-qps."""
        gpucap.check()

    @pytest.mark.xfail(reason="ten times what one GPU carries", strict=True)
    @pytest.mark.gpucap(name="fails", qps=400)
    def test_fails(self, gpucap: GpuCap) -> None:
        """For the right reason: an INVALID measurement would break the run."""
        gpucap.check()

    @pytest.mark.gpucap(name="bf16")
    def test_measure(self, gpucap: GpuCap) -> None:
        """The sustainable rate."""
        assert gpucap.measure().sustainable_rate is not None

    @pytest.mark.gpucap(name="curve")
    def test_sweep(self, gpucap: GpuCap) -> None:
        """Latency against rate."""
        assert gpucap.sweep().sustainable_rate is not None

    @pytest.mark.gpucap(name="closed 64")
    def test_sample(self, gpucap: GpuCap) -> None:
        """One window with 64 in flight, to be set against ``vllm bench serve``."""
        assert gpucap.sample(concurrency=64, duration="30s").completed_rps > 0


@pytest.mark.vllm(model=MODEL, quantization="fp8", **SERVER)
@pytest.mark.gpucap(name="fp8")
def test_fp8(gpucap: GpuCap) -> None:
    """Another quantisation, as a baseline to compare."""
    assert gpucap.measure().sustainable_rate is not None


def _caching(state: str, *, enabled: bool) -> object:
    marks = [pytest.mark.vllm(enable_prefix_caching=enabled), pytest.mark.gpucap(name=f"prefix caching {state}")]
    return pytest.param(state, marks=marks)


@pytest.mark.parametrize("state", [_caching("on", enabled=True), _caching("off", enabled=False)])
@pytest.mark.vllm(model=MODEL, **SERVER)
@pytest.mark.gpucap(input_tokens=2048, output_tokens=128, shared_prefix_tokens=1792, e2e_p95="10s")
def test_prefix(gpucap: GpuCap, state: str) -> None:
    """Prompts that share most of their tokens, with and without prefix caching."""
    del state  # it is in the marks
    assert gpucap.measure().sustainable_rate is not None
