"""GPUs from a rate, in exact arithmetic.

``ceil(11 * 1.1 / 12.1)`` is 2 in floats and 1 in truth, so every factor is taken as the exact fraction of its decimal
text and only the last step rounds, upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_gpucap.requirement import Number, Requirement, positive, whole

RATE_DIGITS = 9
"""Significant digits kept of a measured rate: a float's tail is no evidence, and 12.1 must stay 12.1."""


def replicas_required(qps: Number, headroom: Number, rate: Number) -> int:
    """``ceil(qps * headroom / rate)``, exactly.

    Args:
        qps: requests a second to serve.
        headroom: factor on top of it; 1.3 by default elsewhere (the sizing guide's R).
        rate: requests a second that one replica sustains (the guide's T).

    Raises:
        RequirementError: if one of them is not a number above zero.
    """
    return math.ceil(positive(qps, "qps") * positive(headroom, "headroom") / positive(rate, "rate"))


def gpus_required(qps: Number, headroom: Number, rate: Number, gpus_per_replica: Number = 1) -> int:
    """``ceil(qps * headroom / rate) * gpus_per_replica``, exactly: ``gpus_required(10, 1.3, 3.85) == 4``.

    Source of the formula: DeepSeek-R1-Distill-Qwen-1.5B sizing guide, 2026 (N = ceil(Q x R / T), R = 1.3).

    Raises:
        RequirementError: if one of the first three is not a number above zero, or the last no whole number from 1.
    """
    return replicas_required(qps, headroom, rate) * whole(gpus_per_replica, "gpus_per_replica")


def largest_qps(gpus: Number, rate: Number, headroom: Number, gpus_per_replica: Number = 1) -> Fraction:
    """The inverse: the largest target that a budget carries, ``replicas in the budget * rate / headroom``, exactly.

    ``largest_qps(4, 3.85, 1.3)`` is 154/13, about 11.85 requests a second; with less than one replica it is 0.

    Raises:
        RequirementError: as `gpus_required`.
    """
    replicas = whole(gpus, "gpus") // whole(gpus_per_replica, "gpus_per_replica")
    return replicas * positive(rate, "rate") / positive(headroom, "headroom")


def headroom_left(qps: Number, gpus: Number, rate: Number, gpus_per_replica: Number = 1) -> Fraction:
    """The factor on `qps` that a budget really has: what its replicas sustain over what is asked of them.

    Below 1 the budget does not even carry the target itself; below the headroom that was planned, N is too small.

    Raises:
        RequirementError: as `gpus_required`.
    """
    return largest_qps(gpus, rate, 1, gpus_per_replica) / positive(qps, "qps")


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate that one replica of something sustains, for a table: point and, where known, interval."""

    name: str
    value: Number
    low: Number | None = None
    high: Number | None = None
    gpus_per_replica: int = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """GPUs for one rate and one target: from the point, and from the interval's high and low end."""

    gpus: int
    fewest: int
    most: int


def table(rates: Sequence[Rate], targets: Sequence[Number], headroom: Number) -> dict[str, list[Cell]]:
    """GPUs by name of the rate, a cell for every target, in the order given.

    Raises:
        RequirementError: as `gpus_required`.
    """
    return {
        rate.name: [
            Cell(
                gpus_required(qps, headroom, rate.value, rate.gpus_per_replica),
                gpus_required(qps, headroom, rate.value if rate.high is None else rate.high, rate.gpus_per_replica),
                gpus_required(qps, headroom, rate.value if rate.low is None else rate.low, rate.gpus_per_replica),
            )
            for qps in targets
        ]
        for rate in rates
    }


def decimal_text(rate: float) -> str:
    """A measured rate as the decimal text that sizing takes it for: nine significant digits."""
    return f"{rate:.{RATE_DIGITS}g}"


def gpus_for_rate(requirement: Requirement, rate_rps: float) -> int:
    """GPUs that `requirement` needs when one replica sustains the measured `rate_rps`."""
    return gpus_required(requirement.qps, requirement.headroom, decimal_text(rate_rps), requirement.gpus_per_replica)


def gpus_interval(requirement: Requirement, *, low_rps: float, high_rps: float) -> tuple[int, int]:
    """GPUs from the high and from the low end of the measured rate: (fewest, most)."""
    return gpus_for_rate(requirement, high_rps), gpus_for_rate(requirement, low_rps)
