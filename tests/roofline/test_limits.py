"""Physical limits: against published roofline tools, against what was measured, and against themselves."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.requirement import LatencyLimit, Length, Slo, Workload
from pytest_gpucap.roofline.deployment import Deployment, Hardware
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of

MODELS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("model_configs.toml").read_text(encoding="utf-8"))
QWEN, LLAMA, MIXTRAL, V3 = (
    MODELS[name]["config"]
    for name in (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        "meta-llama/Llama-3.1-8B",
        "mistralai/Mixtral-8x7B-v0.1",
        "deepseek-ai/DeepSeek-V3",
    )
)
T4 = Hardware("t4", 320e9, 16 * 2**30, {"fp16": 65e12, "int8": 130e12})
A10G = Hardware("a10g", 600e9, 24 * 2**30, {"bf16": 70e12, "fp16": 70e12, "int8": 140e12})
A100 = Hardware("a100-80gb", 2039e9, 80 * 2**30, {"bf16": 312e12, "fp16": 312e12, "int8": 624e12})
H200 = Hardware("h200", 4800e9, 141 * 2**30, {"bf16": 989.5e12, "fp16": 989.5e12, "fp8": 1979e12, "int8": 1979e12})


def load(tokens_in: int = 256, tokens_out: int = 512, shared: int = 0) -> Workload:
    return Workload(
        input_tokens=Length.fixed(tokens_in), output_tokens=Length.fixed(tokens_out), shared_prefix_tokens=shared
    )


def roofline(
    config: Mapping[str, Any], hardware: Hardware, workload: Workload | None = None, **arguments: str
) -> Roofline:
    return Roofline(model_of(config), precision_of(config, **arguments), hardware, workload or load())


# The sizing guide's facts


@pytest.mark.parametrize(("hardware", "floor_s"), [(T4, 5.0), (A10G, 2.6)])
def test_512_tokens_of_the_1_5b_model_in_fp16_cannot_take_less(hardware: Hardware, floor_s: float) -> None:
    found = roofline(QWEN, hardware, dtype="half")
    assert found.weights_read_bytes(1) == pytest.approx(3.1e9, rel=0.01)  # "1.5B parameters in fp16 are about 3.1 GB"
    assert 512 * found.weights_read_bytes(1) / hardware.bandwidth_bytes_per_s == pytest.approx(floor_s, rel=0.02)
    assert found.e2e_s() == pytest.approx(floor_s, rel=0.02)


def test_what_was_measured_on_an_h200_is_a_plausible_share_of_its_limit() -> None:
    found = roofline(QWEN, H200)
    assert found.e2e_s() / 1.17 == pytest.approx(0.28, abs=0.01)  # one request alone took 1.17 s
    at_64 = found.at(64)
    assert at_64.bound == "bandwidth"
    assert 44 / at_64.rate_rps == pytest.approx(0.295, abs=0.01)  # 44 req/s at 64 in flight


# Several engines


def test_engines_side_by_side_hold_what_every_token_uses_each_and_experts_once() -> None:
    one, two = roofline(MIXTRAL, H200), roofline(MIXTRAL, replace(H200, data=2))
    experts = sum(layer.experts * layer.expert * count for layer, count in one.model.blocks) * 2  # bytes a parameter
    assert two.weight_bytes == pytest.approx(2 * (one.weight_bytes - experts) + experts)
    # Of two requests each engine reads all dense weights for its own, and half of the experts that both use.
    dense = one.weights_read_bytes(1) - experts * 2 / 8
    both = experts * (1 - (1 - 2 / 8) ** 2)
    assert two.weights_read_bytes(2) == pytest.approx(dense + both / 2)
    assert two.ttft_s() < one.ttft_s()
    assert roofline(QWEN, replace(H200, data=2)).ttft_s() == roofline(QWEN, H200).ttft_s()  # nobody can help a prompt


def test_every_engine_needs_room_for_the_weights_and_a_request() -> None:
    tight = replace(H200, memory_bytes=roofline(QWEN, H200).weight_bytes + 1e6)  # and 35 tokens of 768
    assert not roofline(QWEN, replace(tight, data=64)).fits()
    assert roofline(QWEN, replace(H200, data=64)).fits()


# Published roofline tools

LLAMA_1 = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "30b": {"hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60, "num_attention_heads": 52},
    "65b": {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64},
}


@pytest.mark.parametrize(
    ("size", "tensor", "weights", "prefill_operations", "decode_s"),
    [
        ("7b", 1, 13147045888, 6868726448128, 0.006730704805422467),
        ("13b", 1, 25493504000, 13267422412800, 0.012944734807660872),
        ("30b", 1, 64221347840, 33300089405440, 0.032357300595716856),
        ("65b", 2, 64686653440 * 2, 66926327889920, 0.03384921277991977),
    ],
)
def test_llm_analysis(size: str, tensor: int, weights: float, prefill_operations: float, decode_s: float) -> None:
    """github.com/cli99/llm-analysis, examples/llama/outputs_infer_ideal: LLaMA on A100 80 GB, 512 tokens in, 32 out.

    It reads and writes the whole KV cache a token, reads the input table, leaves the output projection's reading out,
    takes an MLP of 8/3 x the hidden size, and counts attention without its causal mask and logits for every prompt
    token: hence the few percent.
    """
    config = {**LLAMA_1[size], "model_type": "llama", "vocab_size": 32000, "torch_dtype": "float16"}
    found = roofline(config, replace(A100, tensor=tensor), load(512, 32))
    assert found.weight_bytes == pytest.approx(weights, rel=0.03)
    assert found.prefill_operations(512) == pytest.approx(prefill_operations, rel=0.04)
    assert found.prefill_operations(512) < prefill_operations
    communication_s = 0.00128 if tensor > 1 else 0.0  # decode_latency_fwd_tp_comm, which a limit leaves out
    assert found.tpot_s(1, 528) == pytest.approx(decode_s - communication_s, rel=0.03)


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B"])
@pytest.mark.parametrize(("batch", "context"), [(1, 1024), (32, 2048)])
def test_llm_viewer(name: str, batch: int, context: int) -> None:
    """github.com/hahnyuan/LLM-Viewer, model_analyzer.py and configs/Llama.py: bytes and operations of one decode step.

    Its sums over linear layers, attention's KV cache and the output projection, written out once more; it leaves the
    norms out and counts two operations a multiply and add, as here.
    """
    config = MODELS[name]["config"]
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads, layers, vocabulary = config["num_key_value_heads"], config["num_hidden_layers"], config["vocab_size"]
    size = hidden // heads
    linear = [(hidden, hidden)] * 2 + [(hidden, hidden * kv_heads // heads)] * 2
    linear += [(hidden, inner)] * 2 + [(inner, hidden)]
    load_weight = layers * sum(i * o * 2 for i, o in linear) + hidden * vocabulary * 2
    load_kv = layers * 2 * context * size * batch * kv_heads * 2
    operations = layers * sum(i * o * batch * 2 for i, o in linear) + hidden * vocabulary * batch * 2
    operations += layers * 2 * (context * size * heads * batch * 2)

    found = roofline(config, A100)
    assert found.weights_read_bytes(batch) == pytest.approx(load_weight, rel=1e-3)
    assert found.kv_read_bytes(batch, context) == load_kv
    read_s, computed_s = load_weight + load_kv, operations
    expected = max(read_s / 2039e9, computed_s / 312e12)
    assert found.tpot_s(batch, context) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "tensor", "tokens", "measured_ms", "hardware", "quantization"),
    [
        ("meta-llama/Llama-2-7b-hf", 1, 128, 16, A100, None),
        ("meta-llama/Llama-2-7b-hf", 1, 2048, 133, A100, None),
        ("meta-llama/Llama-2-7b-hf", 1, 128, 7, replace(H200, bandwidth_bytes_per_s=3350e9), "fp8"),
        ("meta-llama/Llama-2-7b-hf", 1, 2048, 36, replace(H200, bandwidth_bytes_per_s=3350e9), "fp8"),
    ],
)
def test_published_first_token_latencies_are_above_the_limit(
    config: str, tensor: int, tokens: int, measured_ms: float, hardware: Hardware, quantization: str | None
) -> None:
    """TensorRT-LLM v0.6.1, docs/source/performance.md, "Low Latency": batch 1 on A100 (FP16) and H100 (FP8)."""
    model = MODELS[config]["config"]
    arguments = {} if quantization is None else {"quantization": quantization}
    found = roofline(model, replace(hardware, tensor=tensor), load(tokens, 2), **arguments)
    assert 0.2 < found.ttft_s() * 1e3 / measured_ms < 1


# What must hold of any roofline

EVERY = [(name, hardware) for name in MODELS for hardware in (A10G, H200)]


@pytest.mark.parametrize(("name", "hardware"), EVERY)
def test_more_in_flight_is_more_throughput_and_slower_tokens(name: str, hardware: Hardware) -> None:
    found = roofline(MODELS[name]["config"], hardware)
    limits = [found.at(batch) for batch in (1, 2, 8, 64, 512, 4096)]
    assert [limit.tpot_s for limit in limits] == sorted(limit.tpot_s for limit in limits)
    rates = [limit.rate_rps for limit in limits]
    assert rates == sorted(rates)
    assert rates[-1] <= found.computed_rps()
    assert all(limit.ttft_s > 0 for limit in limits)


@pytest.mark.parametrize("name", MODELS)
def test_the_certain_limit_is_never_below_the_expected_one(name: str) -> None:
    found = roofline(MODELS[name]["config"], H200)
    certain = replace(found, least_experts=True)
    for batch in (1, 16, 256):
        assert certain.at(batch).rate_rps >= found.at(batch).rate_rps * (1 - 1e-12)
    assert (certain.at(256).rate_rps > found.at(256).rate_rps) == any(layer.experts for layer, _ in found.model.blocks)


def test_a_mixture_reads_two_experts_for_one_token_and_nearly_all_for_many() -> None:
    found = roofline(MIXTRAL, H200)
    layer = found.model.blocks[0][0]
    assert layer.experts_read(1) == pytest.approx(2)
    assert layer.experts_read(2) == pytest.approx(8 * (1 - 0.75**2))
    assert layer.experts_read(64) == pytest.approx(8)
    assert found.weights_read_bytes(1) == pytest.approx(2 * found.model.active, rel=1e-9)
    assert found.weights_read_bytes(64) == pytest.approx(2 * (found.model.parameters - found.model.embedding), rel=1e-6)


def test_tensor_parallelism_divides_reading_and_copies_kv_heads_beyond_their_number() -> None:
    one, four = (roofline(LLAMA, replace(H200, tensor=tensor)) for tensor in (1, 4))
    assert four.tpot_s(8) == pytest.approx(one.tpot_s(8) / 4)
    assert four.kv_bytes_per_token == one.kv_bytes_per_token
    sixteen = roofline(LLAMA, replace(H200, tensor=16))
    assert sixteen.kv_bytes_per_token == 2 * one.kv_bytes_per_token  # 8 KV heads on 16 GPUs
    latent = roofline(V3, replace(H200, tensor=8))
    assert latent.kv_bytes_per_token == 8 * roofline(V3, H200).kv_bytes_per_token
    split = replace(latent, deployment=Deployment(kv_split=True))
    assert split.kv_bytes_per_token == roofline(V3, H200).kv_bytes_per_token


def test_pipeline_stages_add_throughput_but_no_latency() -> None:
    one, two = roofline(LLAMA, H200), roofline(LLAMA, replace(H200, pipeline=2))
    assert two.tpot_s(1) == one.tpot_s(1)
    assert two.at(64).rate_rps == pytest.approx(2 * one.at(32).rate_rps)
    assert two.computed_rps() == pytest.approx(2 * one.computed_rps())


def test_speculation_allows_more_tokens_a_pass() -> None:
    plain = roofline(LLAMA, H200)
    drafted = replace(plain, deployment=Deployment(tokens_per_pass=4))
    assert drafted.tpot_s(1) == pytest.approx(plain.tpot_s(1) / 4)
    assert drafted.shortest_e2e_s() < plain.shortest_e2e_s()
    assert drafted.at(1).rate_rps == pytest.approx(4 * plain.at(1).rate_rps)


def test_a_shared_prefix_is_computed_and_read_once() -> None:
    alone, shared = roofline(LLAMA, A10G, load(2048, 128)), roofline(LLAMA, A10G, load(2048, 128, shared=1792))
    assert shared.ttft_s() < alone.ttft_s()
    assert shared.kv_read_bytes(1) == alone.kv_read_bytes(1)
    each = alone.kv_read_bytes(1)
    assert shared.kv_read_bytes(10) == pytest.approx(10 * each - 9 * each * 1792 / 2112)
    assert shared.memory_batch() > alone.memory_batch()


def test_memory_sequences_and_limits_bound_the_batch() -> None:
    found = roofline(LLAMA, A10G)
    best = found.best()
    assert best is not None
    room = 24 * 2**30 - 2 * 8030261248
    assert best.batch == math.floor(room / (512 * 131072))  # 128 KiB a token
    few = replace(found, deployment=Deployment(max_num_seqs=16)).best()
    assert few is not None
    assert few.batch == 16
    told = replace(found, deployment=Deployment(kv_tokens=5120)).best()
    assert told is not None
    assert told.batch == 10
    limited = found.best(Slo((LatencyLimit.parse("e2e_p95", found.e2e_s(20)),)))
    assert limited is not None
    assert limited.batch in {19, 20}
    assert found.best(Slo((LatencyLimit.parse("tpot_p50", "1ms"),))) is None


def test_a_model_larger_than_the_memory_does_not_fit() -> None:
    large = MODELS["meta-llama/Llama-3.1-70B"]["config"]
    assert not roofline(large, A100).fits()
    assert roofline(large, A100).best() is None
    assert roofline(large, replace(A100, tensor=2)).fits()
    assert roofline(LLAMA, replace(A10G, memory_bytes=None)).fits()


def test_a_gpu_without_the_arithmetic_computes_in_16_bits() -> None:
    fp8 = precision_of(LLAMA, quantization="fp8")
    assert H200.operations(fp8.arithmetic) == 1979e12
    assert A100.operations(fp8.arithmetic) == 312e12
    assert T4.operations("bf16") == 65e12
    assert Hardware("cpu", 50e9).operations("bf16") == math.inf


def test_without_arithmetic_bandwidth_still_bounds() -> None:
    cpu = Hardware("cpu", 50e9)
    assert roofline(QWEN, cpu).at(8).bound == "bandwidth"
    assert math.isfinite(roofline(QWEN, cpu, load(64, 1)).at(4).rate_rps)
