"""Records for the tests of reports: one of every outcome, as the plugin makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval, Latency, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.record import Context, Record, curve_record, measurement_record, verdict_record
from pytest_gpucap.results.windows import Phase, WindowId

SHARED = Problem(ProblemSource.GPU, ProblemKind.SHARED, "GPU 0 is shared with pid 42")
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
    {"gpu": "NVIDIA H200", "server": "vLLM 0.26.0", "model": "org/model", "gpu_class": "h200", "command": "vllm serve"},
    bottleneck={"kind": "KV cache", "evidence": ["KV cache 99% full"], "advice": "--kv-cache-dtype fp8"},
    startup_s=63.0,
    line=12,
)


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


def check(outcome: Outcome = Outcome.FAIL, name: str = "chat") -> Record:
    """The record of a check that ended so."""
    measurement = replace(MEASUREMENT, requirement=replace(REQUIREMENT, name=name))
    if outcome is Outcome.INVALID:
        measurement = replace(measurement, sustainable_rate=None, problems=(SHARED,))
        return verdict_record(
            Verdict(outcome, measurement, 65.0, None, None, None, "GPU 0 is shared with pid 42"), CONTEXT
        )
    numbers: dict[str, Any] = {}
    if outcome is Outcome.PASS:
        measurement = replace(measurement, sustainable_rate=Interval(80.0, 75.0, 85.0))
        numbers = {"gpus_required": 2, "gpus_interval": (2, 2), "slack": Interval(0.231, 0.154, 0.308)}
    if outcome is Outcome.INCONCLUSIVE:
        numbers = {"gpus_interval": (2, 3)}
    return verdict_record(replace(FAILED, outcome=outcome, measurement=measurement, **numbers), CONTEXT)


def measured(name: str = "chat") -> Record:
    """The record of a measurement without a budget."""
    requirement = replace(REQUIREMENT, name=name)
    return measurement_record(replace(MEASUREMENT, requirement=requirement, budgeted=False), CONTEXT)


def swept() -> Record:
    """The record of a sweep."""
    from pytest_gpucap.results.measured import Curve

    return curve_record(Curve(MEASUREMENT, SAMPLES, 50.0, Interval(4.0, 3.5, 4.5)), CONTEXT)


def compared(record: Record, decision: str = "REGRESSED") -> Record:
    """The record with a comparison to a baseline."""
    comparable = decision != "NOT COMPARABLE"
    comparison = {
        "baseline": {"name": "main", "path": "b.json", "started": "2026-11-21T03:00:00+00:00", "plugin_version": "0.1"},
        "decision": decision,
        "ratio": {"value": 0.87, "low": 0.85, "high": 0.89, "confidence": 0.95} if comparable else None,
        "base_rate": {"value": 59.9, "low": 58.0, "high": 62.0, "confidence": 0.95} if comparable else None,
        "head_rate": record["sustainable_rate"] if comparable else None,
        "max_regression": 0.05,
        "differs": [] if comparable else ["GPU: NVIDIA A10G, not NVIDIA H200"],
        "changed": ["server: vLLM 0.25.0 -> vLLM 0.26.0"],
        "more_gpu_s": None,
        "confirmed": None,
        "reason": "one replica sustains 13% less",
        "latencies": [
            {
                "limit": "ttft_p95",
                "load": "50 req/s",
                "base_s": 0.41,
                "head_s": 0.48,
                "ratio": {"value": 1.17, "low": 1.1, "high": 1.25, "confidence": 0.95},
                "decision": "REGRESSED",
            }
        ],
    }
    return {**record, "comparison": comparison}


def document(*records: Record) -> dict[str, Any]:
    """What a session writes."""
    content = result_file.document(list(records), started=STARTED, arguments=["tests"])
    # As it comes from a file: nothing but what JSON holds.
    loaded: dict[str, Any] = json.loads(json.dumps(content))
    return loaded


def with_texts(value: Any, change: Callable[[str], str], keep: frozenset[str]) -> Any:
    """A part of a document with every text changed, but for those under the keys in `keep`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_texts(each, change, keep) for each in value]
    if isinstance(value, dict):
        return {key: each if key in keep else with_texts(each, change, keep) for key, each in value.items()}
    return value
