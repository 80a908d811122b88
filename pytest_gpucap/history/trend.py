"""The trend of one series: its levels, where they changed, what else changed there, and what the alarm says now."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.history.detection import ChangeDetector, Rule, change_points, change_range, despiked, run_sd
from pytest_gpucap.history.figures import figures_of, rule_of
from pytest_gpucap.history.nightly import NightlySeries, series_of
from pytest_gpucap.history.store import Run
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.trend import LevelChange, Segment, Trend, lower_is_better

_CONFIDENCE: Final = 0.95
"""Of every interval here, and of the places where a change may have begun."""
_Z: Final = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
_SEARCHED: Final = 0.995
"""What else changed is looked for at all places that are this probable together: missing a cause costs more than naming
one too many."""


def trends_of(runs: Iterable[Run], rule: Rule | None = None) -> list[Trend]:
    """The trend of every series in these runs: of rates, then of limits beside the rate."""
    runs = list(runs)
    found, _ = series_of(runs)
    return [trend_of(series, rule) for series in [*found, *figures_of(runs)]]


def trend_of(series: NightlySeries, rule: Rule | None = None) -> Trend:
    """The trend of one series."""
    judged = [index for index, point in enumerate(series.points) if point.judged]
    if rule is None and series.figure is not None:
        rule = rule_of(series.figure)
    logs = np.log([series.points[index].rate.value + series.floor for index in judged])
    detector = ChangeDetector(rule)
    for index in judged:
        point = series.points[index]
        detector.add(point.rate.value + series.floor, point.night)
    levels = _levels(logs, {alarm.since: alarm.index for alarm in detector.alarms}, detector.rule)
    segments = _segments(levels, judged, len(series.points), series.floor)
    changes = _changes(levels, judged, series)
    suspected = detector.suspected_since
    return Trend(
        test=series.test,
        name=series.name,
        kind=series.kind,
        gpu_class=series.gpu_class,
        model=series.model,
        workload=series.workload,
        simulated=series.simulated,
        run_sd=levels.sd,
        state=detector.state,
        suspected_since=None if suspected is None else judged[suspected],
        standing=_standing(levels, changes, worse=1 if lower_is_better(series.figure) else -1),
        points=series.points,
        segments=segments,
        changes=changes,
        figure=series.figure,
        start=series.start,
        imported=series.imported,
    )


@dataclass(frozen=True, slots=True)
class _Levels:
    """The judged runs, cut into levels.

    Attributes:
        logs: logarithms of the rates, shape (runs,), outliers clipped.
        sd: run-to-run standard deviation of the logarithms.
        confirmed: first run of every level but the first -> the run that confirmed the change by the alarm; None where
            only the search found it.
    """

    logs: Floats
    sd: float
    confirmed: dict[int, int | None]

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """First run of every level, and one past its last."""
        return list(itertools.pairwise([0, *self.confirmed, self.logs.size]))


def _levels(logs: Floats, alarms: Mapping[int, int], rule: Rule) -> _Levels:
    """The levels that the search and the alarm see together.

    Args:
        logs: logarithms of the judged rates, shape (runs,).
        alarms: first run of a new level -> the run at which the alarm confirmed it.
        rule: of the alarm.
    """
    smooth, sd = despiked(logs, rule), run_sd(logs, rule)
    searched = change_points(logs, rule)
    return _Levels(smooth, sd, _kept(smooth, sd, _merged(searched, alarms), firm=searched))


def _segments(levels: _Levels, judged: Sequence[int], points: int, floor: float) -> tuple[Segment, ...]:
    # Points that are not judged belong to the level of the judged one before them.
    starts = [0, *(judged[index] for index in levels.confirmed), points]
    return tuple(
        Segment(start, stop, _level(levels.logs[first:last], levels.sd, floor))
        for (start, stop), (first, last) in zip(itertools.pairwise(starts), levels.bounds, strict=True)
        if last > first
    )


def _changes(levels: _Levels, judged: Sequence[int], series: NightlySeries) -> tuple[LevelChange, ...]:
    changes = []
    for ((start, index), (_, stop)), confirmed in zip(
        itertools.pairwise(levels.bounds), levels.confirmed.values(), strict=True
    ):
        around = (index, start, stop, levels.sd)
        earliest, latest = change_range(levels.logs, *around, _CONFIDENCE)
        first, last = change_range(levels.logs, *around, _SEARCHED)
        point = series.points[judged[index]]
        changes.append(
            LevelChange(
                index=judged[index],
                earliest=judged[earliest],
                latest=judged[latest],
                ratio=_ratio(levels.logs[start:index], levels.logs[index:stop], levels.sd),
                confirmed=None if confirmed is None else judged[confirmed],
                changed=series.changed_between(judged[first - 1], judged[last]),
                when=point.when,
                file=point.file,
            )
        )
    return tuple(changes)


_SAME: Final = 5
"""A change that the search found and one that the alarm confirmed are the same within this many runs."""
_GONE: Final = 3.0
"""A change that only the alarm saw was a false alarm if the runs since leave its z below this."""
_FRESH: Final = 5
"""A confirmed change is kept for this many runs, whatever they show."""


def _merged(found: Sequence[int], alarms: Mapping[int, int]) -> dict[int, int | None]:
    """First runs of new levels -> the run that confirmed each. The alarm sees a new level before the search does."""
    places: dict[int, int | None] = dict.fromkeys(found)
    for since, at in alarms.items():
        near = [each for each in places if abs(each - since) <= _SAME and places[each] is None]
        places[min(near, key=lambda each: abs(each - since)) if near else since] = at
    return dict(sorted(places.items()))


def _kept(logs: Floats, sd: float, places: dict[int, int | None], *, firm: Sequence[int]) -> dict[int, int | None]:
    """The places without the false alarms; the weakest is removed first, and the others are then judged anew."""
    while True:
        bounds = [0, *places, logs.size]
        weak = {}
        for before, index, after in zip(bounds, bounds[1:], bounds[2:], strict=False):
            at = places[index]
            if index not in firm and at is not None and at < logs.size - _FRESH:
                step = logs[index:after].mean() - logs[before:index].mean()
                z = abs(step) / (sd * math.sqrt(1 / (index - before) + 1 / (after - index)))
                if z < _GONE:
                    weak[index] = z
        if not weak:
            return places
        weakest = min(weak, key=lambda index: weak[index])
        places = {index: at for index, at in places.items() if index != weakest}


def _level(logs: Floats, sd: float, floor: float) -> Interval:
    half = _Z * sd / math.sqrt(logs.size)
    middle = float(logs.mean())
    value, low, high = (max(0.0, math.exp(end) - floor) for end in (middle, middle - half, middle + half))
    return Interval(value, low, high, _CONFIDENCE)


def _ratio(before: Floats, after: Floats, sd: float) -> Interval:
    half = _Z * sd * math.sqrt(1 / before.size + 1 / after.size)
    step = float(after.mean() - before.mean())
    return Interval(math.exp(step), math.exp(step - half), math.exp(step + half), _CONFIDENCE)


def _standing(levels: _Levels, changes: Sequence[LevelChange], *, worse: int) -> int | None:
    """Index of the newest confirmed change to the worse of which more than half is still there.

    Args:
        levels: the runs, cut.
        changes: between the levels.
        worse: 1 where a rise is worse, -1 where a drop is.
    """
    means = [float(levels.logs[first:last].mean()) for first, last in levels.bounds if last > first]
    for number in range(len(changes) - 1, -1, -1):
        step = math.log(changes[number].ratio.value)
        if changes[number].confirmed is None or step * worse <= 0:
            continue
        if (means[-1] - means[number] - step / 2) * worse > 0:
            return number
    return None
