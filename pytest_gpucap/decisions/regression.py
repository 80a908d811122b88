"""Whether one server sustains less than another did: the ratio of two rates, its interval, and the decision.

All on logarithms. The interval of the ratio is built from both sides' own intervals, which need not be symmetric (the
method of variance estimates recovery: Zou & Donner, Statistics in Medicine 27, 2008; for ratios Donner & Zou 2012), and
from what one start of the server differs from the next, which no single measurement sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median
from typing import Final

from pytest_gpucap.decisions.students_t import t_quantile
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval

Z_95: Final = 1.96
"""Two-sided 95%: REGRESSED and IMPROVED need the interval to leave 1 out."""
Z_CONFIRMED: Final = 2.65
"""Two-sided 99.2%, for a regression that a second measurement must confirm: both together are then hardly ever
wrong."""
Z_SAME: Final = 1.645
"""One-sided 95%: SAME only has to rule out a loss that is larger than allowed."""
START_SD: Final = 0.012
"""Standard deviation of ln(rate) from one start of a server to the next: compilation, clocks, memory layout, host. A
measurement of a minute adds 1.2% of its own, which makes 1.7% from run to run, as nightly runs are planned for."""
MEDIAN_COST: Final = 1.2533
"""sqrt(pi / 2): standard error of a median over that of a mean, for normal noise. The median costs that, but one run in
fifty is far off, and a mean would follow it."""
MAD_TO_SD: Final = 1.4826
"""Standard deviation of normal noise over its median absolute deviation, which a few odd runs do not change."""
MAD_EFFICIENCY: Final = 0.37
"""Efficiency of the median absolute deviation against the standard deviation: degrees of freedom that each run
counts."""
LEAST_SCATTER: Final = 5
"""Fewest runs whose own scatter is taken into account: of fewer, it is mostly noise."""
MOST_RUNS: Final = 20
"""Most further measurements that are advised: nobody would run more."""


@dataclass(frozen=True, slots=True)
class ComparedRate:
    """One of the two rates of a comparison.

    Attributes:
        rate: with its own interval, which knows nothing of other starts.
        starts: starts of a server behind it, as far as their noise averages out (a median of n counts less than n);
            infinite where the interval itself contains the spread of the starts.
        repeat: how runs of this server repeat: their scatter over what their intervals and `START_SD` allow.
    """

    rate: Interval
    starts: float = 1.0
    repeat: float = 1.0

    def errors(self) -> tuple[float, float]:
        """Standard errors of ln(rate) downwards and upwards, starts included; infinite where an end is unknown."""
        between = START_SD / math.sqrt(self.starts)
        down, up = own_errors(self.rate)
        return math.hypot(down, between) * self.repeat, math.hypot(up, between) * self.repeat


def own_errors(rate: Interval) -> tuple[float, float]:
    """Standard errors of ln(rate) downwards and upwards that its interval stands for; infinite where it is open.

    An interval that is certain has none.
    """
    z = _z(rate.confidence)
    down = math.log(rate.value / rate.low) / z if rate.low > 0 else math.inf
    up = math.log(rate.high / rate.value) / z if math.isfinite(rate.high) else math.inf
    return max(down, 0.0), max(up, 0.0)


def _z(confidence: float) -> float:
    below = 0.5 + confidence / 2
    return NormalDist().inv_cdf(below) if below < 1 else math.inf


def mean_of(rates: Sequence[Interval]) -> ComparedRate:
    """Several measurements of one thing, each from its own start: their geometric mean."""
    value = math.exp(fmean(math.log(rate.value) for rate in rates))
    return ComparedRate(_around(value, rates, 1 / math.sqrt(len(rates))), starts=len(rates))


def head_of(rates: Sequence[Interval], base: ComparedRate, *, spread_known: bool) -> ComparedRate:
    """The mean of this run's measurements. They repeat as the runs of the baseline do.

    With `spread_known`, each is of several starts, and its interval contains their spread as it was seen.
    """
    mean = mean_of(rates)
    return ComparedRate(mean.rate, math.inf) if spread_known else ComparedRate(mean.rate, mean.starts, base.repeat)


def median_of(rates: Sequence[Interval]) -> ComparedRate:
    """Runs of many nights: their median, which an odd night does not move.

    From `LEAST_SCATTER` runs on they show how well they repeat. Where they scatter more than their intervals and
    `START_SD` allow, the host is noisier than assumed. Where they scatter less, a part of their intervals is the same
    error in every run (of the model, of an extrapolation), which a ratio does not have.
    """
    if len(rates) < 3:  # noqa: PLR2004 - a median of two is their mean
        return mean_of(rates)
    logs = [math.log(rate.value) for rate in rates]
    starts = len(rates) / MEDIAN_COST**2
    own = median(max(own_errors(rate)) for rate in rates)
    repeat = 1.0
    if len(rates) >= LEAST_SCATTER and math.isfinite(own):
        middle = median(logs)
        scatter = MAD_TO_SD * median(abs(each - middle) for each in logs)
        repeat = _repeat(scatter, math.hypot(own, START_SD), len(rates))
    return ComparedRate(_around(math.exp(median(logs)), rates, 1 / math.sqrt(starts)), starts, repeat)


def _repeat(scatter: float, allowed: float, runs: int) -> float:
    """See `ComparedRate.repeat`; a scatter below the allowed one counts only as far as so few runs can tell it."""
    if scatter > allowed:
        return scatter / allowed
    widened = scatter * t_quantile(0.975, MAD_EFFICIENCY * runs) / Z_95
    return max(START_SD, min(widened, allowed)) / allowed


def _around(value: float, rates: Sequence[Interval], share: float) -> Interval:
    """An interval about `value` with the root mean square error of `rates`, times `share`."""
    downs, ups = zip(*(own_errors(rate) for rate in rates), strict=True)
    down, up = (math.sqrt(fmean(error**2 for error in errors)) * share for errors in (downs, ups))
    return Interval(value, value * math.exp(-Z_95 * down), value * math.exp(Z_95 * up))


def ratio_of(base: ComparedRate, head: ComparedRate) -> Interval:
    """Head over base, with its 95% interval."""
    base_down, base_up = base.errors()
    head_down, head_up = head.errors()
    value = head.rate.value / base.rate.value
    return Interval(
        value,
        value * math.exp(-Z_95 * math.hypot(head_down, base_up)),
        value * math.exp(Z_95 * math.hypot(head_up, base_down)),
    )


def decide(ratio: Interval, max_regression: float) -> RegressionDecision:
    """The decision on a ratio of rates with its 95% interval, for a loss of `max_regression` (0.05: 5%) allowed."""
    limit = 1.0 - max_regression
    if ratio.value < limit and ratio.high < 1:
        return RegressionDecision.REGRESSED
    if ratio.value * limit > 1 and ratio.low > 1:
        return RegressionDecision.IMPROVED
    down, _ = own_errors(ratio)
    if ratio.value * math.exp(-Z_SAME * down) > limit:
        return RegressionDecision.SAME
    return RegressionDecision.INCONCLUSIVE


def confirmed(
    base: ComparedRate, first: Interval, second: Interval, max_regression: float, *, spread_known: bool = False
) -> bool:
    """Whether a second measurement, from a fresh start, confirms a first that said REGRESSED.

    The second, which was not chosen for being low, must lie below the limit by itself: one odd start is no loss. And
    both together must leave 1 out by more than one measurement has to. Asking the second alone for the first's 95%
    instead would let a base that was lucky be wrong twice, and would lose as many true losses (docs/baselines.md).
    """
    limit = 1.0 - max_regression
    ratio = ratio_of(base, head_of([first, second], base, spread_known=spread_known))
    _, up = own_errors(ratio)
    excluded = ratio.value * math.exp(Z_CONFIRMED * up) < 1
    return second.value < limit * base.rate.value and ratio.value < limit and excluded


def runs_to_settle(base: ComparedRate, head: ComparedRate, max_regression: float) -> int | None:
    """How many measurements more, each from a fresh start, would settle an INCONCLUSIVE if the ratio stays as it is.

    None where none would, or more than `MOST_RUNS`: the ratio sits too near the limit, or the baseline itself is too
    uncertain and has to be measured again.
    """
    distance = math.log(head.rate.value / base.rate.value) - math.log(1.0 - max_regression)
    if distance > 0:  # would become SAME
        wanted, fixed, moving = distance / Z_SAME, base.errors()[1], head.errors()[0]
    else:  # would become REGRESSED
        wanted = -math.log(head.rate.value / base.rate.value) / Z_95
        fixed, moving = base.errors()[0], head.errors()[1]
    if wanted <= fixed or not math.isfinite(moving):
        return None
    runs = head.starts if math.isfinite(head.starts) else 1.0
    needed = math.ceil(runs * (moving**2 / (wanted**2 - fixed**2) - 1) + 1e-9)
    return max(1, needed) if needed <= MOST_RUNS else None
