"""What a measurement found, as frozen values.

`Interval`, `Latency`, `AdapterLatencies`, `LatencyHistogram`, `Sample`, `MeasuredStart` and `Accuracy` are part of the
result file.
`Measurement`, `Verdict` and `Curve` hold the declared requirement with its exact fractions; `results.build` makes a
`Result` of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from pytest_gpucap.errors import NoSustainableRate
from pytest_gpucap.requirement import Requirement, RequirementError
from pytest_gpucap.results.encoding import Figure, HighEnd, LowEnd
from pytest_gpucap.results.failures import FailedRequests
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.reasoning import Reasoning
from pytest_gpucap.results.windows import JUDGED, LEADING_UP, WindowId
from pytest_gpucap.secondary import METRICS, Bound, SecondaryName
from pytest_gpucap.sizing import gpus_for_rate


class Outcome(StrEnum):
    """The verdict."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """The evidence does not separate capacity from requirement within the GPU time allowed."""
    INVALID = "INVALID"
    """The measurement cannot be trusted, so it says nothing about capacity."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate with its interval. An infinite end is open; the result file has null.

    Attributes:
        value: the point estimate, in the unit of what has the interval.
        low: its lower end, in the same unit.
        high: its upper end, in the same unit.
        confidence: how often such an interval holds the truth, as a share of 1.
    """

    value: Figure
    low: LowEnd
    high: HighEnd
    confidence: float = 0.95


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of one latency over one sample, in seconds, and the number of values.

    Attributes:
        count: values; of ITL, gaps between tokens, of which a request has many.
        mean_s: their mean.
        p50_s, p90_s, p95_s, p99_s: the values that 50, 90, 95 and 99% of them do not exceed.
    """

    count: int
    mean_s: Figure
    p50_s: Figure
    p90_s: Figure
    p95_s: Figure
    p99_s: Figure

    def percentile(self, percent: int) -> float:
        """One of `KEPT_PERCENTILES`, in seconds."""
        return {50: self.p50_s, 90: self.p90_s, 95: self.p95_s, 99: self.p99_s}[percent]


KEPT_PERCENTILES: Final = (50, 90, 95, 99)
"""Percentiles that a sample keeps of every latency."""


class AdapterLatencies(msgspec.Struct, frozen=True):
    """The requests of one LoRA adapter in the open loops at the rate that is judged; without such, in steady loads.

    Attributes:
        name: as requests name it; ``base`` is the model without an adapter.
        share: of the requests, as declared.
        requests: that ended well there.
        drawn: their share of all requests that did; NaN of none.
        latencies: of them, by metric name (``ttft``, ``tpot``, ``e2e``).
    """

    name: str
    share: Figure
    requests: int
    drawn: Figure
    latencies: Mapping[str, Latency] = msgspec.field(default_factory=dict)


class MoreTime(msgspec.Struct, frozen=True):
    """What more server time would decide.

    Attributes:
        seconds: further server time that would separate capacity from requirement, if the estimate stays where it is;
            None if no time would.
        text: one sentence: the time, or what binds instead.
    """

    seconds: float | None
    text: str


class LatencyHistogram(msgspec.Struct, frozen=True):
    """How latencies were distributed: ``counts[i]`` of them lie in (edges_s[i], edges_s[i + 1]]."""

    edges_s: tuple[float, ...]
    counts: tuple[int, ...]


