"""What a measurement found, as plain frozen values: the one thing that reports, history and tests read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.windows import WindowId
from pytest_gpucap.sizing import gpus_for_rate


class Outcome(StrEnum):
    """The verdict."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    """The evidence does not separate capacity from requirement within the GPU time allowed."""
    INVALID = "INVALID"
    """The measurement cannot be trusted; never a word on capacity."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval; numbers without one are not shown as estimates."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one latency over one sample, in seconds, and how many values are behind them."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """How latencies were distributed: ``counts[i]`` of them in (edges_s[i], edges_s[i + 1]]; empty bins within stay."""

    edges_s: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one measuring window at one rate (open loop) or concurrency (closed loop) showed.

    Attributes:
        kind: ``open`` or ``closed``.
        window: which window of the measurement this is, or which slice of one.
        start_s, end_s: on the runner's clock; telemetry is matched by these.
        offered_rps: intended rate; None for a closed loop.
        concurrency: requests held in flight; 0 for an open loop.
        completed_rps, output_tokens_per_s: what the server delivered.
        in_flight_mean, in_flight_end: requests in flight.
        latencies: by metric name (``ttft``, ``tpot``, ``itl``, ``e2e``).
        attainment: by limit name (``ttft_p95``): share of the requests (gaps, for ITL) within the limit.
        errors: by kind, lower case (``http_5xx``).
        checks: the load generator's own figures, by name.
        problems: why this window cannot be trusted; empty when it can.
        timeline: latency and requests in flight over the window's time, a column each; see `estimate.samples.timeline`.
        histograms: by metric name.
    """

    kind: str
    window: WindowId
    start_s: float
    end_s: float
    offered_rps: float | None
    concurrency: int
    requests: int
    completed_rps: float
    output_tokens_per_s: float
    in_flight_mean: float
    in_flight_end: int
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    attainment: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)
    checks: Mapping[str, float | int | str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    timeline: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    histograms: Mapping[str, LatencyHistogram] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Sample {self.window.text}: {self.completed_rps:.4g} req/s, {self.in_flight_mean:.4g} in flight>"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one server can sustain, and the samples that say so.

    Attributes:
        requirement: its workload and SLO are what was measured; for `measure` without a budget, qps and gpus are 0-free
            placeholders that no verdict is made from.
        sustainable_rate: requests a second that one replica keeps for good within the SLO and without a growing
            backlog; None where the evidence gives none (INVALID, or called off).
        saturated_rate: requests a second at the highest concurrency held; None where none was.
        binding: which limit binds at the sustainable rate: a limit's name, ``backlog`` or ``errors``.
        single_rate: requests a second of one request at a time; None where not measured.
        spent_s: seconds of server time by phase (``warm-up``, ``hold``, ``open loop`` ...).
        problems: why the measurement cannot be trusted; empty when it can.
        simulated: no real server was measured.
        seed: of arrivals, lengths and prompts.
        budgeted: the requirement's qps and gpus were declared, and are no placeholders.
    """

    requirement: Requirement
    samples: tuple[Sample, ...]
    sustainable_rate: Interval | None
    saturated_rate: Interval | None = None
    binding: str | None = None
    single_rate: Interval | None = None
    spent_s: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    simulated: bool = False
    seed: int = 0
    budgeted: bool = True

    @property
    def gpus_required(self) -> int:
        """GPUs that the declared requirement needs, from the point estimate by exact arithmetic.

        Raises:
            ValueError: if no rate was declared, or the evidence gives no sustainable rate.
        """
        if not self.budgeted:
            raise ValueError(f"{self.requirement.name}: gpus_required needs a rate: gpucap(qps=...) or --target-qps")
        if self.sustainable_rate is None:
            raise ValueError(f"{self.requirement.name}: no sustainable rate was found, so no GPUs can be counted")
        return gpus_for_rate(self.requirement, self.sustainable_rate.value)

    def __repr__(self) -> str:
        return f"<Measurement of {self.requirement.name}: {_found(self)}>"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of a workload's questions were answered right.

    Attributes:
        share: right answers of all answers; None where there are none.
        answers, right: how many were graded, and how many of them are right.
        samples: share of right answers in each sample (a round of questions).
        questions: different ones that were asked.
        min_accuracy: what is required; None: nothing is.
        cut: answers that used up the tokens they may take.
        skipped: answers without reasoning from a server that otherwise reasons.
        ungraded: answers that nothing here could read; they count as wrong in the share and its low end, as right in
            its high end.
        failed: requests that came to no answer.
        good_rps: right answers a second: sustainable rate times share; None where no rate is known.
        spent_s: server time that the answers took.
        problem: why the answers say less than they should; empty when they do not.
    """

    share: Interval | None
    answers: int = 0
    right: int = 0
    samples: tuple[float, ...] = ()
    questions: int = 0
    min_accuracy: Fraction | None = None
    cut: int = 0
    skipped: int = 0
    ungraded: int = 0
    failed: int = 0
    good_rps: Interval | None = None
    spent_s: float = 0.0
    problem: str = ""
    decided: bool = False
    """The verdict is about the answers, and capacity alone would have been enough."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision on one requirement.

    Attributes:
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
    """Of the answers, where the requirement asks for one."""

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
        points: samples in rising order of rate or concurrency.
        knee_rps: where throughput stops paying for latency; None where no knee was found.
        batching_gain: sustainable over one-at-a-time throughput.
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


def _found(measurement: Measurement) -> str:
    """The rate in a few words: pytest shows a result's repr beside the figure that a failed assertion took from it."""
    found = measurement.sustainable_rate
    if found is None:
        return "no sustainable rate"
    bound = f", bound by {measurement.binding}" if measurement.binding else ""
    simulated = ", SIMULATED" if measurement.simulated else ""
    return f"{found.value:.4g} ({found.low:.4g}-{found.high:.4g}) req/s a replica{bound}{simulated}"
