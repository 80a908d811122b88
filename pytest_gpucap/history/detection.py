"""Changes of level in a series of rates: the nightly alarm, and the search over a whole history.

**The alarm** is a sequential test. It finds drops that no single night shows, with a known rate of false alarms. After
every run it compares the runs since any possible change with those before it. It is a generalised likelihood ratio test
with unknown means: z(tau) = (mean before - mean after) / (sd sqrt(1/n_before + 1/n_after)), the largest over all tau
(Siegmund and Venkatraman, Annals of Statistics 23, 1995; windowed as in Lai, IEEE Transactions on Information Theory
44, 1998). Unlike a CUSUM, the test assumes no size of drop, and it allows for the error of the old level.

Three rules keep false alarms away. Residuals are clipped, so an outlier counts as little more than a bad night. A large
z only raises a suspicion: z must exceed a higher threshold after the next run, which is best made at once, from a fresh
server. And z must still be large without the night that contributes most.

**The search** finds where the level changed over the whole history, and how certain each place is. It is the optimal
segmentation for squared errors with a penalty for every change (`segmentation.py`). Apache Otava answers the same
question. It was measured beside this one and left out: it installs 40 packages, among them clients of BigQuery,
PostgreSQL and Slack, and pins NumPy to 2.2.

``benchmarks/history/RESULTS.md`` has the figures, also of other rules.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.history.segmentation import level_starts
from pytest_gpucap.results.trend import AlarmState


@dataclass(frozen=True, slots=True)
class Rule:
    """Thresholds and memory of the alarm. The published figures are for the defaults.

    Attributes:
        suspect_z: z from which a change is suspected.
        alarm_z: z from which the next run confirms a suspected change.
        rest_z: the least z without the night that contributes most.
        clip_sd: residuals are clipped at this many standard deviations.
        newest: a change is looked for among this many newest runs.
        reference: the old level is the mean of at most this many runs before a change; more would let slow drift in.
        quiet: runs that a level needs before anything is compared with it.
        prior_sd: run-to-run standard deviation (of the logarithm of the rate) assumed before the history shows its own.
        prior_runs: how many runs of evidence that assumption counts as.
    """

    suspect_z: float = 2.0
    alarm_z: float = 3.65
    rest_z: float = 2.5
    clip_sd: float = 2.25
    newest: int = 60
    reference: int = 100
    quiet: int = 10
    prior_sd: float = 0.017
    prior_runs: int = 10


@dataclass(frozen=True, slots=True)
class Alarm:
    """One confirmed change.

    Attributes:
        kind: `AlarmState.DROP` or `AlarmState.RISE`.
        index: the run at which it was confirmed, from 0.
        since: the first run of the new level, as estimated at that run.
        z: the test's statistic at that run.
    """

    kind: AlarmState
    index: int
    since: int
    z: float


_CONFIRMED: Final = {AlarmState.DROP_SUSPECTED: AlarmState.DROP, AlarmState.RISE_SUSPECTED: AlarmState.RISE}


class ChangeDetector:
    """The alarm over one series: takes runs one by one and says what they show.

    A night's run and its confirming run share a night.
    """

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule or Rule()
        self.state = AlarmState.LEARNING
        self.alarms: list[Alarm] = []
        self._logs: list[float] = []
        self._nights: list[Hashable] = []
        self._start = 0
        """First run since the last confirmed change."""
        self._first = 0
        """First run of the new level, where a change is suspected."""

    @property
    def suspected_since(self) -> int | None:
        """The run from which a change is suspected; None where none is."""
        return self._first if self.state in _CONFIRMED else None

    def add(self, rate: float, night: Hashable) -> AlarmState:
        """Add one run.

        Args:
            rate: above 0, in any unit.
            night: equal for the runs of one night.

        Returns:
            The state after this run. `AlarmState.DROP` and `AlarmState.RISE` only at the run that confirms them.
        """
        self._logs.append(math.log(rate))
        self._nights.append(night)
        self.state = self._judge(suspected=self.state)
        if self.state in {AlarmState.DROP, AlarmState.RISE}:
            self._start = self._first
        return self.state

    def _judge(self, suspected: AlarmState) -> AlarmState:
        rule = self.rule
        remembered = max(0, len(self._logs) - rule.newest - rule.reference)
        logs = np.array(self._logs[remembered:])
        sd = run_sd(logs, rule)
        level = logs[max(0, self._start - remembered) :]
        if level.size <= rule.quiet:
            return AlarmState.LEARNING
        residuals = _residuals(level, sd, rule)
        sign, first, z = _largest(residuals, rule)
        if z < rule.suspect_z:
            return AlarmState.QUIET
        self._first = len(self._logs) - level.size + first
        suspicion = AlarmState.DROP_SUSPECTED if sign < 0 else AlarmState.RISE_SUSPECTED
        if suspected is suspicion and z >= rule.alarm_z and self._stands(residuals, first, sign):
            self.alarms.append(Alarm(_CONFIRMED[suspicion], len(self._logs) - 1, self._first, z))
            return _CONFIRMED[suspicion]
        return suspicion

    def _stands(self, residuals: Floats, first: int, sign: int) -> bool:
        """Whether z is still large enough without the night that contributes most."""
        before = residuals[max(0, first - self.rule.reference) : first]
        shifts = sign * (residuals[first:] - before.mean())
        by_night: dict[Hashable, list[float]] = {}
        for shift, night in zip(shifts, self._nights[-len(shifts) :], strict=True):
            by_night.setdefault(night, []).append(float(shift))
        loudest = max(by_night.values(), key=sum)
        left = len(shifts) - len(loudest)
        if left == 0:
            return False
        rest = (float(shifts.sum()) - sum(loudest)) / left
        return rest / math.sqrt(1 / left + 1 / len(before)) >= self.rule.rest_z


_NORMAL_MEDIAN_STEP: Final = 0.9539
"""Median of |x - y| for two independent standard normal numbers: sqrt(2) times the normal's upper quartile."""
_CLIPPED_STEP: Final = 0.9398
"""Mean of min(z^2, (3/sqrt 2)^2) over a standard normal z: the share of their square that clipped steps keep."""


