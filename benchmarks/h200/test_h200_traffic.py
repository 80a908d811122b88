"""Traffic beyond prompts of one length, on H200s: goodput, sessions, adapters, embeddings, responses and schemas.

CUDA_VISIBLE_DEVICES=0 GPUCAP_SUITE=benchmarks/h200/test_h200_traffic.py bash benchmarks/h200/run.sh OUT python3 large
CUDA_VISIBLE_DEVICES=1 GPUCAP_SUITE=benchmarks/h200/test_h200_traffic.py bash benchmarks/h200/run.sh OTHER python3 small

GPUCAP_MODEL=synthetic:tiny rehearses it without GPUs, with GPUCAP_CLASS=cpu and GPUCAP_QPS=5.
"""

from __future__ import annotations

import os

import pytest

from pytest_gpucap import GpuCap

GIVEN = os.environ.get("GPUCAP_MODEL")
LARGE = pytest.mark.vllm(model=GIVEN or "synthetic:qwen2.5-14b", max_model_len=4096, enable_prefix_caching=True)
SMALL = pytest.mark.vllm(model=GIVEN or "synthetic:qwen2.5-7b", max_model_len=1024, enable_prefix_caching=False)
EMBEDDER = pytest.mark.vllm(
    model=GIVEN or "synthetic:qwen2-1.5b", max_model_len=1024, runner="pooling", convert="embed"
)
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "texts",
        "schema": {
            "type": "object",
            "properties": {
                "texts": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{60}$"}, "minItems": 4}
            },
            "required": ["texts"],
            "additionalProperties": False,
        },
    },
}


@LARGE
@pytest.mark.gpucap(
    name="14B, goodput",
    input_tokens=256,
    output_tokens=512,
    endpoint="completions",
    goodput="95%",
    ttft="400ms",
    e2e="8s",
    max_time="100s",
)
def test_large_goodput(gpucap: GpuCap) -> None:
    """Requests that keep both thresholds together."""
    assert gpucap.measure().sustainable_rate is not None


@LARGE
@pytest.mark.gpucap(
    name="14B, sessions",
    input_tokens="lognormal:mean=120,cv=1,high=1024",
    output_tokens=200,
    sessions="turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=4s,cv=1 context=4096",
    ttft_p95="400ms",
    e2e_p95="6s",
    max_time="100s",
)
def test_large_sessions(gpucap: GpuCap) -> None:
    """Turns wait for answers, and find in the prefix cache what was said."""
    assert gpucap.measure().sustainable_rate is not None


@LARGE
@pytest.mark.gpucap(name="14B, free text", input_tokens=256, output_tokens=256, endpoint="chat")
def test_large_free_text(gpucap: GpuCap) -> None:
    """What answers in a form are set beside."""
    assert gpucap.sample(concurrency=32, duration="15s").errors == {}


@LARGE
@pytest.mark.gpucap(
    name="14B, schema",
    input_tokens=256,
    output_tokens=256,
    endpoint="chat",
    extra_body={"response_format": SCHEMA},
)
def test_large_schema(gpucap: GpuCap) -> None:
    """Answers in a form, with as many requests in flight."""
    assert gpucap.sample(concurrency=32, duration="15s").errors == {}


@SMALL
@pytest.mark.gpucap(
    name="7B, three adapters",
    input_tokens=256,
    output_tokens=256,
    adapters={"base": 2, "a": 2, "b": 1},
    e2e_p95="5s",
    max_time="100s",
)
def test_small_adapters(gpucap: GpuCap) -> None:
    """A mix of LoRA adapters and the model itself."""
    found = gpucap.measure()
    assert found.sustainable_rate is not None
    assert [each.name for each in found.adapters] == ["base", "a", "b"]


@SMALL
@pytest.mark.gpucap(name="7B, without adapters", input_tokens=256, output_tokens=256, e2e_p95="5s", max_time="90s")
def test_small_alone(gpucap: GpuCap) -> None:
    """The same model without adapters."""
    assert gpucap.measure().sustainable_rate is not None


@SMALL
@pytest.mark.gpucap(input_tokens=256, output_tokens=256, endpoint="responses")
def test_small_responses(gpucap: GpuCap) -> None:
    """`/v1/responses`, streamed."""
    assert gpucap.sample(rate=5, duration="10s").errors == {}


@EMBEDDER
@pytest.mark.gpucap(
    name="1.5B, embeddings", qps=40, gpus=1, endpoint="embeddings", input_tokens=512, e2e_p99="150ms", max_time="60s"
)
def test_small_embeddings(gpucap: GpuCap) -> None:
    """Requests that are only prefilled."""
    gpucap.check()