class Sample(msgspec.Struct, frozen=True):
    """The figures of one measuring window at one rate (open loop) or concurrency (closed loop).

    Attributes:
        kind: ``open`` or ``closed``.
        window: which window of the measurement this is.
        start_s, end_s: on the runner's monotonic clock; telemetry is matched by these.
        offered_rps: intended rate; None for a closed loop.
        concurrency: requests held in flight; 0 for an open loop.
        requests: that became due in the window.
        completed_rps, output_tokens_per_s: what the server delivered.
        in_flight_mean, in_flight_end: requests in flight.
        latencies: by metric name (``ttft``, ``tpot``, ``itl``, ``e2e``; ``ttfat`` where answers reason first).
        attainment: by limit name (``ttft_p95``): share of the requests (gaps, for ITL) within the limit.
        goodput: share of the requests that ended or failed in the window which kept the thresholds of all limits
            together; None without such limits or requests, and in early files.
        errors: by kind, lower case (``http_5xx``).
        checks: the load generator's own figures, by name.
        problems: why this window cannot be trusted; empty when it can.
        timeline: the window in bins of equal width, a column each: ``t_s`` (their middles, on the clock of `start_s`),
            ``in_flight``, and ``METRIC_p50_s`` and ``METRIC_p95_s`` of what ended in the bin; None or NaN for nothing.
        failed_requests, adapters: of `sample` alone; other measurements keep those of all windows together.
        histograms: by metric name. ITL is counted by phase, and only the first window of a phase has its histogram.
        reasoning: of the whole answers that ended in the window; None where none began with reasoning.
    """

    kind: str
    window: WindowId
    start_s: float
    end_s: float
    offered_rps: float | None
    concurrency: int
    requests: int
    completed_rps: Figure
    output_tokens_per_s: Figure
    in_flight_mean: Figure
    in_flight_end: int
    latencies: Mapping[str, Latency] = msgspec.field(default_factory=dict)
    attainment: Mapping[str, Figure] = msgspec.field(default_factory=dict)
    errors: Mapping[str, int] = msgspec.field(default_factory=dict)
    checks: Mapping[str, float | int | str | None] = msgspec.field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    timeline: Mapping[str, tuple[float | None, ...]] = msgspec.field(default_factory=dict)
    histograms: Mapping[str, LatencyHistogram] = msgspec.field(default_factory=dict)
    failed_requests: FailedRequests | None = None
    goodput: Figure | None = None
    reasoning: Reasoning | None = None
    adapters: tuple[AdapterLatencies, ...] = ()

    def __repr__(self) -> str:
        return f"<Sample {self.window.text}: {self.completed_rps:.4g} req/s, {self.in_flight_mean:.4g} in flight>"


