"""GPUs from a rate, in exact arithmetic.

``ceil(11 * 1.1 / 12.1)`` is 2 in floats and 1 in truth, so every factor is taken as the exact fraction of its decimal
text and only the last step rounds, upwards.
"""

from __future__ import annotations

import math

from pytest_gpucap.capacity.results import Interval
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


def gpus_for_rate(requirement: Requirement, rate_rps: float) -> int:
    """GPUs that `requirement` needs when one replica sustains the measured `rate_rps`."""
    return gpus_required(
        requirement.qps, requirement.headroom, f"{rate_rps:.{RATE_DIGITS}g}", requirement.gpus_per_replica
    )


def gpus_interval(requirement: Requirement, rate: Interval) -> tuple[int, int]:
    """GPUs from the high and from the low end of the measured rate: (fewest, most)."""
    return gpus_for_rate(requirement, rate.high), gpus_for_rate(requirement, rate.low)
