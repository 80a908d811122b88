from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.results.telemetry import (
    Bottleneck,
    BottleneckKind,
    DeviceSummary,
    ProcessSummary,
    ServerSummary,
    TelemetrySummary,
)
from pytest_gpucap.telemetry.bottleneck import KnownLimits, find_bottleneck
from pytest_gpucap.telemetry.probes import API_SERVER, ENGINE, HELPER, WORKER
from pytest_gpucap.vllm_arguments import VllmArguments

UNREAD: dict[str, Any] = dict.fromkeys(
    (
        *("gpu_use", "memory_use", "memory_bytes", "power_w", "power_max_w", "power_limit_w", "energy_j"),
        *("sm_clock_mhz", "sm_clock_min_mhz", "memory_clock_mhz", "temperature_max_c"),
        *("pcie_sent_bytes_per_s", "pcie_received_bytes_per_s"),
    )
)


def device(**figures: Any) -> DeviceSummary:
    return DeviceSummary(uuid="GPU-1", name="NVIDIA H200", readings=100, slowdowns={}, **{**UNREAD, **figures})


def engine(main_thread: float, cores: float | None = None, role: str = ENGINE) -> ProcessSummary:
    return ProcessSummary(20, role, main_thread if cores is None else cores, main_thread)


def api_server(main_thread: float) -> ProcessSummary:
    return ProcessSummary(10, API_SERVER, main_thread, main_thread)


def summary(*, server: dict[str, float], **rest: Any) -> TelemetrySummary:
    figures: dict[str, Any] = {"readings": 20, "running": 8.0, "waiting": 0.0, "waiting_share": 0.0, **server}
    return TelemetrySummary(0.0, 10.0, server=ServerSummary(**figures), **rest)


def said(found: Bottleneck) -> str:
    return "; ".join(found.evidence)


def test_a_small_model_on_a_large_gpu_is_held_by_one_core() -> None:
    """As seen on an H200 with a 1.5B model: the engine's thread is full and the GPU has time to spare."""
    seen = summary(
        server={"running": 64}, devices=(device(gpu_use=0.62),), processes=(engine(0.99, 1.05), api_server(0.6))
    )
    found = find_bottleneck(seen)
    assert found.kind is BottleneckKind.ENGINE_CPU
    assert "the engine's main thread (pid 20) on a core 99% of the time" in found.evidence
    assert "GPU idle 38% of the time" in found.evidence
    assert found.describe().startswith("engine CPU: the engine's main thread (pid 20)")
    assert "; try faster cores; or several replicas on one GPU" in found.describe()


def test_an_engine_that_spins_while_the_gpu_is_busy_is_not_the_limit() -> None:
    seen = summary(server={}, devices=(device(gpu_use=0.99, memory_use=0.7),), processes=(engine(1.0),))
    assert find_bottleneck(seen).kind is BottleneckKind.GPU_BANDWIDTH


def test_an_api_server_with_a_full_core() -> None:
    seen = summary(server={}, devices=(device(gpu_use=0.4),), processes=(api_server(0.97), engine(0.6)))
    found = find_bottleneck(seen)
    assert found.kind is BottleneckKind.API_SERVER_CPU
    assert "--api-server-count" in found.advice


def test_a_worker_of_a_tensor_parallel_server_counts_as_engine() -> None:
    seen = summary(server={}, devices=(device(gpu_use=0.5),) * 2, processes=(engine(0.95, role=WORKER), engine(0.3)))
    assert find_bottleneck(seen).kind is BottleneckKind.ENGINE_CPU


@pytest.mark.parametrize(
    ("use", "kind"),
    [({"memory_use": 0.75}, BottleneckKind.GPU_BANDWIDTH), ({"memory_use": 0.2}, BottleneckKind.GPU_COMPUTE)],
)
def test_a_busy_gpu_is_bound_by_what_its_memory_does(use: dict[str, float], kind: BottleneckKind) -> None:
    seen = summary(server={}, devices=(device(gpu_use=0.98, power_w=680.0, power_limit_w=700.0, **use),))
    found = find_bottleneck(seen)
    assert found.kind is kind
    assert "GPU busy 98% of the time" in found.evidence
    assert "power at 97% of its limit" in found.evidence
    assert "--quantization fp8" in found.advice