def judged_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Those of open loops at the rate that is judged; where there are none, those of every steady load."""
    return [each for each in samples if each.window.phase in JUDGED] or [
        each for each in samples if each.window.phase not in LEADING_UP
    ]


class MeasuredStart(msgspec.Struct, frozen=True):
    """What one of several starts of the server showed.

    Attributes:
        seed: of its arrivals, lengths and prompts.
        sustainable_rate: what this start sustains, with its own interval; None where it showed none.
        at_least_rps: see `Measurement.at_least_rps`.
        outcome: what the check of this start alone says; None where nothing was judged.
        reason: one sentence on that, or on why there is no rate.
        spent_s: server time, without the start-up.
        detailed: the result's windows, telemetry and bottleneck are those of this start.
    """

    seed: int
    sustainable_rate: Interval | None = None
    at_least_rps: Figure | None = None
    outcome: Outcome | None = None
    reason: str = ""
    spent_s: float = 0.0
    detailed: bool = False


class SecondaryResult(msgspec.Struct, frozen=True):
    """One limit beside the rate, and what was measured.

    Attributes:
        name: the keyword that declares it.
        unit: of `limit` and `measured`.
        bound: which side of the limit is good.
        limit: as declared.
        measured: its ends are equal where it is read and not sampled; None where nothing was measured.
        outcome: of this limit alone.
        arithmetic: where the figure comes from; empty where it is read.
        beside: what follows from it, for people.
        reason: why it was not measured, or why it is undecided; else empty.
        decided: it decides the verdict, which capacity and answers alone would not have brought.
    """

    name: SecondaryName
    unit: str
    bound: Bound
    limit: float
    measured: Interval | None
    outcome: Outcome
    arithmetic: str = ""
    beside: str = ""
    reason: str = ""
    decided: bool = False

    @property
    def figure(self) -> str:
        """``351.2 J per 1,000 output tokens (340.1 to 362.4)``."""
        metric, found = METRICS[self.name], self.measured
        if found is None:
            return "not measured"
        if found.low == 0 and found.high == found.value > 0:
            return f"at most {metric.shown(found.value)}"
        interval = "" if found.low == found.high else f" ({metric.number(found.low)} to {metric.number(found.high)})"
        return f"{metric.shown(found.value)}{interval}"

    @property
    def claim(self) -> str:
        """``start-up 120 s, at most 90 s allowed``."""
        return f"{self.title} {self.told}"

    @property
    def title(self) -> str:
        """What is limited, for people."""
        return METRICS[self.name].title

    @property
    def told(self) -> str:
        """The claim without the title."""
        wanted = "allowed" if self.bound is Bound.AT_MOST else "required"
        unit = " s" if self.name is SecondaryName.STARTUP else ""
        return f"{self.figure}, {self.bound} {METRICS[self.name].number(self.limit)}{unit} {wanted}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one server can sustain, and the samples behind it.

    Attributes:
        requirement: its workload and SLO are what was measured. For `measure` without a budget, qps and gpus are
            positive placeholders; no verdict uses them.
        samples: the measuring windows, in the order in which they were measured.
        sustainable_rate: requests a second that one replica keeps for good within the SLO and without a growing
            backlog; None where the evidence gives none (INVALID, or called off).
        saturated_rate: requests a second at the highest concurrency held; None where none was.
        binding: which limit binds at the sustainable rate: a limit's name, ``backlog`` or ``errors``.
        single_rate: requests a second of one request at a time; None where not measured.
        spent_s: seconds of server time by phase (``warm-up``, ``hold``, ``open loop`` ...).
        problems: why the measurement cannot be trusted; empty when it can.
        failed_requests: by kind, with the server's words; None where no request failed.
        simulated: no real server was measured.
        seed: of arrivals, lengths and prompts.
        budgeted: the requirement's qps and gpus were declared, so they are not placeholders.
        at_least_rps: the rate that was shown, where `sustainable_rate` is an extrapolation beyond all that was
            measured, or where there is none; reports name this bound in its place. None otherwise.
        reason: why there is no sustainable rate, in one sentence; empty where there is one.
        starts: what each start showed, where several starts of the server were measured; empty for one. The samples
            are then those of the start that is `detailed`.
        start_spread: standard deviation of ln(rate) from start to start as seen; None where there is one start, or a
            rate is an extrapolation.
        secondary: the limits that were declared beside the rate, and what was measured.
        adapters: what the requests of each LoRA adapter met; empty without a mix of adapters.
        forgetting_cost: of sessions, the share of its rate that the server loses in the long run because its prefix
            cache forgets them, which `sustainable_rate` allows for; 0: next to nothing. None without an estimate.
    """

    requirement: Requirement
    samples: tuple[Sample, ...]
    sustainable_rate: Interval | None
    saturated_rate: Interval | None = None
    binding: str | None = None
    single_rate: Interval | None = None
    spent_s: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    failed_requests: FailedRequests | None = None
    simulated: bool = False
    seed: int = 0
    budgeted: bool = True
    at_least_rps: float | None = None
    reason: str = ""
    starts: tuple[MeasuredStart, ...] = ()
    start_spread: float | None = None
    secondary: tuple[SecondaryResult, ...] = ()
    adapters: tuple[AdapterLatencies, ...] = ()
    forgetting_cost: float | None = None

    @property
    def gpus_required(self) -> int:
        """GPUs that the declared requirement needs, from the point estimate by exact arithmetic.

        Raises:
            RequirementError: if no rate was declared.
            NoSustainableRate: if none was found.
        """
        if not self.budgeted:
            raise RequirementError(
                f"{self.requirement.name}: gpus_required needs a rate: gpucap(qps=...) or --target-qps"
            )
        if self.sustainable_rate is None:
            why = f": {self.reason}" if self.reason else ""
            raise NoSustainableRate(
                f"{self.requirement.name}: no sustainable rate was found, so no GPUs can be counted{why}"
            )
        return gpus_for_rate(self.requirement, self.sustainable_rate.value)

    def __repr__(self) -> str:
        return f"<Measurement of {self.requirement.name}: {_found(self)}>"