def run_sd(logs: Floats, rule: Rule | None = None) -> float:
    """Run-to-run standard deviation of the logarithm of the rate.

    Estimated from the steps between neighbouring runs, because a change of level affects only one of them. Steps are
    clipped against outliers. `Rule.prior_sd` counts as `Rule.prior_runs` runs: a few runs that happen to agree are no
    proof of precision.
    """
    rule = rule or Rule()
    steps = np.abs(np.diff(logs))
    if not steps.size:
        return rule.prior_sd
    most = 3 * max(float(np.median(steps)) / _NORMAL_MEDIAN_STEP, 0.3 * rule.prior_sd)
    own = float(np.square(np.minimum(steps, most)).sum()) / 2 / _CLIPPED_STEP
    return math.sqrt((rule.prior_runs * rule.prior_sd**2 + own) / (rule.prior_runs + steps.size))


def _residuals(logs: Floats, sd: float, rule: Rule) -> Floats:
    """Distances from the usual level in standard deviations, clipped."""
    # The newest runs may be on a new level, so they are left out where there are enough others.
    settled = logs if logs.size < 2 * rule.quiet else logs[: max(logs.size - 8, rule.quiet)]
    clipped: Floats = np.clip((logs - np.median(settled)) / sd, -rule.clip_sd, rule.clip_sd)
    return clipped


def _largest(residuals: Floats, rule: Rule) -> tuple[int, int, float]:
    """(sign of the change, first run of the new level, z) of the place with the largest z."""
    sums = np.concatenate([[0.0], np.cumsum(residuals)])
    first = np.arange(max(rule.quiet, residuals.size - rule.newest), residuals.size)
    oldest = np.maximum(0, first - rule.reference)
    after, before = residuals.size - first, first - oldest
    shifts = (sums[-1] - sums[first]) / after - (sums[first] - sums[oldest]) / before
    z = shifts / np.sqrt(1 / after + 1 / before)
    best = int(np.argmax(np.abs(z)))
    return (1 if z[best] > 0 else -1), int(first[best]), abs(float(z[best]))


PENALTY: Final = 2.5
"""Squared z that every further change must add, in units of ln(runs)."""
SHORTEST: Final = 3
"""Runs between two changes; two outliers in a row are not a level."""
_REACH: Final = 60
"""A change is placed within this many runs around its most likely place: many unlikely places would add up."""
_NEIGHBOURS: Final = 3
_CLIP_SD: Final = 2.5


def change_points(logs: Floats, rule: Rule | None = None) -> list[int]:
    """First runs of new levels, oldest first.

    Args:
        logs: logarithms of the rates, shape (runs,).
        rule: of the alarm.
    """
    if logs.size < 2 * SHORTEST:
        return []
    scaled = despiked(logs, rule) / run_sd(logs, rule)
    penalty = PENALTY * math.log(max(logs.size, 60))
    return level_starts(scaled, penalty=penalty, shortest=SHORTEST)


def despiked(logs: Floats, rule: Rule | None = None) -> Floats:
    """The logarithms, shape (runs,), clipped at 2.5 sd from the median of their neighbours; levels stay as they are."""
    reach = min(_NEIGHBOURS, logs.size - 1)
    if reach < 1:
        return logs
    padded = np.pad(logs, reach, mode="reflect")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)
    most = _CLIP_SD * run_sd(logs, rule)
    clipped: Floats = np.clip(logs, around - most, around + most)
    return clipped


def change_range(logs: Floats, index: int, start: int, stop: int, sd: float, confidence: float) -> tuple[int, int]:
    """Runs between which the change at `index` began: a credible set, with an equal prior for every place.

    Args:
        logs: logarithms of the rates, shape (runs,), outliers clipped.
        index: the change's most likely place.
        start: first run of the level before it.
        stop: one past the last run of the level after it.
        sd: run-to-run standard deviation of `logs`.
        confidence: of the set.

    Returns:
        The earliest and the latest first run of the new level.
    """
    start, stop = max(start, index - _REACH), min(stop, index + _REACH)
    part = logs[start:stop]
    first = np.arange(1, part.size)
    sums = np.cumsum(part)
    before = sums[first - 1] / first
    after = (sums[-1] - sums[first - 1]) / (part.size - first)
    # Twice the log likelihood ratio of a change there against none (normal, known sd).
    gain = np.square(after - before) / (1 / first + 1 / (part.size - first)) / sd**2
    weight = np.exp((gain - gain.max()) / 2)
    order = np.argsort(-weight)
    enough = int(np.searchsorted(np.cumsum(weight[order]) / weight.sum(), confidence)) + 1
    chosen = {*(int(first[each]) + start for each in order[:enough]), index}
    return min(chosen), max(chosen)
