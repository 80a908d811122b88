"""GPUs from the rate of one replica, in exact arithmetic.

With floats, ``ceil(11 * 1.1 / 12.1)`` gives 2. The right answer is 1. So every factor becomes the exact fraction of its
decimal text, and only the last step rounds, upwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_gpucap.requirement import Number, Requirement, positive, whole

RATE_DIGITS = 9
"""Significant digits kept of a measured rate. The digits of a float beyond these carry no information."""


def replicas_required(qps: Number, headroom: Number, rate: Number) -> int:
    """``ceil(qps * headroom / rate)``, exactly.

    Args:
        qps: requests per second to serve.
        headroom: factor on `qps` (R in the sizing guide).
        rate: requests per second that one replica sustains (T in the sizing guide).

    Raises:
        RequirementError: if one of them is not a number above zero.
    """
    return math.ceil(positive(qps, "qps") * positive(headroom, "headroom") / positive(rate, "rate"))


def gpus_required(
    qps: Number, headroom: Number, rate: Number, gpus_per_replica: Number = 1, efficiency: Number = 1
) -> int:
    """``ceil(qps * headroom / (rate * efficiency)) * gpus_per_replica``, exactly.

    ``gpus_required(10, 1.3, 3.85)`` is 4. `efficiency` is the share of `rate` that a replica keeps where all serve; 1
    assumes that replicas add up.

    Source of the formula: DeepSeek-R1-Distill-Qwen-1.5B sizing guide, 2026 (N = ceil(Q x R / T), R = 1.3).

    Raises:
        RequirementError: if one of the first three is not a number above zero, or if `gpus_per_replica` is not a whole
            number of at least 1.
    """
    kept = positive(rate, "rate") * positive(efficiency, "efficiency")
    return replicas_required(qps, headroom, kept) * whole(gpus_per_replica, "gpus_per_replica")


def largest_qps(gpus: Number, rate: Number, headroom: Number, gpus_per_replica: Number = 1) -> Fraction:
    """The largest target rate that a budget carries: ``replicas in the budget * rate / headroom``, exactly.

    It is the inverse of `gpus_required`. ``largest_qps(4, 3.85, 1.3)`` is 154/13, about 11.85 requests per second. A
    budget smaller than one replica carries 0.

    Raises:
        RequirementError: as `gpus_required`.
    """
    replicas = whole(gpus, "gpus") // whole(gpus_per_replica, "gpus_per_replica")
    return replicas * positive(rate, "rate") / positive(headroom, "headroom")


def headroom_left(qps: Number, gpus: Number, rate: Number, gpus_per_replica: Number = 1) -> Fraction:
    """The headroom that a budget really has: the rate that its replicas sustain over `qps`.

    Below 1, the budget does not carry the target rate. Below the planned headroom, it has too few GPUs.

    Raises:
        RequirementError: as `gpus_required`.
    """
    return largest_qps(gpus, rate, 1, gpus_per_replica) / positive(qps, "qps")


@dataclass(frozen=True, slots=True)
class ReplicaRate:
    """The requests per second that one replica sustains.

    Attributes:
        value: the rate itself.
        low, high: its interval; None if it has none.
        gpus_per_replica: GPUs that one replica occupies.
    """

    value: Number
    low: Number | None = None
    high: Number | None = None
    gpus_per_replica: int = 1

    @classmethod
    def of_floats(
        cls, value: float, low: float | None = None, high: float | None = None, gpus_per_replica: int = 1
    ) -> ReplicaRate:
        """From floats, each rounded by `decimal_text`."""
        return cls(
            decimal_text(value),
            None if low is None else decimal_text(low),
            None if high is None else decimal_text(high),
            gpus_per_replica,
        )


@dataclass(frozen=True, slots=True)
class GpuRange:
    """GPUs needed at a rate (`gpus`), at the high end of its interval (`fewest`) and at the low end (`most`)."""

    gpus: int
    fewest: int
    most: int


def gpu_range(rate: ReplicaRate, qps: Number, headroom: Number) -> GpuRange:
    """GPUs for one target rate. Without an interval, all three numbers are equal.

    Raises:
        RequirementError: as `gpus_required`.
    """
    ends = (rate.value, rate.value if rate.high is None else rate.high, rate.value if rate.low is None else rate.low)
    return GpuRange(*(gpus_required(qps, headroom, end, rate.gpus_per_replica) for end in ends))


def gpu_table(
    rates: Mapping[str, ReplicaRate], targets: Sequence[Number], headroom: Number
) -> dict[str, list[GpuRange]]:
    """GPUs by the name of a rate: one entry for each target rate, in their order.

    Raises:
        RequirementError: as `gpus_required`.
    """
    return {name: [gpu_range(rate, qps, headroom) for qps in targets] for name, rate in rates.items()}


def decimal_text(rate: float) -> str:
    """A measured rate as decimal text with `RATE_DIGITS` significant digits. Sizing takes this text as exact."""
    return f"{rate:.{RATE_DIGITS}g}"


def gpus_for_rate(requirement: Requirement, rate_rps: float) -> int:
    """GPUs that `requirement` needs if one replica sustains `rate_rps` requests per second."""
    return gpus_required(
        requirement.qps,
        requirement.headroom,
        decimal_text(rate_rps),
        requirement.gpus_per_replica,
        requirement.efficiency,
    )


def gpus_interval(requirement: Requirement, *, low_rps: float, high_rps: float) -> tuple[int, int]:
    """GPUs that `requirement` needs at the high and at the low end of a measured rate: (fewest, most)."""
    return gpus_for_rate(requirement, high_rps), gpus_for_rate(requirement, low_rps)