class Accuracy(msgspec.Struct, frozen=True):
    """How many of a workload's questions were answered right.

    Attributes:
        share: right answers of all answers; None where there are none.
        answers, right: how many were graded, and how many of them are right.
        samples: share of right answers in each sample (a round of questions).
        questions: different ones that were asked.
        min_accuracy: what is required; None: nothing is.
        cut: answers that reached the token limit.
        skipped: answers without reasoning, although other answers of the server have it.
        ungraded: answers that could not be parsed. They count as wrong in the share and its low end, and as right in
            its high end.
        failed: requests without an answer.
        good_rps: right answers a second: sustainable rate times share; None where no rate is known.
        spent_s: server time that the answers took.
        problem: why the answers cannot be fully used; empty if they can.
    """

    share: Interval | None
    answers: int = 0
    right: int = 0
    samples: tuple[float, ...] = ()
    questions: int = 0
    min_accuracy: float | None = None
    cut: int = 0
    skipped: int = 0
    ungraded: int = 0
    failed: int = 0
    good_rps: Interval | None = None
    spent_s: float = 0.0
    problem: str = ""
    decided: bool = False
    """Whether the answers decide the verdict, because capacity alone would pass."""

    @property
    def claim(self) -> str:
        """``answers right 61% (52-70%), needs 90%``."""
        if self.share is None:
            return f"answers not judged: {self.problem}"
        value, low, high = map(_percent, (self.share.value, self.share.low, self.share.high))
        needs = "" if self.min_accuracy is None else f", needs {_percent(self.min_accuracy)}%"
        return f"answers right {value}% ({low}-{high}%){needs}"

    @property
    def undecided(self) -> str:
        """Why the answers neither keep nor miss what is required; empty where they do, or nothing is required."""
        if self.min_accuracy is None:
            return ""
        if self.share is None:
            return self.problem
        if self.share.high < self.min_accuracy:
            return ""
        if self.problem or self.share.low >= self.min_accuracy:
            return self.problem
        return f"{self.questions} questions do not separate them"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one requirement.

    Attributes:
        outcome: what was decided.
        measurement: what it rests on.
        design_rate_rps: the rate that one replica must sustain so that the budget holds.
        gpus_required: from the point estimate by exact arithmetic; None where there is no estimate.
        gpus_interval: GPUs from the high and the low end of the sustainable rate's interval.
        slack: sustainable rate over design rate, minus one.
        reason: one sentence on why this outcome and no other.
    """

    outcome: Outcome
    measurement: Measurement
    design_rate_rps: float
    gpus_required: int | None
    gpus_interval: tuple[int, int] | None
    slack: Interval | None
    reason: str
    accuracy: Accuracy | None = None
    """The accuracy of the answers, if the requirement asks for it."""
    more_time: MoreTime | None = None
    """What more time would decide; None unless the outcome is INCONCLUSIVE."""

    @property
    def secondary(self) -> tuple[SecondaryResult, ...]:
        """See `Measurement.secondary`."""
        return self.measurement.secondary

    def __repr__(self) -> str:
        requirement = self.measurement.requirement
        needed = "?" if self.gpus_required is None else self.gpus_required
        return (
            f"<Verdict on {requirement.name}: {self.outcome}, {needed} GPUs needed, budget {requirement.gpus}; "
            f"{_found(self.measurement)}>"
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """Latency against rate, up to saturation.

    Attributes:
        measurement: the sustainable rate, and all samples behind it.
        points: samples in rising order of rate or concurrency.
        knee_rps: the rate at which throughput over latency is greatest; None if no knee was found.
        batching_gain: sustainable over one-at-a-time throughput, a factor.
    """

    measurement: Measurement
    points: tuple[Sample, ...]
    knee_rps: float | None
    batching_gain: Interval | None

    @property
    def sustainable_rate(self) -> Interval | None:
        """See `Measurement.sustainable_rate`."""
        return self.measurement.sustainable_rate

    @property
    def gpus_required(self) -> int:
        """See `Measurement.gpus_required`."""
        return self.measurement.gpus_required

    def __repr__(self) -> str:
        return f"<Curve of {self.measurement.requirement.name}: {len(self.points)} points, {_found(self.measurement)}>"


def _percent(share: float) -> str:
    return f"{share * 100:.3g}"


def _found(measurement: Measurement) -> str:
    """The rate in a few words. pytest shows this repr beside a figure of the result in a failed assertion."""
    found = measurement.sustainable_rate
    if measurement.at_least_rps is not None:
        simulated = ", SIMULATED" if measurement.simulated else ""
        return f"at least {measurement.at_least_rps:.4g} req/s per replica{simulated}"
    if found is None:
        return "no sustainable rate"
    bound = f", bound by {measurement.binding}" if measurement.binding else ""
    simulated = ", SIMULATED" if measurement.simulated else ""
    return f"{found.value:.4g} ({found.low:.4g}-{found.high:.4g}) req/s per replica{bound}{simulated}"
