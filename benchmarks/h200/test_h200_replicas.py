"""Do the replicas of one host add up? One, two, four, ... replicas, and replicas of several GPUs.

GPUCAP_GPUS=4 GPUCAP_SUITE=benchmarks/h200/test_h200_replicas.py bash benchmarks/h200/run.sh OUT python3 small \
    --gpucap-efficiency=skip

`replicas.py` runs all of it, and what needs more than one session. GPUCAP_MODEL=synthetic:tiny rehearses it without
GPUs.
"""

from __future__ import annotations

import os

import pytest

from pytest_gpucap import GpuCap

GPUS = int(os.environ.get("GPUCAP_GPUS", "4"))
SMALL = os.environ.get("GPUCAP_MODEL", "synthetic:qwen2-1.5b")
LARGE = os.environ.get("GPUCAP_MODEL", "synthetic:qwen2.5-14b")
SERVER = {"max_model_len": 1024, "enable_prefix_caching": False}
COUNTS = [2**k for k in range(GPUS.bit_length())]
"""1, 2, 4, ... up to the host's GPUs."""

pytestmark = pytest.mark.gpucap(input_tokens=256, output_tokens=512, endpoint="completions")


def _replicas(model: str, count: int) -> object:
    name = f"{model}, one replica" if count == 1 else f"{model}, {count} replicas"
    return pytest.param(count, marks=pytest.mark.gpucap(name=name, replicas=count, gpus=count), id=str(count))


@pytest.mark.parametrize("count", [_replicas("1.5B", count) for count in reversed(COUNTS)])
@pytest.mark.vllm(model=SMALL, **SERVER)
@pytest.mark.gpucap(e2e_p95="4s")
def test_small(gpucap: GpuCap, count: int) -> None:
    """Bound by its engine's CPU: replicas share the host's cores."""
    assert gpucap.measure().requirement.fleet == count


@pytest.mark.parametrize("count", [_replicas("14B", count) for count in reversed(COUNTS)])
@pytest.mark.vllm(model=LARGE, **SERVER)
@pytest.mark.gpucap(e2e_p95="8s")
def test_large(gpucap: GpuCap, count: int) -> None:
    """Bound by the GPU."""
    assert gpucap.measure().requirement.fleet == count


def _layout(tp: int) -> object:
    replicas = GPUS // tp
    name = f"14B, {replicas} x tensor parallel {tp}"
    marks = [
        pytest.mark.vllm(tensor_parallel_size=tp),
        pytest.mark.gpucap(name=name, replicas=replicas, gpus=GPUS),
    ]
    return pytest.param(replicas, marks=marks, id=str(tp))


@pytest.mark.parametrize("replicas", [_layout(tp) for tp in COUNTS[1:]])
@pytest.mark.vllm(model=LARGE, **SERVER)
@pytest.mark.gpucap(e2e_p95="8s")
def test_layout(gpucap: GpuCap, replicas: int) -> None:
    """The same GPUs as fewer, larger replicas."""
    assert gpucap.measure().requirement.fleet == replicas


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.vllm(max_model_len=1024 + 16 * n)) for n in range(GPUS)],
)
@pytest.mark.vllm(model=SMALL, enable_prefix_caching=False)
@pytest.mark.gpucap(qps=1, gpus=1, headroom=1, e2e_p95="8s")
def test_alone(gpucap: GpuCap, number: int) -> None:
    """Under ``pytest -n GPUS``: every worker leases a GPU of its own and starts a server of its own."""
    del number  # it is in the marks
    gpucap.check()


@pytest.mark.vllm(model=SMALL, **SERVER)
@pytest.mark.gpucap(
    name="1.5B, one lost", qps=4, gpus=GPUS, headroom=1, replicas=GPUS, on_replica_loss="count", e2e_p95="8s"
)
def test_lost(gpucap: GpuCap) -> None:
    """`replicas.py` kills one replica while this measures; the others carry the rate."""
    gpucap.check()
