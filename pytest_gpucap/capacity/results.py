"""What a measurement found, as plain frozen values: the one thing that reports, history and tests read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pytest_gpucap.requirement import Requirement


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
class Sample:
    """What one measuring window at one rate (open loop) or concurrency (closed loop) showed.

    Attributes:
        kind: ``open`` or ``closed``.
        label: what the window was for, such as ``hold 2`` or ``design rate 1``.
        start_s, end_s: on the runner's clock; telemetry is matched by these.
        offered_rps: intended rate; NaN for a closed loop.
        concurrency: requests held in flight; 0 for an open loop.
        completed_rps, output_tokens_per_s: what the server delivered.
        in_flight_mean, in_flight_end: requests in flight.
        latencies: by metric name (``ttft``, ``tpot``, ``itl``, ``e2e``).
        attainment: by limit name (``ttft_p95``): share of the requests (gaps, for ITL) within the limit.
        errors: by kind, lower case (``http_5xx``).
        checks: the load generator's own figures, by name.
        problems: why this window cannot be trusted; empty when it can.
    """

    kind: str
    label: str
    start_s: float
    end_s: float
    offered_rps: float
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
    problems: tuple[str, ...] = ()


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
    """

    requirement: Requirement
    samples: tuple[Sample, ...]
    sustainable_rate: Interval | None
    saturated_rate: Interval | None = None
    binding: str | None = None
    single_rate: Interval | None = None
    spent_s: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    simulated: bool = False
    seed: int = 0


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
