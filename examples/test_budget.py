"""A first suite to copy: the rate that the fleet must carry, the number of GPUs, and the latency limits.

Run it with ``pytest examples --gpu-class a10g --target-qps 10 --gpucap-model ORG/MODEL``, or name the model in the
marker. In this repository ``gpucap_model`` in pyproject.toml names a synthetic model, so that the suite runs anywhere.
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap

pytestmark = pytest.mark.vllm(max_model_len=1024, gpu_memory_utilization=0.8)


@pytest.mark.gpucap(name="chat", gpus=1, input_tokens=128, output_tokens=32, e2e_p95="3s", ttft_p95="1s")
def test_chat_fits_its_budget(gpucap: GpuCap) -> None:
    """The rate comes from --target-qps. The test fails if one GPU no longer carries it."""
    gpucap.check()


@pytest.mark.xfail(reason="kept to show what a failure says: this rate needs many more GPUs", strict=True)
@pytest.mark.gpucap(name="launch day", qps=2000, gpus=2, input_tokens=128, output_tokens=32, e2e_p95="3s")
def test_launch_day_does_not_fit(gpucap: GpuCap) -> None:
    """A budget that cannot hold. The expected failure is a FAIL: an INVALID measurement still breaks the run."""
    gpucap.check()
