"""A measurement and its circumstances -> the `Result` that is written and reported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from pytest_gpucap.requirement import ApiKind, Length, Requirement, Sessions, Slo, Workload
from pytest_gpucap.results.encoding import normalised, without_secrets
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.fleet import FleetResult
from pytest_gpucap.results.measured import (
    Curve,
    Interval,
    LatencyHistogram,
    Measurement,
    MoreTime,
    Outcome,
    Sample,
    Verdict,
)
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.requests import RequestsFile
from pytest_gpucap.results.result import (
    START_UP,
    DeclaredAdapter,
    DeclaredBudget,
    DeclaredSlo,
    DeclaredWorkload,
    PhysicalLimit,
    Result,
    ResultKind,
)
from pytest_gpucap.results.telemetry import Bottleneck, TelemetryOverTime, TelemetrySummary
from pytest_gpucap.secondary import StartFigures
from pytest_gpucap.sizing import gpus_interval


@dataclass(frozen=True, slots=True)
class Context:
    """The circumstances of a measurement. Every report names them.

    Attributes:
        test: pytest's node id.
        startup_s: server time spent before the first request; 0 where the server was already running.
        start_phases_s: what `startup_s` was spent on, by phase, as far as it is known.
        limit: the physical limit and the share of it that was measured; None where it is not known.
        no_limit: why it is not known, in one line; None where it is.
        line: of the test in its file, from 1; None where unknown.
        telemetry, bottleneck, series: None where nothing was watched.
        fleet: what the replicas of a fleet did; None for one replica.
        figures: of each start, what it showed of the secondary limits; empty where none is declared.
        prefix_hit_rate, prefix_sent_rate: of sessions; None where they are not known.
        requests: the files with the single requests; empty where they are not kept.
    """

    test: str
    environment: Environment = field(default_factory=Environment)
    telemetry: TelemetrySummary | None = None
    bottleneck: Bottleneck | None = None
    startup_s: float = 0.0
    start_phases_s: Mapping[str, float] = field(default_factory=dict)
    series: TelemetryOverTime | None = None
    limit: PhysicalLimit | None = None
    no_limit: str | None = None
    line: int | None = None
    fleet: FleetResult | None = None
    figures: tuple[StartFigures, ...] = ()
    prefix_hit_rate: float | None = None
    prefix_sent_rate: float | None = None
    requests: tuple[RequestsFile, ...] = ()


def check_result(verdict: Verdict, context: Context) -> Result:
    """The result of one `check`."""
    return _result(
        verdict.measurement,
        context,
        ResultKind.CHECK,
        outcome=verdict.outcome,
        reason=verdict.reason,
        design_rate_rps=verdict.design_rate_rps,
        gpus_required=verdict.gpus_required,
        gpus_interval=verdict.gpus_interval,
        slack=verdict.slack,
        accuracy=verdict.accuracy,
        more_time=verdict.more_time,
    )


def measure_result(measurement: Measurement, context: Context) -> Result:
    """The result of one `measure`."""
    return _result(measurement, context, ResultKind.MEASURE)


def sweep_result(curve: Curve, context: Context) -> Result:
    """The result of one `sweep`."""
    # The points are also among the samples, which carry the detail.
    points = tuple(msgspec.structs.replace(point, timeline={}, histograms={}) for point in curve.points)
    return _result(
        curve.measurement,
        context,
        ResultKind.SWEEP,
        points=points,
        knee_rps=curve.knee_rps,
        batching_gain=curve.batching_gain,
    )


def sample_result(
    sample: Sample, requirement: Requirement, context: Context, *, simulated: bool, seed: int, spent_s: float
) -> Result:
    """The result of one window of `sample`, which took so many seconds of server time with its lead-in."""
    alone = Measurement(
        requirement,
        (sample,),
        None,
        problems=sample.problems,
        spent_s={"window": spent_s},
        failed_requests=sample.failed_requests,
        adapters=sample.adapters,
        simulated=simulated,
        seed=seed,
        budgeted=False,
    )
    return _result(alone, context, ResultKind.SAMPLE)


def unmeasured_result(
    requirement: Requirement,
    context: Context,
    kind: ResultKind,
    problem: Problem,
    *,
    budgeted: bool,
    seed: int,
    simulated: bool = False,
    more_time: MoreTime | None = None,
) -> Result:
    """The result of a measurement that could not begin, or that an error ended; `problem` says which."""
    nothing = Measurement(requirement, (), None, problems=(problem,), seed=seed, budgeted=budgeted, simulated=simulated)
    judged = {"outcome": Outcome.INVALID} if kind is ResultKind.CHECK else {}
    return _result(nothing, context, kind, reason=problem.text, more_time=more_time, **judged)


def _result(measurement: Measurement, context: Context, kind: ResultKind, **found: Any) -> Result:
    """The fields that all kinds share, and those in `found`."""
    requirement, rate = measurement.requirement, measurement.sustainable_rate
    if measurement.budgeted:
        found = {"design_rate_rps": float(requirement.design_rate)} | found
        if rate is not None:
            interval = gpus_interval(requirement, low_rps=rate.low, high_rps=rate.high)
            found = {"gpus_required": measurement.gpus_required, "gpus_interval": interval} | found
    found = {"reason": measurement.reason} | found
    result = Result(
        kind=kind,
        test=context.test,
        line=context.line,
        name=requirement.name,
        simulated=measurement.simulated,
        requirement=declared_budget(requirement),
        workload=declared_workload(requirement.workload),
        slo=declared_slo(requirement.slo),
        sustainable_rate=measurement.sustainable_rate,
        saturated_rate=measurement.saturated_rate,
        single_rate=measurement.single_rate,
        binding=measurement.binding,
        at_least_rps=measurement.at_least_rps,
        samples=lean(measurement.samples),
        spent_s={START_UP: context.startup_s, **measurement.spent_s},
        start_phases_s=context.start_phases_s,
        problems=measurement.problems,
        failed_requests=measurement.failed_requests,
        seed=measurement.seed,
        starts=measurement.starts,
        start_spread=measurement.start_spread,
        environment=context.environment,
        telemetry=context.telemetry,
        bottleneck=context.bottleneck,
        series=context.series,
        limit=context.limit,
        no_limit=context.no_limit,
        fleet=_together(context.fleet, rate),
        secondary=measurement.secondary,
        adapters=measurement.adapters,
        forgetting_cost=measurement.forgetting_cost,
        prefix_hit_rate=context.prefix_hit_rate,
        prefix_sent_rate=context.prefix_sent_rate,
        requests=context.requests,
        **found,
    )
    return without_secrets(normalised(result))


def _together(fleet: FleetResult | None, each: Interval | None) -> FleetResult | None:
    """The fleet with the rate of all its replicas."""
    if fleet is None or each is None:
        return fleet
    count = fleet.replicas
    together = Interval(each.value * count, each.low * count, each.high * count, each.confidence)
    return msgspec.structs.replace(fleet, together=together)


def declared_budget(requirement: Requirement) -> DeclaredBudget:
    """The budget as floats."""
    return DeclaredBudget(
        qps=float(requirement.qps),
        gpus=requirement.gpus,
        headroom=float(requirement.headroom),
        gpus_per_replica=requirement.gpus_per_replica,
        fleet=requirement.fleet,
        efficiency=float(requirement.efficiency),
    )


MOST_EXTRA: Final = 4_000
"""Characters of a request's extra fields that a result keeps."""