def test_the_share_of_the_peak_rate_is_worked_out_where_the_model_is_known() -> None:
    rates = {"prompt_tokens_per_s": 100_000.0, "output_tokens_per_s": 10_000.0}
    known = KnownLimits(gpu_class=find_class("h200"), parameters=1.5e9)
    found = find_bottleneck(summary(server=rates, devices=(device(gpu_use=0.95),)), known)
    # 110,000 tokens x 3e9 operations over 989.5e12 a second: 33%.
    assert "33% of the peak rate" in said(found)
    assert found.kind is BottleneckKind.GPU_BANDWIDTH


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        # Decoding at 64 requests, 60 steps a second over 14 GB: 18% of 4.8 TB/s, against 5% of the peak rate.
        ({"running": 64.0, "prompt_tokens_per_s": 0.0, "output_tokens_per_s": 3840.0}, BottleneckKind.GPU_BANDWIDTH),
        # Prompts all the time: 40,000 tokens a second are 57% of the peak rate, and few steps read the weights.
        ({"running": 4.0, "prompt_tokens_per_s": 40_000.0, "output_tokens_per_s": 40.0}, BottleneckKind.GPU_COMPUTE),
        # The same prompts, nearly all of them cached.
        (
            {"running": 4.0, "prompt_tokens_per_s": 40_000.0, "output_tokens_per_s": 400.0, "prefix_hit_rate": 0.99},
            BottleneckKind.GPU_BANDWIDTH,
        ),
    ],
)
def test_shares_of_both_peaks_decide_where_the_model_is_known(rates: dict[str, float], kind: BottleneckKind) -> None:
    known = KnownLimits(gpu_class=find_class("h200"), parameters=7e9, weight_bytes=14e9)
    found = find_bottleneck(summary(server=rates, devices=(device(gpu_use=0.97, memory_use=0.45),)), known)
    assert found.kind is kind
    assert "of the peak bandwidth (all weights, once a step)" in said(found)


def test_waiting_for_kv_cache() -> None:
    figures = {"waiting": 12.0, "waiting_share": 0.9, "full_while_waiting": 0.85, "kv_use": 0.97, "kv_use_max": 1.0}
    found = find_bottleneck(summary(server=figures, devices=(device(gpu_use=0.99, memory_use=0.8),)))
    assert found.kind is BottleneckKind.KV_CACHE
    assert "requests waited while over 95% of the KV cache was used in 85% of the readings" in found.evidence
    assert "--gpu-memory-utilization" in found.advice


def test_preemptions_are_kv_cache_whatever_else() -> None:
    found = find_bottleneck(summary(server={"preemptions": 3.0}, devices=(device(gpu_use=0.99),)))
    assert found.kind is BottleneckKind.KV_CACHE
    assert found.evidence[0] == "3 preemptions"


def test_a_full_batch_with_room_in_the_cache() -> None:
    figures = {"running": 63.8, "waiting": 9.0, "waiting_share": 0.95, "kv_use": 0.3, "preemptions": 0.0}
    found = find_bottleneck(summary(server=figures, devices=(device(gpu_use=0.99),)), KnownLimits(max_num_seqs=64))
    assert found.kind is BottleneckKind.MAX_NUM_SEQS
    assert "63.8 of max_num_seqs=64 requests running on average" in found.evidence
    assert found.advice.startswith("--max-num-seqs above 64")


FULL = summary(server={"waiting": 9.0, "waiting_share": 0.9, "full_while_waiting": 0.9}, devices=(device(gpu_use=0.9),))
FULL_ON_CPU = summary(server={"preemptions": 3.0}, processes=(engine(0.9),))
BUSY_ENGINE = summary(server={}, devices=(device(gpu_use=0.6),), processes=(engine(0.99),))
BUSY_API = summary(server={}, devices=(device(gpu_use=0.4),), processes=(api_server(0.97), engine(0.6)))
BANDWIDTH = summary(server={}, devices=(device(gpu_use=0.98, memory_use=0.75),))
COMPUTE = summary(server={}, devices=(device(gpu_use=0.98, memory_use=0.2),))
ON_CPU = summary(server={}, processes=(engine(0.97, 1.9), api_server(0.2)))
WAITS = summary(server={"running": 128.0, "waiting": 9.0, "waiting_share": 0.95}, devices=(device(gpu_use=0.99),))


