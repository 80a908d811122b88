"""Results for tests: one of every outcome, as the plugin makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum
from fractions import Fraction
from typing import Any, TypeVar

import msgspec

from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.build import Context, check_result, measure_result, sweep_result
from pytest_gpucap.results.comparison import ComparedBaseline, Comparison, LatencyComparison, RegressionDecision
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import Curve, Interval, Latency, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.results.result_file import session_file
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from pytest_gpucap.results.windows import Phase, WindowId

T = TypeVar("T")

STARTED = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
REQUIREMENT = Requirement(
    "chat",
    qps=Fraction(100),
    gpus=2,
    workload=Workload(Length.fixed(256), Length.fixed(512)),
    slo=Slo((LatencyLimit.parse("e2e_p95", "20s"), LatencyLimit.parse("ttft_p95", "500ms"))),
)
CONTEXT = Context(
    "tests/test_chat.py::TestChat::test_it[long]",
    Environment(gpu="NVIDIA H200", server="vLLM 0.26.0", model="org/model", gpu_class="h200", command="vllm serve"),
    bottleneck=Bottleneck(BottleneckKind.KV_CACHE, ("KV cache 99% full",), "--kv-cache-dtype fp8"),
    startup_s=63.0,
    line=12,
)
SHARED = Problem(ProblemSource.HOST, ProblemKind.SHARED, "GPU 0 is shared with pid 42")


def sample(window: WindowId, rate_rps: float, e2e_s: float, *, kind: str = "open", start_s: float = 0.0) -> Sample:
    """A window of 30 s."""
    return Sample(
        kind=kind,
        window=window,
        start_s=start_s,
        end_s=start_s + 30.0,
        offered_rps=rate_rps,
        concurrency=0,
        requests=int(30 * rate_rps),
        completed_rps=rate_rps,
        output_tokens_per_s=512 * rate_rps,
        in_flight_mean=rate_rps * e2e_s,
        in_flight_end=3,
        latencies={
            "ttft": Latency(900, 0.2, 0.15, 0.4, 0.48, 0.6),
            "e2e": Latency(900, e2e_s, e2e_s, e2e_s, e2e_s, e2e_s),
        },
    )


SAMPLES = tuple(
    sample(WindowId(Phase.POINT, rate_rps=rate_rps).part(third, 3), rate_rps, e2e_s)
    for rate_rps, e2e_s in ((10.0, 4.0), (30.0, 6.0), (50.0, 15.0), (60.0, 40.0))
    for third in (1, 2, 3)
)
MEASUREMENT = Measurement(
    REQUIREMENT, SAMPLES, Interval(52.1, 50.9, 53.4), binding="e2e_p95", spent_s={"hold": 20.0, "open loop": 30.0}
)
FAILED = Verdict(Outcome.FAIL, MEASUREMENT, 65.0, 3, (3, 3), Interval(-0.198, -0.217, -0.178), "capacity is below")


def check(outcome: Outcome = Outcome.FAIL, name: str = "chat") -> Result:
    """The result of a check that ended so."""
    measurement = replace(MEASUREMENT, requirement=replace(REQUIREMENT, name=name))
    if outcome is Outcome.INVALID:
        measurement = replace(measurement, sustainable_rate=None, problems=(SHARED,))
        return check_result(Verdict(outcome, measurement, 65.0, None, None, None, SHARED.text), CONTEXT)
    numbers: dict[str, Any] = {}
    if outcome is Outcome.PASS:
        measurement = replace(measurement, sustainable_rate=Interval(80.0, 75.0, 85.0))
        numbers = {"gpus_required": 2, "gpus_interval": (2, 2), "slack": Interval(0.231, 0.154, 0.308)}
    if outcome is Outcome.INCONCLUSIVE:
        numbers = {"gpus_interval": (2, 3)}
    return check_result(replace(FAILED, outcome=outcome, measurement=measurement, **numbers), CONTEXT)


def measured(name: str = "chat") -> Result:
    """The result of a measurement without a budget."""
    requirement = replace(REQUIREMENT, name=name)
    return measure_result(replace(MEASUREMENT, requirement=requirement, budgeted=False), CONTEXT)


def swept() -> Result:
    """The result of a sweep."""
    return sweep_result(Curve(MEASUREMENT, SAMPLES, 50.0, Interval(4.0, 3.5, 4.5)), CONTEXT)


def compared(result: Result, decision: RegressionDecision = RegressionDecision.REGRESSED) -> Result:
    """The result with a comparison to a baseline."""
    comparable = decision is not RegressionDecision.NOT_COMPARABLE
    comparison = Comparison(
        baseline=ComparedBaseline("main", "b.json", "2026-11-21T03:00:00+00:00", "0.1"),
        decision=decision,
        ratio=Interval(0.87, 0.85, 0.89) if comparable else None,
        base_rate=Interval(59.9, 58.0, 62.0) if comparable else None,
        head_rate=result.sustainable_rate if comparable else None,
        max_regression=0.05,
        differs=() if comparable else ("GPU: NVIDIA A10G, not NVIDIA H200",),
        changed=("server: vLLM 0.25.0 -> vLLM 0.26.0",),
        reason="one replica sustains 13% less",
        latencies=(
            LatencyComparison(
                "ttft_p95", "50 req/s", 0.41, 0.48, Interval(1.17, 1.1, 1.25), RegressionDecision.REGRESSED
            ),
        )
        if comparable
        else (),
    )
    return msgspec.structs.replace(result, comparison=comparison)


def session(*results: Result) -> ResultFile:
    """What a session writes."""
    return session_file(results, started=STARTED, arguments=["tests"])


def with_texts(value: T, change: Callable[[str], str], keep: frozenset[str] = frozenset()) -> T:
    """A result, or a part of one, with every text changed, but for those of the fields in `keep`."""
    return _changed(value, change, keep)  # type: ignore[no-any-return]


def _changed(value: Any, change: Callable[[str], str], keep: frozenset[str]) -> Any:
    match value:
        case Enum():
            return value
        case str():
            return change(value)
        case msgspec.Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__ if name not in keep}
            return msgspec.structs.replace(
                value, **{name: _changed(each, change, keep) for name, each in fields.items()}
            )
        case dict():
            return {key: _changed(each, change, keep) for key, each in value.items()}
        case tuple() | list():
            return type(value)(_changed(each, change, keep) for each in value)
    return value