def declared_workload(workload: Workload) -> DeclaredWorkload:
    """The workload, lengths as they are written in a marker."""
    prompts = workload.prompts
    # Sorted, so that equal fields have equal texts.
    extra = json.dumps(dict(workload.extra_body), ensure_ascii=False, sort_keys=True) if workload.extra_body else ""
    return DeclaredWorkload(
        input_tokens=_length(workload.input_tokens),
        output_tokens=_length(workload.output_tokens) if workload.endpoint.generates else 0,
        arrivals=workload.arrivals.kind,
        burstiness=workload.arrivals.burstiness,
        endpoint=workload.endpoint,
        trace=None if workload.arrivals.trace is None else workload.arrivals.trace.name,
        trace_sha256=workload.arrivals.trace_sha256,
        shared_prefix_tokens=workload.shared_prefix_tokens,
        ignore_eos=workload.ignore_eos,
        sampling=dict(workload.sampling),
        preset=workload.preset,
        questions=None if workload.questions is None else workload.questions.name,
        wording=workload.wording,
        prompts=None if prompts is None else prompts.path.name,
        prompts_sha256=None if prompts is None else prompts.sha256,
        prompt_count=None if prompts is None else prompts.count,
        extra_body=(extra if len(extra) <= MOST_EXTRA else f"{extra[:MOST_EXTRA]}...") if extra else None,
        stream=workload.streamed,
        documents=workload.documents if workload.endpoint is ApiKind.RERANK else None,
        adapters=tuple(DeclaredAdapter(name, share) for name, share in workload.adapters.items()),
        adapter_rank=workload.adapter_rank,
        extra_body_sha256=hashlib.sha256(extra.encode()).hexdigest() if extra else None,
        images=tuple(map(str, workload.images)),
        audio_s=workload.audio_s,
        sessions=None if workload.sessions is None else _sessions(workload.sessions),
        sessions_sha256=None if workload.recorded is None else workload.recorded.sha256,
        session_count=None if workload.recorded is None else workload.recorded.count,
    )


def _sessions(sessions: Sessions) -> str:
    if sessions.recorded is not None:
        return sessions.text
    return f"{sessions.text} new={_length(sessions.new)}"


def declared_slo(slo: Slo) -> DeclaredSlo:
    """Limits by the name that declares them, in seconds."""
    goodput = slo.goodput
    return DeclaredSlo(
        limits={limit.name: limit.limit_s for limit in slo.percentiles},
        max_error_rate=float(slo.max_error_rate),
        min_accuracy=None if slo.min_accuracy is None else float(slo.min_accuracy),
        goodput=None if goodput is None else float(goodput.quantile),
        thresholds={} if goodput is None else dict(goodput.thresholds),
    )


def _length(length: Length) -> int | str:
    if length.low == length.high:
        return length.low
    if length.cv:
        return f"lognormal:mean={length.mean:g},cv={length.cv:g},low={length.low},high={length.high}"
    return f"uniform:{length.low}-{length.high}"


def lean(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples with smaller histograms: edges have five figures, and windows that share a histogram keep it once.

    ITL is counted by phase. Every window of a phase has the same histogram, so only the first keeps it.
    """
    found = []
    before: LatencyHistogram | None = None
    for sample in samples:
        shared = sample.histograms.get("itl")
        histograms = {
            metric: LatencyHistogram(tuple(float(f"{edge:.5g}") for edge in histogram.edges_s), histogram.counts)
            for metric, histogram in sample.histograms.items()
            if metric != "itl" or shared != before
        }
        before = shared
        found.append(msgspec.structs.replace(sample, histograms=histograms))
    return tuple(found)
