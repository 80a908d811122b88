"""Trends as text for a terminal (80 columns, no colour), as Markdown, and as JSON."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tabulate import tabulate

from pytest_gpucap.history.alarm import AlarmState
from pytest_gpucap.history.trend import LevelChange, Trend, record
from pytest_gpucap.report.formatting import percent, significant
from pytest_gpucap.results.measured import Interval

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-~=+*#"
"""For terminals that cannot show the blocks; the same eight heights."""

_WIDTH: Final = 78
_FEW: Final = 4
"""Changed versions shown for one change; a change whose place is unsure may have seen many."""


def text(trends: Sequence[Trend], skipped: Sequence[str] = (), *, heights: str = BLOCKS) -> str:
    """All trends, those with a standing drop first, then one line for each file that was skipped."""
    parts = [_one(trend, heights) for trend in _worst_first(trends)]
    if skipped:
        parts.append("\n".join(f"skipped {line}" for line in skipped))
    return "\n\n".join(parts)


def markdown(trends: Sequence[Trend], skipped: Sequence[str] = ()) -> str:
    """The same for a pull request or a job's summary: a table of all trends, then what changed in each."""
    rows = [
        [
            _icon(trend),
            _cell(trend.series.title),
            len(trend.points),
            f"`{sparkline(trend)}`",
            _rate(trend.segments[-1].rate) if trend.segments else "",
            percent(trend.run_sd),
            _verdict(trend),
        ]
        for trend in _worst_first(trends)
    ]
    headers = ["", "series", "runs", "trend", "req/s a replica now (95%)", "run-to-run sd", ""]
    parts = [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)]
    for trend in _worst_first(trends):
        if trend.changes:
            lines = "\n".join(f"- {_cell(line)}" for change in trend.changes for line in [_sentence(trend, change)])
            parts.append(f"**{_cell(trend.series.title)}**\n\n{lines}")
    if skipped:
        parts.append("\n".join(f"- skipped {_cell(line)}" for line in skipped))
    return "\n\n".join(parts)


def as_json(trends: Sequence[Trend], skipped: Sequence[str] = ()) -> str:
    """``trends``, as `record` gives them, and ``skipped``."""
    return json.dumps({"trends": [record(trend) for trend in trends], "skipped": list(skipped)}, indent=1)


def sparkline(trend: Trend, width: int = _WIDTH - 24, heights: str = BLOCKS) -> str:
    """The judged runs as one row of bars; where there are more than `width`, a bar is the median of its runs."""
    rates = [point.rate.value for point in trend.points if point.judged]
    columns = min(width, len(rates))
    bars = [
        statistics.median(rates[len(rates) * column // columns : len(rates) * (column + 1) // columns])
        for column in range(columns)
    ]
    if not bars:
        return ""
    low, span = min(bars), max(bars) - min(bars)
    return "".join(heights[round((bar - low) / span * (len(heights) - 1)) if span else 0] for bar in bars)


def _worst_first(trends: Sequence[Trend]) -> list[Trend]:
    return sorted(trends, key=lambda trend: (trend.standing is None, trend.state is not AlarmState.DROP_SUSPECTED))


def _one(trend: Trend, heights: str) -> str:
    first, last = trend.points[0].when, trend.points[-1].when
    lines = [
        trend.series.title,
        f"{_runs(len(trend.points))}, {_day(first)} to {_day(last)}, run-to-run sd {percent(trend.run_sd)}",
    ]
    if trend.segments:
        span = f"{significant(trend.segments[0].rate.value)} -> {significant(trend.segments[-1].rate.value)} req/s"
        lines.append(f"{sparkline(trend, heights=heights)}  {span}")
    wide = sum(not point.judged for point in trend.points)
    if wide:
        lines.append(f"{_runs(wide)} with too wide an interval to be compared")
    if trend.changes:
        lines += ["", tabulate(_levels(trend), headers=_HEADERS, disable_numparse=True), ""]
        lines += [_bullet(_sentence(trend, change)) for change in trend.changes]
    lines.append(_verdict(trend))
    return "\n".join(lines)


def _bullet(line: str) -> str:
    return textwrap.fill(line, _WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


_HEADERS: Final = ["level from", "file", "runs", "req/s a replica (95%)", "change (95%)"]


def _levels(trend: Trend) -> list[list[str]]:
    ratios = [None, *(change.ratio for change in trend.changes)]
    return [
        [
            _day(trend.points[segment.start].when),
            trend.points[segment.start].path.name,
            str(segment.stop - segment.start),
            _rate(segment.rate),
            "" if ratio is None else _step(ratio),
        ]
        for segment, ratio in zip(trend.segments, ratios, strict=True)
    ]


def _sentence(trend: Trend, change: LevelChange) -> str:
    """``drop of 5.1% (3.9% to 6.2%) from night-049.json (2026-10-20), confirmed by night-051.json; server: 1 -> 2``."""
    kind = "drop" if change.ratio.value < 1 else "rise"
    sizes = sorted(abs(bound - 1) for bound in (change.ratio.low, change.ratio.high))
    begin = trend.points[change.index]
    line = f"{kind} of {percent(abs(change.ratio.value - 1))} ({percent(sizes[0])} to {percent(sizes[1])})"
    if change.ratio.low < 1 < change.ratio.high:
        line = f"{kind} of {percent(abs(change.ratio.value - 1))}"
    line += f" from {begin.path.name} ({_day(begin.when)})"
    if change.earliest != change.latest:
        earliest, latest = trend.points[change.earliest], trend.points[change.latest]
        line += f", or anywhere from {earliest.path.name} to {latest.path.name} (95%)"
    if change.confirmed is not None:
        line += f", confirmed by {trend.points[change.confirmed].path.name}"
    if not change.changed:
        return f"{line}; nothing else is known to have changed there"
    more = len(change.changed) - _FEW
    return f"{line}; changed there: {', '.join(change.changed[:_FEW])}{f' and {more} more' if more > 0 else ''}"


def _verdict(trend: Trend) -> str:
    """What the alarm says now, in one line."""
    if trend.standing is not None:
        since = trend.points[trend.standing.index]
        return f"DROP of {percent(1 - trend.standing.ratio.value)} since {_day(since.when)} ({since.path.name})"
    match trend.state:
        case AlarmState.LEARNING:
            return "too few runs on this level to compare with"
        case AlarmState.DROP_SUSPECTED | AlarmState.RISE_SUSPECTED:
            assert trend.suspected_since is not None  # noqa: S101 - what the state means
            since = trend.points[trend.suspected_since]
            advice = ": run once more to confirm" if trend.state is AlarmState.DROP_SUSPECTED else ""
            return f"{trend.state} since {_day(since.when)} ({since.path.name}){advice}"
        case _:
            return "no drop"


def _icon(trend: Trend) -> str:
    if trend.standing is not None:
        return "❌"
    return "⚠️" if trend.state is AlarmState.DROP_SUSPECTED else "✅"


def _step(ratio: Interval) -> str:
    value, low, high = (percent(bound - 1, signed=True) for bound in (ratio.value, ratio.low, ratio.high))
    return f"{value} ({low} to {high})"


def _rate(rate: Interval) -> str:
    # Levels are known far better than single runs: a fourth figure says something.
    value, low, high = (significant(bound, 4) for bound in (rate.value, rate.low, rate.high))
    return f"{value} ({low} to {high})"


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _day(when: datetime) -> str:
    return when.date().isoformat()


def _cell(line: str) -> str:
    """A text that stays in its table cell and is no markup."""
    return line.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