@pytest.mark.parametrize(
    ("seen", "given", "class_name", "said", "unsaid"),
    [
        (BUSY_ENGINE, {}, "h200", "faster cores", "eager"),
        (BUSY_ENGINE, {"enforce_eager": True}, "h200", "no --enforce-eager (CUDA graphs", "async"),
        (BUSY_ENGINE, {"enforce_eager": False}, "h200", "faster cores", "eager"),
        (BUSY_ENGINE, {"async_scheduling": False}, "h200", "no --no-async-scheduling", "eager"),
        (BUSY_ENGINE, {"tensor_parallel_size": 2}, "h200", "faster cores", "replicas"),
        (BUSY_API, {}, "h200", "--api-server-count 2 or more, --stream-interval above 1", ""),
        (
            BUSY_API,
            {"api_server_count": 4, "stream_interval": 8},
            "h200",
            "count above 4, --stream-interval above 8",
            "2 or",
        ),
        (FULL, {}, "h200", "--gpu-memory-utilization, --kv-cache-dtype fp8, quantised weights", "CPU"),
        (FULL, {"kv_cache_dtype": "fp8", "quantization": "fp8"}, "h200", "--gpu-memory-utilization; or more", "fp8"),
        (FULL, {"gpu_memory_utilization": 0.96}, "a100-80gb", "quantised weights; or more GPUs", "utilization"),
        (FULL, {"kv_cache_memory_bytes": "20G"}, "a100-80gb", "a higher --kv-cache-memory-bytes", "utilization"),
        (FULL_ON_CPU, {}, "cpu", "a higher VLLM_CPU_KVCACHE_SPACE; or a machine", "GPU"),
        (BANDWIDTH, {}, "h200", "(--quantization fp8 or awq), --kv-cache-dtype fp8; or a GPU class", ""),
        (BANDWIDTH, {}, "a100-80gb", "(--quantization awq); or a GPU class", "fp8"),
        (BANDWIDTH, {"quantization": "fp8", "kv_cache_dtype": "fp8"}, "h200", "a GPU class with more memory", "--"),
        (COMPUTE, {}, "h200", "--quantization fp8, ", "prefix"),
        (COMPUTE, {"enable_prefix_caching": False}, "a10", "no --no-enable-prefix-caching", "fp8"),
        (COMPUTE, {"max_num_batched_tokens": 2048, "quantization": "awq"}, "h200", "other than 2048", "quantization"),
        (ON_CPU, {}, "cpu", "VLLM_CPU_OMP_THREADS_BIND", "dtype"),
        (ON_CPU, {"dtype": "float32"}, "cpu", "socket, --dtype bfloat16; or a GPU", ""),
        (
            WAITS,
            {"max_num_seqs": 64, "data_parallel_size": 2},
            "h200",
            "--max-num-seqs above 64 (of each engine)",
            "128",
        ),
    ],
)
def test_advice_fits_the_command(
    seen: TelemetrySummary, given: dict[str, object], class_name: str, said: str, unsaid: str
) -> None:
    known = KnownLimits(gpu_class=find_class(class_name), cores=2, max_num_seqs=128, arguments=VllmArguments(given))
    found = find_bottleneck(seen, known)
    assert said in found.advice
    assert not unsaid or unsaid not in found.advice
    # Of a server that is no vLLM of ours no flag is known.
    other = find_bottleneck(seen, replace(known, arguments=None))
    assert other.kind is found.kind
    assert other.advice
    assert "--" not in other.advice
    assert "VLLM" not in other.advice


