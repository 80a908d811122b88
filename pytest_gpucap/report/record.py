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

from pytest_gpucap.capacity.results import Curve, Measurement, Sample, Verdict
from pytest_gpucap.requirement import Length, Requirement, Slo, Workload

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
    """

    test: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    telemetry: Any = None
    bottleneck: Any = None
    startup_s: float = 0.0


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
    }


def measurement_record(measurement: Measurement, context: Context) -> Record:
    """The record of one `measure`."""
    return _measurement(measurement, context, kind="measure")


def curve_record(curve: Curve, context: Context) -> Record:
    """The record of one `sweep`."""
    return {
        **_measurement(curve.measurement, context, kind="sweep"),
        "points": plain(curve.points),
        "knee_rps": plain(curve.knee_rps),
        "batching_gain": plain(curve.batching_gain),
    }


def sample_record(sample: Sample, requirement: Requirement, context: Context, *, simulated: bool, seed: int) -> Record:
    """The record of one window of `sample`."""
    lone = Measurement(requirement, (sample,), None, problems=sample.problems, simulated=simulated, seed=seed)
    return _measurement(lone, context, kind="sample")


def _measurement(measurement: Measurement, context: Context, kind: str) -> Record:
    requirement = measurement.requirement
    return {
        "kind": kind,
        "test": context.test,
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
        "samples": plain(measurement.samples),
        "spent_s": {"start-up": plain(context.startup_s), **plain(measurement.spent_s)},
        "problems": list(measurement.problems),
        "seed": measurement.seed,
        "environment": plain(context.environment),
        "telemetry": plain(context.telemetry),
        "bottleneck": plain(context.bottleneck),
    }


def workload_record(workload: Workload) -> Record:
    """The workload, lengths as they are written in a marker."""
    return {
        "input_tokens": _length(workload.input_tokens),
        "output_tokens": _length(workload.output_tokens),
        "arrivals": workload.arrivals.kind.value,
        "burstiness": plain(workload.arrivals.burstiness),
        "trace": None if workload.arrivals.trace is None else workload.arrivals.trace.name,
        "endpoint": workload.endpoint.value,
        "shared_prefix_tokens": workload.shared_prefix_tokens,
        "ignore_eos": workload.ignore_eos,
        "sampling": dict(workload.sampling),
    }


def slo_record(slo: Slo) -> Record:
    """Limits by the name that declares them, in seconds."""
    return {"limits": {limit.name: limit.limit_s for limit in slo.limits}, "max_error_rate": plain(slo.max_error_rate)}


def _length(length: Length) -> int | str:
    if length.low == length.high:
        return length.low
    if length.cv:
        return f"lognormal:mean={length.mean:g},cv={length.cv:g},low={length.low},high={length.high}"
    return f"uniform:{length.low}-{length.high}"


def plain(value: Any) -> Any:  # noqa: PLR0911 - one line a kind of value
    """A value as JSON can hold it; figures that are not finite become null."""
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case float() | Fraction():
            # Seven figures are beyond every clock here, and shorter ones read better in a diff.
            return float(f"{float(value):.7g}") if math.isfinite(value) else None
        case Path():
            return str(value)
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    raise TypeError(f"a result may not hold a {type(value).__name__}: {value!r}")
