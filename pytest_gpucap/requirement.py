"""What a test declares: the requirement, with its workload and its limits.

Values are frozen. ``markers/`` and ``options/`` parse them once. Rates and headroom are exact fractions of the
decimal text that the user wrote, because ``ceil(11 * 1.1 / 12.1)`` is 2 in floats but 1 in exact arithmetic.
Times are seconds as floats. The name of every field carries its unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from pytest_gpucap.declared_numbers import (
    LARGEST,
    MOST_STARTS,
    MOST_TOKENS,
    Number,
    RequirementError,
    duration_s,
    exact,
    headroom,
    positive,
    proper_share,
    share,
    starts,
    tokens,
    whole,
)
from pytest_gpucap.slo import (
    GOODPUT,
    GoodputLimit,
    LatencyLimit,
    LatencyPercentile,
    Limit,
    Metric,
    Slo,
    Threshold,
    declared_limits,
    good_thresholds,
    goodput_percent,
    limited_percentile,
)
from pytest_gpucap.workload import USUAL_OUTPUT, OwnPrompts, RecordedSessions, Sessions, Workload, too_long
from pytest_gpucap.workload_parts import (
    BASE_MODEL,
    ApiKind,
    ArrivalKind,
    Arrivals,
    ImageSize,
    Length,
    LengthKind,
    Wording,
)

__all__ = [
    "BASE_MODEL",
    "GOODPUT",
    "LARGEST",
    "MOST_STARTS",
    "MOST_TOKENS",
    "USUAL_OUTPUT",
    "ApiKind",
    "ArrivalKind",
    "Arrivals",
    "GoodputLimit",
    "ImageSize",
    "LatencyLimit",
    "LatencyPercentile",
    "Length",
    "LengthKind",
    "Limit",
    "Metric",
    "Number",
    "OwnPrompts",
    "RecordedSessions",
    "Requirement",
    "RequirementError",
    "Sessions",
    "Slo",
    "Threshold",
    "Wording",
    "Workload",
    "declared_limits",
    "duration_s",
    "exact",
    "good_thresholds",
    "goodput_percent",
    "headroom",
    "limited_percentile",
    "positive",
    "proper_share",
    "share",
    "starts",
    "tokens",
    "too_long",
    "whole",
]


@dataclass(frozen=True, slots=True)
class Requirement:
    """What the budget must carry: ``ceil(qps * headroom / rate_per_replica) * gpus_per_replica <= gpus``.

    Attributes:
        name: of the test, for messages and reports.
        qps: requests per second that the budget must carry, all GPUs together.
        gpus: the budget.
        headroom: factor on `qps` for peaks and failures.
        gpus_per_replica: GPUs that one server occupies.
        workload: the shape of the requests.
        slo: the limits that they must keep.
    """

    name: str
    qps: Fraction
    gpus: int
    headroom: Fraction = Fraction(13, 10)
    gpus_per_replica: int = 1
    workload: Workload = field(default_factory=Workload)
    slo: Slo = Slo()  # noqa: RUF009 - it is frozen
    fleet: int = 1
    """Replicas that are measured together."""
    lost: int = 0
    """Of these, how many were lost meanwhile and are counted all the same."""
    efficiency: Fraction = Fraction(1)
    """Share of its own rate that each replica keeps where all of the budget's replicas serve. It is for one replica
    that is measured alone; of a fleet the measured rate holds it already."""

    @property
    def replicas(self) -> int:
        """Replicas that fit the budget."""
        return self.gpus // self.gpus_per_replica

    @property
    def design_rate(self) -> Fraction:
        """The rate (requests a second) that one replica must sustain so that the budget holds.

        Of a fleet it is each replica's share. Of one replica that is measured alone it is what the replica must sustain
        alone, to be left with its share where all serve.
        """
        return self.qps * self.headroom / (self.replicas * self.efficiency)

    @property
    def driven_rate(self) -> Fraction:
        """The rate that all replicas under load must sustain together."""
        return self.design_rate * self.fleet

    @property
    def under_load(self) -> str:
        """What is driven, with its verb."""
        if self.fleet == 1:
            return "one replica sustains"
        serving = f"{self.fleet - self.lost} of {self.fleet}" if self.lost else f"{self.fleet}"
        return f"{serving} replicas together sustain"
