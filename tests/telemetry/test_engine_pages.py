"""Pages of other engines than vLLM, in the form of their sources: SGLang 0.5.23, TensorRT-LLM of November 2026."""

from __future__ import annotations

import math

import pytest

from pytest_gpucap.engines.known_engines import engine_on
from pytest_gpucap.engines.sglang import SglangEngine
from pytest_gpucap.engines.tensorrt_llm import TensorRtEngine
from pytest_gpucap.engines.vllm import METRICS
from pytest_gpucap.telemetry.probes import read_metrics

RANK = 'dp_rank="{}",engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
SGLANG = "".join(
    f"""
sglang:num_running_reqs{{{labels}}} {12.0 + rank}
sglang:num_queue_reqs{{{labels}}} {3.0 * rank}
sglang:token_usage{{{labels}}} {0.25 + rank / 2}
sglang:num_retracted_reqs{{{labels}}} 0.0
sglang:num_retracted_requests_total{{{labels}}} {2.0 * rank}
"""
    for rank, labels in enumerate((RANK.format(0), RANK.format(1)))
)
TOKENS = """
sglang:prompt_tokens_total{engine_type="unified",is_streaming="true",model_name="m"} 9000.0
sglang:prompt_tokens_total{engine_type="unified",is_streaming="false",model_name="m"} 1000.0
sglang:prompt_tokens_histogram_bucket{le="100.0",model_name="m"} 4.0
sglang:generation_tokens_total{engine_type="unified",is_streaming="true",model_name="m"} 4000.0
sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="m"} 5000.0
sglang:cached_tokens_total{cache_source="host",engine_type="unified",model_name="m"} 500.0
"""
WITH_PRIORITIES = """
sglang:num_running_reqs{dp_rank="0",model_name="m",priority="",tp_rank="0"} 12.0
sglang:num_running_reqs{dp_rank="0",model_name="m",priority="1",tp_rank="0"} 8.0
sglang:num_running_reqs{dp_rank="0",model_name="m",priority="10",tp_rank="0"} 4.0
sglang:num_running_reqs{dp_rank="1",model_name="m",priority="",tp_rank="0"} 5.0
sglang:num_running_reqs{dp_rank="1",model_name="m",priority="1",tp_rank="0"} 5.0
sglang:num_queue_reqs{dp_rank="0",model_name="m",priority="",tp_rank="0"} 3.0
sglang:num_queue_reqs{dp_rank="0",model_name="m",priority="None",tp_rank="0"} 3.0
"""
TENSORRT = """
trtllm_prompt_tokens_total{engine_type="trtllm",model_name="m"} 10000.0
trtllm_generation_tokens_total{engine_type="trtllm",model_name="m"} 4000.0
trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 12.0
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 3.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.25
trtllm_prompt_cached_tokens_total{engine_type="trtllm",model_name="m"} 5500.0
trtllm_prompt_cache_hit_tokens_total{cache_level="0",cache_tier="gpu",engine_type="trtllm",model_name="m"} 5500.0
trtllm_prompt_cached_tokens_per_request_sum{engine_type="trtllm",model_name="m"} 5500.0
trtllm_spec_decode_num_draft_tokens_total{engine_type="trtllm",model_name="m"} 300.0
trtllm_spec_decode_num_accepted_tokens_total{engine_type="trtllm",model_name="m"} 210.0
trtllm_spec_decode_drafted_tokens_total{engine_type="trtllm",model_name="m",token_position="0"} 300.0
"""


def test_sglangs_page_with_two_data_parallel_ranks() -> None:
    seen = read_metrics(SGLANG + TOKENS, SglangEngine.metrics)
    assert (seen.running, seen.waiting, seen.kv_use, seen.preemptions) == (25.0, 3.0, 0.5, 2.0)
    assert (seen.prompt_tokens, seen.output_tokens) == (10000.0, 4000.0)
    assert seen.prefix_hits / seen.prefix_queries == pytest.approx(0.55)
    assert math.isnan(seen.draft_tokens)


def test_the_parts_that_priorities_have_of_sglangs_requests_are_not_counted_beside_the_whole() -> None:
    seen = read_metrics(WITH_PRIORITIES, SglangEngine.metrics)
    assert (seen.running, seen.waiting) == (17.0, 3.0)
    # A label of that name on another engine's page, without a whole, tells engines apart as others do.
    apart = 'vllm:num_requests_running{priority="1"} 4\nvllm:num_requests_running{priority="2"} 3\n'
    assert read_metrics(apart, METRICS).running == 7.0


def test_tensorrt_llms_page() -> None:
    seen = read_metrics(TENSORRT, TensorRtEngine.metrics)
    assert (seen.running, seen.waiting, seen.kv_use) == (12.0, 3.0, 0.25)
    assert seen.prefix_hits / seen.prefix_queries == pytest.approx(0.55)
    assert (seen.draft_tokens, seen.accepted_tokens) == (300.0, 210.0)
    assert math.isnan(seen.preemptions)


@pytest.mark.parametrize(("page", "software"), [(SGLANG, "SGLang"), (TENSORRT, "TensorRT-LLM")])
def test_an_engine_is_known_by_its_page(page: str, software: str) -> None:
    known = engine_on(page)
    assert known is not None
    assert known[0] == software
