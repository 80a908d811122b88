"""Results and result files as a session makes them, with the figures that a test wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import msgspec

from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.build import Context, check_result, measure_result
from pytest_gpucap.results.environment import DeviceState, Environment
from pytest_gpucap.results.measured import Interval, Latency, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.results.result_file import session_file
from pytest_gpucap.results.windows import Phase, WindowId

REQUIREMENT = Requirement(
    "chat",
    qps=Fraction(100),
    gpus=8,
    workload=Workload(Length.fixed(256), Length.fixed(512)),
    slo=Slo((LatencyLimit.parse("e2e_p95", "4s"), LatencyLimit.parse("ttft_p95", "500ms"))),
)
ENVIRONMENT = Environment(
    gpu="1x NVIDIA H200, 140 GiB, driver 580.1, CUDA 13.0",
    gpu_class="h200",
    driver="580.1",
    cuda="13.0",
    devices=(DeviceState(name="NVIDIA H200", power_limit_w=700.0, max_sm_clock_mhz=1980),),
    server="vLLM 0.26.0",
    model="Qwen/Qwen2-1.5B",
    server_args={"max_model_len": 4096},
    quantization=None,
    dtype="bfloat16",
    command="/home/ann/venv/bin/python3 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen2-1.5B",
    log="/home/ann/project/.gpucap/logs/x.log",
    host="Intel(R) Xeon(R) Processor, 16 cores, Linux 6.18",
    plugin="pytest-gpucap 0.1.0, Python 3.12.3",
)
STARTED = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)
OWN_SD = 0.012


def window(which: WindowId, *, ttft_s: float, e2e_s: float, rate_rps: float | None = None, held: int = 0) -> Sample:
    """A measuring window: open at a rate, or closed with so many held."""
    return Sample(
        kind="closed" if rate_rps is None else "open",
        window=which,
        start_s=0.0,
        end_s=4.0,
        offered_rps=rate_rps,
        concurrency=held,
        requests=80,
        completed_rps=20.0,
        output_tokens_per_s=10240.0,
        in_flight_mean=60.0,
        in_flight_end=60,
        latencies={"ttft": Latency(80, ttft_s, ttft_s, ttft_s, ttft_s, ttft_s), "e2e": Latency(80, *[e2e_s] * 5)},
    )


def windows(slower: float = 1.0) -> tuple[Sample, ...]:
    """Three windows with 70 in flight, three at 16.25 req/s; latencies times `slower`."""
    wobble = (0.99, 1.0, 1.01)
    hold, design_rate = WindowId(Phase.HOLD, 1), WindowId(Phase.DESIGN_RATE, 1)
    return (
        *(window(hold.part(n, 3), ttft_s=0.09, e2e_s=3.0 * slower * w, held=70) for n, w in enumerate(wobble, 1)),
        *(
            window(
                design_rate.part(n, 3),
                ttft_s=0.05 * slower * w,
                e2e_s=2.5 * slower * w,
                rate_rps=16.25,
            )
            for n, w in enumerate(wobble, 1)
        ),
    )


def interval(rate: float, own_sd: float = OWN_SD) -> Interval:
    return Interval(rate, rate * math.exp(-1.96 * own_sd), rate * math.exp(1.96 * own_sd))


def result(
    rate: float | None = 25.0,
    *,
    own_sd: float = OWN_SD,
    test: str = "tests/test_chat.py::test_chat",
    kind: ResultKind = ResultKind.CHECK,
    requirement: Requirement = REQUIREMENT,
    simulated: bool = False,
    samples: Sequence[Sample] | None = None,
    problems: tuple[str, ...] = (),
    seed: int = 0,
    **environment: Any,
) -> Result:
    """One result; keywords beyond the named ones change its environment."""
    rated = None if rate is None else interval(rate, own_sd)
    measurement = Measurement(
        requirement,
        tuple(windows() if samples is None else samples),
        rated,
        binding="e2e_p95",
        spent_s={"hold": 30.0, "open loop": 20.0},
        problems=tuple(Problem(ProblemSource.GPU, ProblemKind.SHARED, text) for text in problems),
        simulated=simulated,
        seed=seed,
    )
    context = Context(test, msgspec.structs.replace(ENVIRONMENT, **environment), startup_s=50.0)
    if kind is ResultKind.MEASURE:
        return measure_result(measurement, context)
    outcome = Outcome.INVALID if problems else Outcome.PASS
    slack = None if rated is None else Interval(0.5, 0.4, 0.6)
    return check_result(Verdict(outcome, measurement, 16.25, 6, (6, 6), slack, "it holds"), context)


def named(name: str) -> Requirement:
    return replace(REQUIREMENT, name=name)


def session(*results: Result, started: datetime = STARTED, arguments: Sequence[str] = ()) -> ResultFile:
    """What a session writes."""
    return session_file(results, started=started, arguments=arguments)
