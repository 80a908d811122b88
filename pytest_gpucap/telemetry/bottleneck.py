"""The bottleneck in one window of telemetry, with its evidence and what to try.

The rules have an order, because an earlier cause makes the signs of the later ones appear too: a client that cannot
send leaves the server idle, requests that wait for KV cache keep the batch small, and a GPU without work is no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind, ProcessSummary, TelemetrySummary
from pytest_gpucap.telemetry.probes import API_SERVER, ENGINE, HELPER, WORKER
from pytest_gpucap.telemetry.summary import KV_FULL
from pytest_gpucap.vllm_arguments import VllmArguments


@dataclass(frozen=True, slots=True)
class KnownLimits:
    """What is known of the measurement besides telemetry; None where it is not.

    Attributes:
        max_num_seqs: of the server.
        in_flight: requests that the client had open, mean over the window.
        client_problems: what the load generator found wrong with itself.
        gpu_class: for the peak rates.
        parameters: of the model; with them, the share of the GPU's peak rate is worked out.
        weight_bytes: of the model on one device, as quantised; with them, the least share of the bandwidth.
        cores: that the machine has.
        loopback: the client and the server share the machine, so that no network is between them.
        gateway: where requests are sent, if a gateway there passes them on to the server; empty: they go to the server.
        arguments: of a vLLM server that we started, so that no advice contradicts them; None for any other server, of
            whose flags nothing is known.
        version: of that vLLM, such as ``0.32.0``.
    """

    max_num_seqs: int | None = None
    in_flight: float | None = None
    client_problems: Sequence[str] = ()
    gpu_class: GpuClass | None = None
    parameters: float | None = None
    weight_bytes: float | None = None
    cores: int | None = None
    loopback: bool = False
    gateway: str = ""
    arguments: VllmArguments | None = field(default_factory=VllmArguments)
    version: str | None = None


BUSY_THREAD = 0.9
"""A thread that runs 90% of the time has no room left; the rest is the scheduler's jitter."""
BUSY_GPU = 0.9
BUSY_SHARE = 0.4
"""Above this share of its peak rate, compute counts as the limit: kernels bound by it reach half to three quarters.
The same limit holds for NVML's memory use, the share of time in which memory was busy at all."""
BUSY_CORES = 0.85
WAITING = 0.5
FULL_BATCH = 0.95
LOST_SHARE = 0.2
GATEWAY_ADVICE = (
    "a higher limit or more workers of the gateway; or measure the engine's own URL, to see what it sustains"
)
MOST_UTILIZATION = 0.95
"""Of ``--gpu-memory-utilization``: above it CUDA has no room for its own."""


def find_bottleneck(summary: TelemetrySummary, known: KnownLimits | None = None) -> Bottleneck:
    """The bottleneck in a window, with the figures that say so."""
    known = known or KnownLimits()
    for rule in (_client, _kv_cache, _max_num_seqs, _processor, _gpu, _cpu_class, _network):
        found = rule(summary, known)
        if found is not None:
            return found
    return _nothing(summary)


