"""Results -> the plain values of the result file. Everything any report shows is in here, and nothing else is read.

The form is documented in ``docs/result-file.md`` and in ``result.schema.json`` beside this file; `SCHEMA_VERSION` goes
up when a reader of the old form would misread the new one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.requirement import Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Accuracy, Curve, Measurement, Sample, Verdict
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.windows import WindowId
from pytest_gpucap.sizing import gpus_interval

SCHEMA_VERSION: Final = 1

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What surrounds a measurement; every report names it.

    Attributes:
        test: pytest's node id.
        environment: GPU, driver, clocks, server version and arguments, model: names to plain values.
        telemetry: summary of the devices and the server over the measurement.
        bottleneck: kind, evidence and advice; None where nothing was diagnosed.
        startup_s: server time spent before the first request; 0 where the server was already running.
        series: of the telemetry, as `telemetry.over_time.series` gives it; None where nothing was watched.
        limit: the physical limit and the share of it that was measured; None where it is not known.
        no_limit: why it is not known, in one line; None where it is.
        line: of the test in its file, from 1; None where unknown.
    """

    test: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    telemetry: Any = None
    bottleneck: Any = None
    startup_s: float = 0.0
    series: Any = None
    limit: Any = None
    no_limit: str | None = None
    line: int | None = None


def verdict_record(verdict: Verdict, context: Context) -> Record:
    """The record of one `check`."""
    return {
        **_measurement(verdict.measurement, context, kind="check"),
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "design_rate_rps": plain(verdict.design_rate_rps),
        "gpus_required": verdict.gpus_required,
        "gpus_interval": plain(verdict.gpus_interval),
        "slack": plain(verdict.slack),
        "accuracy": accuracy_record(verdict.accuracy),
    }


def measurement_record(measurement: Measurement, context: Context) -> Record:
    """The record of one `measure`."""
    return _measurement(measurement, context, kind="measure")


def curve_record(curve: Curve, context: Context) -> Record:
    """The record of one `sweep`."""
    return {
        **_measurement(curve.measurement, context, kind="sweep"),
        # Their windows are among the samples, and those carry the detail.
        "points": [{**plain(point), "timeline": {}, "histograms": {}} for point in curve.points],
        "knee_rps": plain(curve.knee_rps),
        "batching_gain": plain(curve.batching_gain),
    }


def sample_record(sample: Sample, requirement: Requirement, context: Context, *, simulated: bool, seed: int) -> Record:
    """The record of one window of `sample`."""
    lone = Measurement(
        requirement, (sample,), None, problems=sample.problems, simulated=simulated, seed=seed, budgeted=False
    )
    return _measurement(lone, context, kind="sample")


def _measurement(measurement: Measurement, context: Context, kind: str) -> Record:
    requirement, rate = measurement.requirement, measurement.sustainable_rate
    counted = measurement.budgeted and rate is not None
    return {
        "kind": kind,
        "test": context.test,
        "line": context.line,
        "name": requirement.name,
        "outcome": None,
        "simulated": measurement.simulated,
        "requirement": {
            "qps": plain(requirement.qps),
            "gpus": requirement.gpus,
            "headroom": plain(requirement.headroom),
            "gpus_per_replica": requirement.gpus_per_replica,
        },
        "workload": workload_record(requirement.workload),
        "slo": slo_record(requirement.slo),
        "sustainable_rate": plain(measurement.sustainable_rate),
        "saturated_rate": plain(measurement.saturated_rate),
        "single_rate": plain(measurement.single_rate),
        "binding": measurement.binding,
        "design_rate_rps": plain(requirement.design_rate) if measurement.budgeted else None,
        "gpus_required": measurement.gpus_required if counted else None,
        "gpus_interval": (
            plain(gpus_interval(requirement, low_rps=rate.low, high_rps=rate.high))
            if counted and rate is not None
            else None
        ),
        "samples": lean(plain(measurement.samples)),
        "spent_s": {"start-up": plain(context.startup_s), **plain(measurement.spent_s)},
        "problems": plain(measurement.problems),
        "seed": measurement.seed,
        "environment": plain(context.environment),
        "telemetry": plain(context.telemetry),
        "bottleneck": plain(context.bottleneck),
        "comparison": None,
        "series": plain(context.series),
        "limit": plain(context.limit),
        "no_limit": context.no_limit,
    }


def workload_record(workload: Workload) -> Record:
    """The workload, lengths as they are written in a marker."""
    return {
        "input_tokens": _length(workload.input_tokens),
        "output_tokens": _length(workload.output_tokens),
        "arrivals": workload.arrivals.kind.value,
        "burstiness": plain(workload.arrivals.burstiness),
        "trace": None if workload.arrivals.trace is None else workload.arrivals.trace.name,
        "trace_sha256": workload.arrivals.trace_sha256,
        "endpoint": workload.endpoint.value,
        "shared_prefix_tokens": workload.shared_prefix_tokens,
        "ignore_eos": workload.ignore_eos,
        "sampling": dict(workload.sampling),
        "preset": workload.preset,
        "questions": None if workload.questions is None else workload.questions.name,
        "wording": plain(workload.wording),
    }


def accuracy_record(accuracy: Accuracy | None) -> Record | None:
    """The answers, the interval's figures at the top; those of the interval are null where no answer came."""
    if accuracy is None:
        return None
    figures = plain(accuracy)
    share = figures.pop("share") or dict.fromkeys(("value", "low", "high", "confidence"))
    return {**share, **figures}


def slo_record(slo: Slo) -> Record:
    """Limits by the name that declares them, in seconds."""
    return {
        "limits": {limit.name: limit.limit_s for limit in slo.limits},
        "max_error_rate": plain(slo.max_error_rate),
        "min_accuracy": plain(slo.min_accuracy),
    }


def _length(length: Length) -> int | str:
    if length.low == length.high:
        return length.low
    if length.cv:
        return f"lognormal:mean={length.mean:g},cv={length.cv:g},low={length.low},high={length.high}"
    return f"uniform:{length.low}-{length.high}"


def lean(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples with smaller histograms: edges in five figures, and one that a phase's windows share kept once.

    ITL is counted by phase: every window of one has the same histogram, and the first keeps it.
    """
    before: Any = None
    for sample in samples:
        histograms = sample["histograms"]
        shared = histograms.get("itl")
        if shared is not None and shared == before:
            sample["histograms"] = {name: each for name, each in histograms.items() if name != "itl"}
        before = shared
    for sample in samples:
        for histogram in sample["histograms"].values():
            histogram["edges_s"] = [float(f"{edge:.5g}") for edge in histogram["edges_s"]]
    return samples


_KEYS: Final = {"window": "label"}
"""Fields that the result file names differently."""


def plain(value: Any) -> Any:  # noqa: PLR0911 - one line a kind of value
    """A value as JSON can hold it; figures that are not finite become null."""
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case float() | Fraction():
            return _rounded(float(value)) if math.isfinite(value) else None
        case Path():
            return str(value)
        case WindowId() | Problem():
            return value.text
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {_KEYS.get(each.name, each.name): plain(getattr(value, each.name)) for each in fields(value)}
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"a result may not hold a {type(value).__name__}: {value!r}")


def _rounded(value: float) -> float:
    """Seven figures, and never less than milliseconds: a monotonic clock counts from a boot that may be months ago."""
    return round(value, 3) if abs(value) >= 1e4 else float(f"{value:.7g}")  # noqa: PLR2004 - where 7 figures end at 1 ms
