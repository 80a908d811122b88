"""Two servers measured in alternation: the ratio of their rates from pairs of neighbouring windows.

A machine's drift moves both windows of a pair alike and is gone from their difference. What drift does within a pair
goes one way when the base comes first and the other way when the head does, so with the orders balanced (base, head,
head, base, ...) it cancels in the mean, and as a term of its own it is taken out of the scatter as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from pytest_gpucap.decisions.regression import decide
from pytest_gpucap.decisions.students_t import t_quantile
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval

LEAST_PAIRS: Final = 4
"""Two pairs of each order: the fewest that leave degrees of freedom beside the mean and the drift within a pair."""
MOST_PAIRS: Final = 16
"""Most pairs of a comparison. They take four minutes or more. What is undecided by then is so near to the allowed loss
that it would take many more to settle."""
LOOK_LEVEL: Final = 0.02
"""Two-sided level of every look at the evidence. There is a look after every second pair from `LEAST_PAIRS` on.
Although the first look that decides ends the comparison, the reported interval then holds at 95% or better
(`benchmarks/history/PAIRED.md`)."""
PAIR_START_SD: Final = 0.004
"""Standard deviation of ln(pace) between two starts of one server on one machine within minutes. Two nights differ by
more (`regression.START_SD`, which is of the rate), because clocks, temperature and host differ as well."""
ELASTICITY_ERROR: Final = 0.25
"""Relative standard error of the factor that turns a loss of pace into a loss of rate: the queue model's slope is known
to about a quarter."""
Z_95: Final = 1.96
"""Standard errors on either side of a 95% interval."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two neighbouring windows, one of each server.

    Attributes:
        base, head: ln of what each delivered, in any unit they share.
        base_first: which came first.
    """

    base: float
    head: float
    base_first: bool

    @property
    def difference(self) -> float:
        """Head over base, in the logarithm."""
        return self.head - self.base


@dataclass(frozen=True, slots=True)
class PaceDifference:
    """Mean difference of ln(pace), head over base.

    Attributes:
        difference: the estimate.
        error: its standard error, from the scatter of the pairs.
        freedom: degrees of freedom behind that.
    """

    difference: float
    error: float
    freedom: int

    @property
    def half_width(self) -> float:
        """Half the interval that one look is allowed."""
        return t_quantile(1 - LOOK_LEVEL / 2, self.freedom) * self.error


def pace_of(pairs: Sequence[Pair]) -> PaceDifference:
    """Least squares of difference = mean + order x drift + noise.

    Args:
        pairs: at least `LEAST_PAIRS`, as many of either order.

    Raises:
        ValueError: if they are too few, or the orders are not balanced.
    """
    first = [pair.difference for pair in pairs if pair.base_first]
    second = [pair.difference for pair in pairs if not pair.base_first]
    if len(pairs) < LEAST_PAIRS or len(first) != len(second):
        raise ValueError(f"needs {LEAST_PAIRS} pairs or more, half of them base first; got {len(first)}+{len(second)}")
    # Balanced, so both terms are orthogonal: what is left scatters about the mean of each order.
    squares = sum((value - fmean(group)) ** 2 for group in (first, second) for value in group)
    freedom = len(pairs) - 2
    return PaceDifference(fmean([*first, *second]), math.sqrt(squares / freedom / len(pairs)), freedom)


def ratio_from_pace(pace: PaceDifference, elasticity: float, starts: int = 1) -> Interval:
    """Ratio of the sustainable rates, head over base, with its 95% interval.

    Args:
        pace: of what both deliver with the same number of requests in flight.
        elasticity: relative loss of sustainable rate for a relative loss of pace (`Sustainable.elasticity`).
        starts: starts of each server behind it.
    """
    value = elasticity * pace.difference
    between = elasticity * math.sqrt(2.0 / starts) * PAIR_START_SD
    factor = ELASTICITY_ERROR * value if elasticity > 1 else 0.0
    half = math.hypot(elasticity * pace.half_width, Z_95 * between, Z_95 * factor)
    return Interval(math.exp(value), math.exp(value - half), math.exp(value + half))


def pairs_to_settle(pace: PaceDifference, pairs: int, elasticity: float, max_regression: float) -> int | None:
    """How many pairs more would settle an INCONCLUSIVE if the difference stays as it is; None where none would."""
    for more in range(2, 20 * MOST_PAIRS, 2):
        # The error falls with the square root of the pairs; the quantile tends to the normal's.
        narrower = PaceDifference(pace.difference, pace.error * math.sqrt(pairs / (pairs + more)), pace.freedom + more)
        if decide(ratio_from_pace(narrower, elasticity), max_regression) is not RegressionDecision.INCONCLUSIVE:
            return more
    return None