@pytest.mark.parametrize(
    ("version", "offered"), [("0.9.2", False), ("0.11.0", True), ("0.32.0+cpu", False), ("1.0", False), (None, False)]
)
def test_a_flag_is_offered_to_versions_that_need_it(version: str | None, offered: bool) -> None:
    found = find_bottleneck(BUSY_ENGINE, KnownLimits(version=version))
    assert ("--async-scheduling" in found.advice) == offered


@pytest.mark.parametrize("figures", [{"running": 63.8}, {"running": 30.0, "waiting": 9.0, "waiting_share": 0.95}])
def test_a_batch_that_is_not_both_full_and_waited_for_is_not(figures: dict[str, float]) -> None:
    assert (
        find_bottleneck(summary(server=figures), KnownLimits(max_num_seqs=64)).kind is not BottleneckKind.MAX_NUM_SEQS
    )


def test_a_client_that_cannot_keep_up_comes_first() -> None:
    seen = summary(server={"preemptions": 3.0}, devices=(device(gpu_use=0.99),))
    found = find_bottleneck(seen, KnownLimits(client_problems=("requests left 40 ms late",)))
    assert found.kind is BottleneckKind.CLIENT
    assert found.evidence == ("requests left 40 ms late",)


def test_requests_lost_on_the_way() -> None:
    seen = summary(server={"running": 5.0}, devices=(device(gpu_use=0.2),), processes=(engine(0.3), api_server(0.1)))
    found = find_bottleneck(seen, KnownLimits(in_flight=50.0))
    assert found.kind is BottleneckKind.NETWORK
    assert "the client had 50.0 requests open, the server 5.0 inside" in found.evidence


def test_a_server_with_room_is_not_blamed() -> None:
    seen = summary(server={"running": 5.0}, devices=(device(gpu_use=0.3),), processes=(engine(0.4), api_server(0.1)))
    found = find_bottleneck(seen, KnownLimits(in_flight=5.2, max_num_seqs=64))
    assert found.kind is BottleneckKind.NONE
    assert "GPU idle 70% of the time" in found.evidence


def test_on_a_cpu_the_engine_is_the_limit_when_its_cores_are_full() -> None:
    seen = summary(server={}, processes=(engine(0.97, 1.9), api_server(0.2), ProcessSummary(30, HELPER, 0.0, 0.0)))
    found = find_bottleneck(seen, KnownLimits(cores=2))
    assert found.kind is BottleneckKind.ENGINE_CPU
    assert "the engine (pid 20) used 1.90 cores" in found.evidence
    assert "the machine has 2" in found.evidence
    assert "VLLM_CPU_OMP_THREADS_BIND" in found.advice


def test_on_a_cpu_with_time_to_spare_nothing_is() -> None:
    assert (
        find_bottleneck(summary(server={}, processes=(engine(0.3), api_server(0.1))), KnownLimits(cores=8)).kind
        is BottleneckKind.NONE
    )


def test_without_telemetry_nothing_is_claimed() -> None:
    assert find_bottleneck(TelemetrySummary(0.0, 1.0)).kind is BottleneckKind.UNKNOWN


def test_a_slice_that_does_not_tell_how_busy_it_is_is_not_called_idle() -> None:
    found = find_bottleneck(summary(server={}, devices=(device(),), processes=(engine(1.0), api_server(0.1))))
    assert found.kind is BottleneckKind.UNKNOWN
    assert "the engine used 1.00 cores" in found.evidence


def test_an_engine_without_a_title_is_found_by_what_is_left() -> None:
    seen = summary(server={}, devices=(device(gpu_use=0.5),), processes=(engine(0.98, role=HELPER), api_server(0.5)))
    assert find_bottleneck(seen).kind is BottleneckKind.ENGINE_CPU


def test_between_a_client_and_a_server_of_one_machine_there_is_no_network() -> None:
    server = ServerSummary(readings=10, running=20.0, waiting=0.0)
    summary = TelemetrySummary(0.0, 10.0, server=server)
    assert find_bottleneck(summary, KnownLimits(in_flight=64.0)).kind is BottleneckKind.NETWORK
    assert find_bottleneck(summary, KnownLimits(in_flight=64.0, loopback=True)).kind is BottleneckKind.API_SERVER_CPU
