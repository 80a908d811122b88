"""The nightly alarm: a sequential test that finds drops which no single night shows, with a known rate of false alarms.

After every run the nights since any possible change are compared with those before it: a generalised likelihood ratio
test with unknown means, z(tau) = (mean before - mean after) / (sd sqrt(1/n_before + 1/n_after)), largest over all tau
(Siegmund and Venkatraman, Annals of Statistics 23, 1995; windowed as in Lai, IEEE Transactions on Information Theory
44, 1998). Against a CUSUM it needs no size of drop to look for and counts that the old level is itself an estimate.

Three things keep false alarms away. Residuals are clipped, so an outlier counts as little more than a bad night. A
large z only raises a suspicion: the alarm needs the next run, best taken at once from a fresh server, to leave z above
a higher threshold. And the worst night alone may not make the case: without it, z must still be large.

Figures, against other rules: ``benchmarks/history/RESULTS.md``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rule:
    """Thresholds and memory of the alarm; the defaults are those that the published figures are for.

    Attributes:
        suspect_z: z from which a confirming run is wanted.
        alarm_z: z which the confirming run must leave standing.
        rest_z: z that must remain when the night that speaks loudest is left out.
        clip_sd: residuals count up to this many standard deviations.
        newest: how many runs back a change is looked for.
        reference: how many runs before a change its old level is taken from; more would let slow drift in.
        quiet: runs that a level needs before anything is compared with it.
        prior_sd: run-to-run standard deviation (of the logarithm of the rate) assumed before the history shows its own.
        prior_runs: how many runs of evidence that assumption is worth.
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


class AlarmState(StrEnum):
    """What the runs so far say."""

    LEARNING = "learning"
    """Too few runs since the last change to compare anything with."""
    QUIET = "quiet"
    DROP_SUSPECTED = "drop suspected"
    """A drop may have begun; run once more, from a fresh server, to confirm it."""
    RISE_SUSPECTED = "rise suspected"
    DROP = "drop"
    RISE = "rise"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One confirmed change.

    Attributes:
        kind: `AlarmState.DROP` or `AlarmState.RISE`.
        index: the run at which it was confirmed, counted from 0.
        since: the first run of the new level, as far as that was known then.
        z: the test's statistic then.
    """

    kind: AlarmState
    index: int
    since: int
    z: float


_CONFIRMED: Final = {AlarmState.DROP_SUSPECTED: AlarmState.DROP, AlarmState.RISE_SUSPECTED: AlarmState.RISE}


class Watch:
    """Runs go in one by one; what they say comes out.

    The runs of one night, its confirming run among them, share a night.
    """

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule or Rule()
        self.state = AlarmState.LEARNING
        self.alarms: list[Alarm] = []
        self._logs: list[float] = []
        self._nights: list[Hashable] = []
        self._start = 0

        self._first = 0

    @property
    def suspected_since(self) -> int | None:
        """The run from which a change is suspected; None where none is."""
        return self._first if self.state in _CONFIRMED else None

    def add(self, rate: float, night: Hashable) -> AlarmState:
        """Take one run in.

        Args:
            rate: what was measured, above 0, in any unit.
            night: what the runs of one night have in common.

        Returns:
            What all runs say now; `AlarmState.DROP` and `AlarmState.RISE` only at the run that confirms them.
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
        """Whether enough is left of the case without the night that speaks loudest for it."""
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
"""Mean of min(z^2, (3/sqrt 2)^2) over a standard normal z: what clipping steps at 3 sd takes from their square."""


def run_sd(logs: Floats, rule: Rule | None = None) -> float:
    """Run-to-run standard deviation of the logarithm of the rate.

    From the steps between neighbours, which a change of level touches once only; steps are clipped against outliers,
    and `Rule.prior_sd` counts as `Rule.prior_runs` runs, so that few runs that happen to agree prove no precision.
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
    # The newest runs may be those that changed; where there are enough others, the level is taken without them.
    settled = logs if logs.size < 2 * rule.quiet else logs[: max(logs.size - 8, rule.quiet)]
    clipped: Floats = np.clip((logs - np.median(settled)) / sd, -rule.clip_sd, rule.clip_sd)
    return clipped


def _largest(residuals: Floats, rule: Rule) -> tuple[int, int, float]:
    """(sign of the change, first run of the new level, z) where the case for a change is strongest."""
    sums = np.concatenate([[0.0], np.cumsum(residuals)])
    first = np.arange(max(rule.quiet, residuals.size - rule.newest), residuals.size)
    oldest = np.maximum(0, first - rule.reference)
    after, before = residuals.size - first, first - oldest
    shifts = (sums[-1] - sums[first]) / after - (sums[first] - sums[oldest]) / before
    z = shifts / np.sqrt(1 / after + 1 / before)
    best = int(np.argmax(np.abs(z)))
    return (1 if z[best] > 0 else -1), int(first[best]), abs(float(z[best]))
