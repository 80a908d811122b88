"""Alarm rules to compare: each is shown one night after the other, and may measure a second run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from nights import LEVEL_RPS, Nights  # type: ignore[import-not-found,unused-ignore]
from scipy import stats

from pytest_gpucap.history.detection import ChangeDetector, change_points
from pytest_gpucap.history.detection import Rule as Thresholds
from pytest_gpucap.results.trend import AlarmState

Measure = Callable[[], float]


class Rule(Protocol):
    """Returns "drop" or "rise" on the night that raises the alarm, and starts anew from there."""

    def night(self, number: int, measure: Measure, /) -> str | None:
        """Take the night's run."""


class Ours:
    """The plugin's."""

    def __init__(self, thresholds: Thresholds, *, confirm: bool) -> None:
        self._detector, self._confirm = ChangeDetector(thresholds), confirm

    def night(self, number: int, measure: Measure) -> str | None:
        """See `Rule`."""
        state = self._detector.add(measure(), number)
        if self._confirm and state is AlarmState.DROP_SUSPECTED:
            state = self._detector.add(measure(), number)
        return {AlarmState.DROP: "drop", AlarmState.RISE: "rise"}.get(state)


class OneRun:
    """One run against the median of the last ten: lower by a fixed share, and with `tail` also by a t test."""

    def __init__(self, share: float, *, tail: float | None, confirm: bool) -> None:
        self._floor, self._tail, self._confirm = math.log(1 - share), tail, confirm
        self._logs: list[float] = []

    def night(self, _number: int, measure: Measure) -> str | None:
        """See `Rule`."""
        log = math.log(measure())
        alarm = self._low(log) and not (self._confirm and not self._low(math.log(measure())))
        self._logs = [*self._logs, log][-10:]
        if alarm:
            self._logs = []
        return "drop" if alarm else None

    def _low(self, log: float) -> bool:
        if len(self._logs) < 10 or log - float(np.median(self._logs)) > self._floor:
            return False
        if self._tail is None:
            return True
        sd = float(np.std(self._logs, ddof=1)) * math.sqrt(1.1)
        return (log - float(np.mean(self._logs))) / sd < float(stats.t.ppf(self._tail, 9))


class Cusum:
    """Two-sided CUSUM: k 0.5, clipped at 4 sd. It is told the true level and noise, or learns them from 60 nights."""

    def __init__(self, sd: float | None, h: float = 5.0) -> None:
        self._sd, self._h = sd, h
        self._logs: list[float] = []
        self._high = self._low = 0.0

    def night(self, _number: int, measure: Measure) -> str | None:
        """See `Rule`."""
        self._logs.append(math.log(measure()))
        level, sd = math.log(LEVEL_RPS), self._sd
        if sd is None:
            if len(self._logs) <= 30:
                return None
            # Without the last ten, which may already have changed.
            known = np.array(self._logs[-70:-10])
            level = float(np.median(known))
            sd = float(stats.median_abs_deviation(known, scale="normal"))
        z = min(max((self._logs[-1] - level) / sd, -4), 4)
        self._high, self._low = max(0.0, self._high + z - 0.5), max(0.0, self._low - z - 0.5)
        if max(self._high, self._low) < self._h:
            return None
        found = "rise" if self._high > self._low else "drop"
        self._high = self._low = 0.0
        if self._sd is None:
            self._logs = self._logs[-10:]
        return found


class Looking:
    """A change-point search over the last 100 nights, every night.

    A change is an alarm unless one in the same direction was already found within five nights of it: places move a
    little with every night.
    """

    def __init__(self, search: Callable[[list[float]], list[int]]) -> None:
        self._search = search
        self._rates: list[float] = []
        self._seen: list[tuple[int, str]] = []

    def night(self, _number: int, measure: Measure) -> str | None:
        """See `Rule`."""
        self._rates.append(measure())
        begin = max(0, len(self._rates) - 100)
        window = self._rates[begin:]
        found = self._search(window)
        new = []
        for before, index, after in zip([0, *found], found, [*found[1:], len(window)], strict=False):
            kind = "drop" if np.mean(window[index:after]) < np.mean(window[before:index]) else "rise"
            if all(abs(begin + index - old) > 5 or kind != known for old, known in self._seen):
                new.append((begin + index, kind))
        self._seen += new
        return new[-1][1] if new else None


def _otava(rates: list[float]) -> list[int]:
    # Needs: pip install --no-deps apache-otava==0.8.0
    from otava.analysis import compute_change_points  # type: ignore[import-not-found,unused-ignore]

    found, _ = compute_change_points(list(rates), window_len=50, max_pvalue=0.001, min_magnitude=0.0)
    return [int(each.index) for each in found]


def _segmentation(rates: list[float]) -> list[int]:
    return change_points(np.log(rates))


RULES: dict[str, Callable[[Nights], Rule]] = {
    "5% under the median of 10": lambda _: OneRun(0.05, tail=None, confirm=False),
    "the same, confirmed": lambda _: OneRun(0.05, tail=None, confirm=True),
    "3% under it and t at 0.5%": lambda _: OneRun(0.03, tail=0.005, confirm=False),
    "3% and t, confirmed": lambda _: OneRun(0.03, tail=0.005, confirm=True),
    "CUSUM, told level and sd": lambda nights: Cusum(nights.sd),
    "the same with h 7": lambda nights: Cusum(nights.sd, 7.0),
    "CUSUM, learning them": lambda _: Cusum(None),
    "Otava 0.8, p 0.001": lambda _: Looking(_otava),
    "segmentation": lambda _: Looking(_segmentation),
    "ours, no second run": lambda _: Ours(Thresholds(), confirm=False),
    "ours": lambda _: Ours(Thresholds(), confirm=True),
}
"""Name in the table -> a new rule for nights of that kind, whose noise one of the rules is told."""