def _client(_: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    if not known.client_problems:
        return None
    advice = "give the load generator cores of its own (--gpucap-workers), or a machine of its own"
    return Bottleneck(BottleneckKind.CLIENT, tuple(known.client_problems), advice)


def _kv_cache(summary: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    server = summary.server
    evidence = []
    if server.preemptions:
        evidence.append(f"{server.preemptions:.0f} preemptions")
    if server.full_while_waiting is not None and server.full_while_waiting > WAITING:
        evidence.append(
            f"requests waited while over {KV_FULL:.0%} of the KV cache was used in "
            f"{server.full_while_waiting:.0%} of the readings"
        )
    if not evidence:
        return None
    if server.kv_use is not None and server.kv_use_max is not None:
        evidence.append(f"KV cache use {server.kv_use:.0%} on average, {server.kv_use_max:.0%} at most")
    if server.waiting is not None:
        evidence.append(f"{server.waiting:.1f} requests waiting on average")
    return Bottleneck(BottleneckKind.KV_CACHE, tuple(evidence), _kv_cache_advice(known, on_gpu=bool(summary.devices)))


def _max_num_seqs(summary: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    server, limit = summary.server, known.max_num_seqs
    if limit is None or server.running is None or server.waiting_share is None:
        return None
    if server.running < FULL_BATCH * limit or server.waiting_share < WAITING:
        return None
    evidence = [
        f"{server.running:.1f} of max_num_seqs={limit} requests running on average",
        f"requests waiting in {server.waiting_share:.0%} of the readings",
    ]
    if server.kv_use is not None:
        evidence.append(f"only {server.kv_use:.0%} of the KV cache used")
    more = (
        f"more than {limit} requests at once"
        if known.arguments is None
        else _max_num_seqs_above(limit, known.arguments)
    )
    return Bottleneck(BottleneckKind.MAX_NUM_SEQS, tuple(evidence), f"{more}, as far as latency allows")


def _processor(summary: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    """One thread at its limit while the GPU has time to spare. A busy GPU also keeps that thread spinning."""
    use = _gpu_use(summary)
    if use is None or use >= BUSY_GPU:
        return None
    idle = f"GPU idle {1 - use:.0%} of the time"
    for candidates, kind, advice in (
        (_engines(summary), BottleneckKind.ENGINE_CPU, _engine_advice),
        (_api_servers(summary), BottleneckKind.API_SERVER_CPU, _api_advice),
    ):
        busiest = _busiest_thread(candidates)
        if busiest is not None and busiest.main_thread is not None and busiest.main_thread >= BUSY_THREAD:
            thread = (
                f"the {busiest.role}'s main thread (pid {busiest.pid}) on a core {busiest.main_thread:.0%} of the time"
            )
            return Bottleneck(kind, (thread, idle, *_load(summary)), advice(known))
    return None


def _gpu(summary: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    use = _gpu_use(summary)
    if use is None or use < BUSY_GPU:
        return None
    evidence = [f"GPU busy {use:.0%} of the time"]
    traffic = _mean(device.memory_use for device in summary.devices)
    if traffic is not None:
        evidence.append(f"its memory {traffic:.0%} of the time")
    compute = _compute_share(summary, known)
    if compute is not None:
        evidence.append(f"{compute:.0%} of the peak rate for the tokens processed (2 operations a parameter)")
    bandwidth = _bandwidth_share(summary, known)
    if bandwidth is not None:
        evidence.append(f"at least {bandwidth:.0%} of the peak bandwidth (all weights, once a step)")
    power = [d.power_w / d.power_limit_w for d in summary.devices if d.power_w and d.power_limit_w]
    if power:
        evidence.append(f"power at {max(power):.0%} of its limit")
    evidence += [
        f"{reason} in {share:.0%} of the readings" for reason, share in summary.slowdowns.items() if "cap" in reason
    ]
    evidence += _load(summary)
    if _bound_by_bandwidth(traffic, compute, bandwidth):
        return Bottleneck(BottleneckKind.GPU_BANDWIDTH, tuple(evidence), _bandwidth_advice(known))
    return Bottleneck(BottleneckKind.GPU_COMPUTE, tuple(evidence), _compute_advice(known))


def _cpu_class(summary: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    """The CPU as the limit, where the engine computes on it."""
    if summary.devices or not summary.processes:
        return None
    engines = _engines(summary)
    api = _busiest_thread(_api_servers(summary))
    if not engines:
        return None
    engine = max(engines, key=lambda process: process.cores)
    evidence = [f"the {engine.role} (pid {engine.pid}) used {engine.cores:.2f} cores"]
    if known.cores:
        evidence.append(f"the machine has {known.cores}")
    if api is not None:
        evidence.append(f"the API server {api.cores:.2f}")
    evidence += _load(summary)
    thread = engine.main_thread if engine.main_thread is not None else engine.cores
    if thread >= BUSY_THREAD or (known.cores and engine.cores >= BUSY_CORES * known.cores):
        return Bottleneck(BottleneckKind.ENGINE_CPU, tuple(evidence), _cpu_advice(known))
    if api is not None and (api.main_thread or 0.0) >= BUSY_THREAD:
        return Bottleneck(BottleneckKind.API_SERVER_CPU, tuple(evidence), _api_advice(known))
    return None


def _network(summary: TelemetrySummary, known: KnownLimits) -> Bottleneck | None:
    """The client has more open than the server knows of, and nothing in the server is at its limit."""
    server = summary.server
    if not known.in_flight or server.running is None or server.waiting is None:
        return None
    inside = server.running + server.waiting
    if inside >= known.in_flight * (1 - LOST_SHARE) or known.in_flight - inside < 1:
        return None
    evidence = [
        f"the client had {known.in_flight:.1f} requests open, the server {inside:.1f} inside",
        *(f"the {process.role} used {process.cores:.2f} cores" for process in summary.processes[:2]),
    ]
    if (use := _gpu_use(summary)) is not None:
        evidence.append(f"GPU idle {1 - use:.0%} of the time")
    if known.gateway:
        return Bottleneck(
            BottleneckKind.GATEWAY,
            (*evidence, f"the rest was in the gateway at {known.gateway} or on the way"),
            GATEWAY_ADVICE,
        )
    if known.loopback:
        # On one machine, only the API server is between the client and the engine.
        return Bottleneck(BottleneckKind.API_SERVER_CPU, tuple(evidence), _api_advice(known))
    advice = "measure from the server's own machine, without a proxy; look at the latency of the connection"
    return Bottleneck(BottleneckKind.NETWORK, tuple(evidence), advice)


def _nothing(summary: TelemetrySummary) -> Bottleneck:
    if not summary.server.readings and not summary.processes and not any(d.readings for d in summary.devices):
        return Bottleneck(BottleneckKind.UNKNOWN, ("no telemetry in the window",), "")
    evidence = list(_load(summary))
    evidence += [f"the {process.role} used {process.cores:.2f} cores" for process in summary.processes[:2]]
    use = _gpu_use(summary)
    if summary.devices and use is None:
        return Bottleneck(
            BottleneckKind.UNKNOWN, ("the GPU does not tell how busy it is, as MIG slices do not", *evidence), ""
        )
    if use is not None:
        evidence.append(f"GPU idle {1 - use:.0%} of the time")
    # If capacity is missing all the same, something that is not sampled took it: a container's quota, other processes.
    advice = "nothing was seen at its limit: the server takes more than was offered here, or others had its cores"
    return Bottleneck(BottleneckKind.NONE, tuple(evidence), advice)


def _engine_advice(known: KnownLimits) -> str:
    given, advice = known.arguments, []
    if given is not None and given.get("enforce_eager"):
        advice.append("no --enforce-eager (CUDA graphs spare the CPU)")
    if given is not None and given.get("async_scheduling") is False:
        advice.append("no --no-async-scheduling")
    elif given is not None and given.get("async_scheduling") is None and _version(known) in _ASYNC_BY_CHOICE:
        advice.append("--async-scheduling")
    advice.append("faster cores")
    one_gpu = given is None or given.gpus_per_replica == 1
    return ", ".join(advice) + ("; or several replicas on one GPU" if one_gpu else "")


def _api_advice(known: KnownLimits) -> str:
    given = known.arguments
    if given is None:
        return "more API server processes, fewer and larger chunks"
    count, interval = given.get("api_server_count"), given.get("stream_interval")
    servers = "--api-server-count 2 or more" if count is None else f"--api-server-count above {count}"
    chunks = f"--stream-interval above {1 if interval is None else interval} (fewer, larger chunks)"
    return f"{servers}, {chunks}"


def _kv_cache_advice(known: KnownLimits, *, on_gpu: bool) -> str:
    given = known.arguments
    if given is None:
        return "a larger KV cache or smaller entries; or more GPUs per replica"
    advice = []
    if given.get("kv_cache_memory_bytes") is not None:
        advice.append("a higher --kv-cache-memory-bytes")
    elif not on_gpu:
        advice.append("a higher VLLM_CPU_KVCACHE_SPACE")
    elif (given.gpu_memory_utilization or 0.0) < MOST_UTILIZATION:
        advice.append("a higher --gpu-memory-utilization")
    if on_gpu:
        advice += [*_smaller_entries(known), *(["quantised weights"] if given.quantization is None else [])]
    found = ", ".join(advice)
    more = "more GPUs per replica (--tensor-parallel-size)" if on_gpu else "a machine with more memory"
    return f"{found}; or {more}" if found else more


def _bandwidth_advice(known: KnownLimits) -> str:
    rest = "a GPU class with more memory bandwidth; a larger batch costs latency, not bandwidth"
    if known.arguments is None:
        return f"fewer bytes a token, such as quantised weights; or {rest}"
    advice = list(_smaller_entries(known))
    if known.arguments.quantization is None:
        methods = "fp8 or awq" if _has_fp8(known) else "awq"
        advice.insert(0, f"quantised weights (--quantization {methods})")
    return f"fewer bytes a token: {', '.join(advice)}; or {rest}" if advice else rest


def _compute_advice(known: KnownLimits) -> str:
    given = known.arguments
    if given is None:
        return "fewer operations a token; or more GPUs per replica"
    advice = []
    if given.quantization is None and _has_fp8(known):
        advice.append("--quantization fp8" + ("" if known.gpu_class else " where the GPU has FP8"))
    if given.get("enable_prefix_caching") is False:
        advice.append("no --no-enable-prefix-caching, where prompts share a beginning")
    batched = given.get("max_num_batched_tokens")
    advice.append("a --max-num-batched-tokens " + ("of its own" if batched is None else f"other than {batched}"))
    return f"{', '.join(advice)}; or more GPUs per replica (--tensor-parallel-size)"


def _cpu_advice(known: KnownLimits) -> str:
    if known.arguments is None:
        return "faster or more cores; or a GPU"
    dtype = [", --dtype bfloat16"] if known.arguments.dtype in {"float32", "float"} else []
    return f"VLLM_CPU_OMP_THREADS_BIND to all physical cores of one socket{''.join(dtype)}; or a GPU"


def _max_num_seqs_above(limit: int, given: VllmArguments) -> str:
    each = limit // given.data_parallel_size
    return f"--max-num-seqs above {each}" + (" (of each engine)" if each != limit else "")


def _smaller_entries(known: KnownLimits) -> list[str]:
    given = None if known.arguments is None else known.arguments.kv_cache_dtype
    return ["--kv-cache-dtype fp8"] if given in {None, "auto"} and _has_fp8(known) else []


def _has_fp8(known: KnownLimits) -> bool:
    """Whether the GPU computes in FP8; of a class without figures that is possible."""
    known_rates = known.gpu_class is not None and known.gpu_class.fp16_flops is not None
    return not known_rates or (known.gpu_class is not None and known.gpu_class.fp8_flops is not None)


_ASYNC_BY_CHOICE = range(10, 14)
"""Minor versions 0.x of vLLM with ``--async-scheduling`` and without it by default."""


def _version(known: KnownLimits) -> int | None:
    """X of vLLM 0.x; None for any other version."""
    match = re.match(r"0\.(\d+)(?:\D|$)", known.version or "")
    return None if match is None else int(match[1])


def _bound_by_bandwidth(traffic: float | None, compute: float | None, bandwidth: float | None) -> bool:
    """Whether memory bandwidth is the limit, as in decode steps, and not compute, as in prefill."""
    if compute is not None and bandwidth is not None:
        return bandwidth >= compute
    if compute is not None:
        return compute < BUSY_SHARE
    return traffic is not None and traffic >= BUSY_SHARE


def _compute_share(summary: TelemetrySummary, known: KnownLimits) -> float | None:
    """Share of the peak bf16 rate that the tokens took: 2 operations per parameter and token, without attention."""
    server, gpu_class = summary.server, known.gpu_class
    peak = (gpu_class.bf16_flops or gpu_class.fp16_flops) if gpu_class else None
    if not peak or not known.parameters or server.prompt_tokens_per_s is None or server.output_tokens_per_s is None:
        return None
    computed = server.prompt_tokens_per_s * (1 - (server.prefix_hit_rate or 0.0)) + server.output_tokens_per_s
    return 2 * known.parameters * computed / (peak * max(1, len(summary.devices)))


def _bandwidth_share(summary: TelemetrySummary, known: KnownLimits) -> float | None:
    """Lower bound on the share of the bandwidth: a step reads all weights once, for one token per running request."""
    server, gpu_class = summary.server, known.gpu_class
    peak = gpu_class.bandwidth_bytes_per_s if gpu_class else None
    if not peak or not known.weight_bytes or not server.running or server.output_tokens_per_s is None:
        return None
    return known.weight_bytes * server.output_tokens_per_s / server.running / peak


def _gpu_use(summary: TelemetrySummary) -> float | None:
    return _mean(device.gpu_use for device in summary.devices)


def _engines(summary: TelemetrySummary) -> list[ProcessSummary]:
    """The engine processes. Without setproctitle no process has an engine's title; then all that have no title."""
    titled = [process for process in summary.processes if process.role in {ENGINE, WORKER}]
    return titled or [process for process in summary.processes if process.role == HELPER]


def _api_servers(summary: TelemetrySummary) -> list[ProcessSummary]:
    return [process for process in summary.processes if process.role == API_SERVER]


def _busiest_thread(processes: Sequence[ProcessSummary]) -> ProcessSummary | None:
    return max(processes, key=lambda process: process.main_thread or 0.0, default=None)


def _load(summary: TelemetrySummary) -> list[str]:
    server = summary.server
    if server.running is None or server.waiting is None:
        return []
    return [f"{server.running:.1f} requests running and {server.waiting:.1f} waiting on average"]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
