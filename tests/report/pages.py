"""Results to make pages of: simulated measurements, telemetry laid over them, hostile strings, long histories."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from typing import Any

import msgspec
import pytest

from pytest_gpucap.measure import constants, procedure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.build import Context, check_result, sweep_result
from pytest_gpucap.results.comparison import ComparedBaseline
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import PhysicalLimit, Result, ResultFile, ResultKind
from pytest_gpucap.results.result_file import session_file
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from pytest_gpucap.results.trend import AlarmState, LevelChange, Segment, Trend, TrendPoint
from pytest_gpucap.session.live_line import LiveLine
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.telemetry.over_time import binned_series
from tests.results import made

HOSTILE = '</script><img src=x onerror="window.pwned=1"><b>&lt;{{7*7}}${8*8}\u2028\u202e'
"""Ends a script, starts an element, and means something to a template, to JavaScript and to bidirectional text."""

SLO = Slo((LatencyLimit.parse("e2e_p95", "3s"), LatencyLimit.parse("ttft_p95", "500ms")))
WORKLOAD = Workload(Length.fixed(128), Length.fixed(32))
ENVIRONMENT = Environment(gpu="SIMULATED (fast)", server="simulator", model="fast", gpu_class="sim:fast")
LIMIT = PhysicalLimit(
    bound="bandwidth",
    rate_rps=900.0,
    ttft_s=0.01,
    tpot_s=0.002,
    output_tokens_per_s=28800.0,
    batch=64.0,
    share=0.57,
    text="513 req/s, 57% of the bandwidth limit at 64 in flight (900 req/s)",
    formula="weights and KV cache / bandwidth",
)


@cache
def simulated() -> ResultFile:
    """A budget that holds, one that does not, and a sweep, all measured on the simulator."""
    engine = profile.load("fast").engine
    settings = Settings(max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)
    quiet = LiveLine("quiet", None, interactive=False)

    def wanted(name: str, qps: int, gpus: int) -> Requirement:
        return Requirement(name, qps=Fraction(qps), gpus=gpus, workload=WORKLOAD, slo=SLO)

    holds = procedure.check(SimRunner(engine), wanted("chat", 300, 1), settings, quiet)
    fails = procedure.check(SimRunner(engine), wanted("launch day", 2000, 2), settings, quiet)
    with pytest.MonkeyPatch.context() as patch:
        # Its rate need not be exact: a cycle takes two seconds, and each process that makes pages waits for it.
        patch.setattr(constants, "MEASURE_CYCLES", constants.LEAST_MEASURE_CYCLES)
        swept = procedure.sweep(SimRunner(engine), wanted("curve", 1, 1), settings, quiet)
    results = [
        check_result(holds, Context("tests/test_chat.py::test_chat", ENVIRONMENT)),
        check_result(fails, Context("tests/test_chat.py::test_launch_day", ENVIRONMENT)),
        sweep_result(swept, Context("tests/test_chat.py::test_curve", ENVIRONMENT)),
    ]
    return session_file(results, started=datetime(2026, 11, 22, 21, 30, tzinfo=UTC), arguments=["tests", "-v"])


def changed(content: ResultFile, **fields: Any) -> ResultFile:
    """The file with fields of every result changed."""
    results = tuple(msgspec.structs.replace(result, **fields) for result in content.results)
    return msgspec.structs.replace(content, results=results)


def watched() -> ResultFile:
    """The same, with readings of two GPUs and a server in the form in which telemetry takes them; figures made up."""
    content = simulated()
    return msgspec.structs.replace(content, results=tuple(map(_watched, content.results)))


def _watched(result: Result) -> Result:
    start_s, end_s = result.samples[0].start_s, result.samples[-1].end_s
    return msgspec.structs.replace(result, limit=LIMIT, series=binned_series(readings(start_s, end_s), start_s, end_s))


def readings(start_s: float, end_s: float) -> dict[str, Any]:
    """Two devices at 10 Hz, a server at 2 Hz, one process."""
    fast = [start_s + i / 10 for i in range(int((end_s - start_s) * 10) + 1)]
    slow = [start_s + i / 2 for i in range(int((end_s - start_s) * 2) + 1)]

    def device(base_w: float) -> dict[str, list[float | None]]:
        return {
            "time_s": list(fast),
            "gpu_use": [0.8 + 0.1 * math.sin(t) for t in fast],
            "sm_clock_mhz": [1980.0 for _ in fast],
            "power_w": [base_w + 50 * math.sin(t / 3) for t in fast],
            "temperature_c": [None for _ in fast],
        }

    return {
        "devices": {"GPU-a": device(400.0), "GPU-b": device(300.0)},
        "server": {
            "time_s": list(slow),
            "running": [20.0 for _ in slow],
            "waiting": [max(0.0, 5 * math.sin(t)) for t in slow],
            "kv_use": [0.4 for _ in slow],
            "output_tokens": [100.0 * (t - start_s) for t in slow],
        },
        "processes": {"7": {"role": "engine", "time_s": list(slow), "cpu_s": [0.9 * (t - start_s) for t in slow]}},
    }


def hostile() -> ResultFile:
    """`watched`, with every string that comes from outside made hostile."""
    content = watched()
    results = tuple(_hostile(result, number) for number, result in enumerate(content.results))
    return msgspec.structs.replace(content, arguments=(HOSTILE,), results=results)


def _hostile(result: Result, number: int) -> Result:
    def hostile_window(sample: Sample) -> Sample:
        window = msgspec.structs.replace(sample.window, server=HOSTILE)
        return msgspec.structs.replace(sample, window=window, errors={HOSTILE: 1})

    comparison = made.compared(result).comparison
    assert comparison is not None
    return msgspec.structs.replace(
        result,
        comparison=msgspec.structs.replace(comparison, baseline=ComparedBaseline(HOSTILE), reason=HOSTILE),
        name=f"{HOSTILE}{number}",
        test=HOSTILE,
        reason=HOSTILE,
        problems=(Problem(ProblemSource.SERVER, ProblemKind.OTHER, HOSTILE),),
        environment=Environment(gpu=HOSTILE, model=HOSTILE, gpu_remarks=(HOSTILE,), command=HOSTILE),
        workload=msgspec.structs.replace(result.workload, trace=HOSTILE, sampling={HOSTILE: 1}),
        bottleneck=Bottleneck(BottleneckKind.CLIENT, (HOSTILE,), HOSTILE),
        spent_s={HOSTILE: 3.0, "start-up": 5.0},
        start_phases_s={HOSTILE: 2.0},
        samples=tuple(map(hostile_window, result.samples)),
        points=tuple(map(hostile_window, result.points)),
    )


def trend(runs: int, name: str = "chat", test: str = "tests/test_chat.py::test_chat") -> Trend:
    """The trend of nightly runs with one drop, two thirds in."""
    noise = random.Random(7)
    drop = runs * 2 // 3
    rates = [(500 if at < drop else 440) * math.exp(noise.gauss(0, 0.017)) for at in range(runs)]
    nights = [datetime(2024, 1, 1, 3, 17, tzinfo=UTC) + timedelta(days=at) for at in range(runs)]
    change = LevelChange(
        index=drop,
        earliest=drop,
        latest=drop,
        ratio=Interval(0.88, 0.87, 0.89),
        confirmed=None,
        changed=("server vLLM 0.26.0 -> vLLM 0.27.0",),
        when=nights[drop],
        file=f"night-{drop}.json",
    )
    return Trend(
        test=test,
        name=name,
        kind=ResultKind.CHECK,
        gpu_class="sim:fast",
        model="fast",
        workload="128 in, 32 out",
        simulated=True,
        run_sd=0.017,
        state=AlarmState.QUIET,
        suspected_since=None,
        standing=None,
        points=tuple(
            TrendPoint(
                when=night,
                file=f"night-{at}.json",
                night=at,
                rate=Interval(rate, rate * 0.96, rate * 1.04),
                judged=True,
                versions={"server": "vLLM 0.26.0" if at < drop else "vLLM 0.27.0"},
            )
            for at, (night, rate) in enumerate(zip(nights, rates, strict=True))
        ),
        segments=(
            Segment(0, drop, Interval(500.0, 499.0, 501.0)),
            Segment(drop, runs, Interval(440.0, 439.0, 441.0)),
        ),
        changes=(change,),
    )
