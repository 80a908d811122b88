"""A first suite to copy: what the fleet must carry, on how many GPUs, under which latency limits.

Run it with ``pytest examples --gpu-class a10g --target-qps 10 --gpucap-model ORG/MODEL``, or name the model in the
marker. Here it comes from ``gpucap_model`` in pyproject.toml, and is made on the spot, so that it runs anywhere.
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap

pytestmark = pytest.mark.vllm(max_model_len=1024, gpu_memory_utilization=0.8)


@pytest.mark.gpucap(name="chat", gpus=1, input_tokens=128, output_tokens=32, e2e_p95="3s", ttft_p95="1s")
def test_chat_fits_its_budget(gpucap: GpuCap) -> None:
    """The rate comes from --target-qps; the test fails when one GPU no longer carries it."""
    gpucap.check()


@pytest.mark.xfail(reason="kept to show what a failure says: this rate needs many more GPUs", strict=True)
@pytest.mark.gpucap(name="launch day", qps=2000, gpus=2, input_tokens=128, output_tokens=32, e2e_p95="3s")
def test_launch_day_does_not_fit(gpucap: GpuCap) -> None:
    """A budget that cannot hold. A measurement that cannot be trusted is not this failure: it would break the run."""
    gpucap.check()
