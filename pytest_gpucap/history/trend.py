"""The trend of one series: its levels, where they changed, what else changed there, and what the alarm says now."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from pytest_gpucap.history.alarm import AlarmState, Rule, Watch, run_sd
from pytest_gpucap.history.changes import change_points, despiked, place
from pytest_gpucap.history.nightly import NightlySeries, Point, changed_between, series_of
from pytest_gpucap.history.store import Run
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.record import plain

Floats = npt.NDArray[np.float64]

CONFIDENCE: Final = 0.95
"""Of every interval here, and of the places where a change may have begun."""
SEARCHED: Final = 0.995
"""What else changed is looked for at all places that are this probable together: a cause missed costs more than one
too many named."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Runs on one level.

    Attributes:
        start, stop: its points are ``series.points[start:stop]``.
        rate: the level, req/s, with its interval.
    """

    start: int
    stop: int
    rate: Interval


@dataclass(frozen=True, slots=True)
class LevelChange:
    """One change of level.

    Attributes:
        index: the point at which it most likely began.
        earliest, latest: points between which it began, with 95% confidence.
        ratio: level after over level before.
        confirmed: the point at which the alarm was confirmed; None where it was found by looking back only.
        changed: what else changed where it may have begun (99.5% confidence), such as ``server: vLLM 0.26.0 -> vLLM
            0.27.0``.
    """

    index: int
    earliest: int
    latest: int
    ratio: Interval
    confirmed: int | None
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trend:
    """What the history of one series says.

    Attributes:
        series: with its points, oldest first; all indices count these.
        segments: levels, oldest first; they cover all points. Empty where no point can be judged.
        changes: between the segments, oldest first: ``changes[i].index == segments[i + 1].start``.
        run_sd: run-to-run standard deviation of the logarithm of the rate (0.017 is 1.7%).
        state: of the alarm after the newest run.
        suspected_since: the point from which a change is suspected; None where none is.
        standing: the drop that was confirmed and has not been made good since; None where there is none.
    """

    series: NightlySeries
    segments: tuple[Segment, ...]
    changes: tuple[LevelChange, ...]
    run_sd: float
    state: AlarmState
    suspected_since: int | None
    standing: LevelChange | None

    @property
    def points(self) -> tuple[Point, ...]:
        """The runs, oldest first."""
        return self.series.points


def trends(runs: Iterable[Run], rule: Rule | None = None) -> list[Trend]:
    """The trend of every series in these runs.

    Raises:
        MissingLibraryError: without the extra ``history``.
    """
    found, _ = series_of(runs)
    return [trend(series, rule) for series in found]


def trend(series: NightlySeries, rule: Rule | None = None) -> Trend:
    """The trend of one series.

    Raises:
        MissingLibraryError: without the extra ``history``.
    """
    judged = [index for index, point in enumerate(series.points) if point.judged]
    logs = np.log([series.points[index].rate.value for index in judged])
    watch = Watch(rule)
    for index in judged:
        point = series.points[index]
        watch.add(point.rate.value, point.night)
    confirmed = {alarm.since: alarm.index for alarm in watch.alarms}
    smooth, sd = despiked(logs), run_sd(logs)
    searched = change_points(logs)
    places = _standing_up(smooth, sd, _merged(searched, confirmed), firm=searched)
    bounds = [0, *places, logs.size]
    levels = [smooth[start:stop] for start, stop in itertools.pairwise(bounds)]
    # Points that are not judged belong to the level of the judged one before them.
    starts = [0, *(judged[index] for index in places), len(series.points)]
    changes = []
    for number, index in enumerate(places, 1):
        around = (index, bounds[number - 1], bounds[number + 1], sd)
        low, high = place(smooth, *around, CONFIDENCE)
        first, last = place(smooth, *around, SEARCHED)
        found_at = places[index]
        changes.append(
            LevelChange(
                index=judged[index],
                earliest=judged[low],
                latest=judged[high],
                ratio=_ratio(levels[number - 1], levels[number], sd),
                confirmed=None if found_at is None else judged[found_at],
                changed=_changed(series.points[judged[first - 1] : judged[last] + 1]),
            )
        )
    segments = tuple(
        Segment(start, stop, _level(level, sd))
        for (start, stop), level in zip(itertools.pairwise(starts), levels, strict=True)
        if level.size
    )
    suspected = watch.suspected_since
    return Trend(
        series=series,
        segments=segments,
        changes=tuple(changes),
        run_sd=sd,
        state=watch.state,
        suspected_since=None if suspected is None else judged[suspected],
        standing=_standing(segments, changes),
    )


_SAME: Final = 5
"""Runs within which a change found by looking back and a confirmed one are the same."""
_GONE: Final = 3.0
"""z below which a change that only the alarm saw has not stood up to the runs since: it was a false alarm."""
_FRESH: Final = 5
"""Runs for which an alarm is not doubted."""


def _merged(found: Sequence[int], confirmed: Mapping[int, int]) -> dict[int, int | None]:
    """First runs of new levels -> the run that confirmed each; a fresh alarm is there before a search can see it."""
    places: dict[int, int | None] = dict.fromkeys(found)
    for since, at in confirmed.items():
        near = [each for each in places if abs(each - since) <= _SAME and places[each] is None]
        places[min(near, key=lambda each: abs(each - since)) if near else since] = at
    return dict(sorted(places.items()))


def _standing_up(
    logs: Floats, sd: float, places: dict[int, int | None], *, firm: Sequence[int]
) -> dict[int, int | None]:
    """The places less those that only the alarm saw and that the runs since do not bear out, weakest first."""
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


def _level(logs: Floats, sd: float) -> Interval:
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * sd / math.sqrt(logs.size)
    middle = float(logs.mean())
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half), CONFIDENCE)


def _ratio(before: Floats, after: Floats, sd: float) -> Interval:
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * sd * math.sqrt(1 / before.size + 1 / after.size)
    step = float(after.mean() - before.mean())
    return Interval(math.exp(step), math.exp(step - half), math.exp(step + half), CONFIDENCE)


def _changed(points: Sequence[Point]) -> tuple[str, ...]:
    """What else changed from any of these runs to the next."""
    return tuple(
        dict.fromkeys(line for before, after in itertools.pairwise(points) for line in changed_between(before, after))
    )


def _standing(segments: Sequence[Segment], changes: Sequence[LevelChange]) -> LevelChange | None:
    """The newest confirmed drop of which more than half is still there."""
    for number in range(len(changes) - 1, -1, -1):
        change = changes[number]
        if change.confirmed is None or change.ratio.value >= 1:
            continue
        halfway = segments[number].rate.value * math.sqrt(change.ratio.value)
        if segments[-1].rate.value < halfway:
            return change
    return None


def record(trend: Trend) -> dict[str, Any]:
    """A trend as plain values for JSON; times in ISO 8601, intervals as in the result file."""
    series = trend.series
    changes = [_change_record(trend, change) for change in trend.changes]
    return {
        "test": series.test,
        "name": series.name,
        "kind": series.kind,
        "gpu_class": series.gpu_class,
        "model": series.model,
        "workload": series.workload,
        "simulated": series.simulated,
        "run_sd": plain(trend.run_sd),
        "state": trend.state.value,
        "suspected_since": trend.suspected_since,
        "standing": None if trend.standing is None else trend.changes.index(trend.standing),
        "points": [
            {
                "when": point.when.isoformat(timespec="seconds"),
                "file": str(point.path),
                "night": point.night,
                "rate": plain(point.rate),
                "judged": point.judged,
                "versions": dict(point.versions),
            }
            for point in series.points
        ],
        "segments": plain(trend.segments),
        "changes": changes,
    }


def _change_record(trend: Trend, change: LevelChange) -> dict[str, Any]:
    first = trend.points[change.index]
    return {**plain(change), "when": first.when.isoformat(timespec="seconds"), "file": str(first.path)}
