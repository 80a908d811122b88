"""Trends of earlier runs -> the panels of the page's history: their texts and charts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from pytest_gpucap.report.formatting import percent, percent_interval, significant
from pytest_gpucap.report.html.cards import Fact, time_text
from pytest_gpucap.report.html.charts import compact
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.trend import LevelChange, Trend

_NAMED: Final = 4
"""Most changed versions named for one change. There may be many if its place is uncertain."""


class LevelLine(msgspec.Struct, frozen=True, array_like=True):
    """First and last run of a level, and its rate in requests per second."""

    first: int
    last: int
    rate_rps: float | None


class ChangeLine(msgspec.Struct, frozen=True, array_like=True):
    """The run that a change began with, the text beside its line, and ``up`` or ``down``."""

    index: int
    text: str
    direction: str


class TrendChart(msgspec.Struct, frozen=True):
    """The JSON that the page's script reads: from `t` to `label` a value for each run, rates in requests per second."""

    name: str
    t: list[str]
    value: list[float | None]
    low: list[float | None]
    high: list[float | None]
    judged: list[bool]
    label: list[str]
    levels: list[LevelLine]
    changes: list[ChangeLine]
    design: float | None


@dataclass(frozen=True, slots=True)
class TrendPanel:
    """One requirement over its runs: the page's text and chart."""

    name: str
    test: str
    place: str
    note: str
    simulated: bool
    imported: bool
    changes: tuple[Fact, ...]
    chart: TrendChart


def trend_panels(trends: Iterable[Trend], results: Iterable[Result] = ()) -> list[TrendPanel]:
    """A panel for each trend with points. Those of the page's own tests come first.

    Args:
        trends: of the history.
        results: the page's own; the design rates are theirs.
    """
    designs = {(result.test, result.name): result.design_rate_rps for result in results}
    found = [_panel(each, designs.get((each.test, each.name))) for each in trends if each.points]
    return sorted(found, key=lambda panel: (panel.test, panel.name) not in designs)


def _panel(trend: Trend, design_rps: float | None) -> TrendPanel:
    points = trend.points
    last = points[-1]
    runs = f"{len(points)} run{'' if len(points) == 1 else 's'}"
    latest = f"the latest {significant(last.rate.value)} req/s on {time_text(last.when)}"
    return TrendPanel(
        name=trend.name,
        test=trend.test,
        place=", ".join(filter(None, [trend.gpu_class, trend.model, trend.workload, trend.imported])),
        note=f"{runs}, run-to-run standard deviation {percent(trend.run_sd)}, {latest}",
        simulated=trend.simulated,
        imported=bool(trend.imported),
        changes=tuple(Fact(time_text(each.when), _sentence(each)) for each in trend.changes),
        chart=TrendChart(
            name=trend.name,
            t=[point.when.isoformat(timespec="seconds") for point in points],
            value=[compact(point.rate.value) for point in points],
            low=[compact(point.rate.low) for point in points],
            high=[compact(point.rate.high) for point in points],
            judged=[point.judged for point in points],
            label=[", ".join(f"{what} {which}" for what, which in point.versions.items()) for point in points],
            levels=[LevelLine(each.start, each.stop - 1, compact(each.rate.value)) for each in trend.segments],
            changes=[
                ChangeLine(each.index, _step(each), "down" if each.ratio.value < 1 else "up") for each in trend.changes
            ],
            design=compact(design_rps),
        ),
    )


def _step(change: LevelChange) -> str:
    return percent(change.ratio.value - 1, signed=True)


def _sentence(change: LevelChange) -> str:
    """``-12.1% (-14.0% to -10.2%); changed there: vLLM 0.26.0 -> 0.27.0``."""
    ratio = change.ratio
    line = percent_interval(Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1))
    if not change.changed:
        return f"{line}; nothing else is known to have changed there"
    more = len(change.changed) - _NAMED
    return f"{line}; changed there: {', '.join(change.changed[:_NAMED])}{f' and {more} more' if more > 0 else ''}"
