"""Trends as text for a terminal (80 columns, no colour), as Markdown, as JSON and as a picture."""

from __future__ import annotations

import io
import statistics
import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tabulate import tabulate

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.foreign_text import visible
from pytest_gpucap.installing import pip_install
from pytest_gpucap.report.escape import cleaned, json_text, prose
from pytest_gpucap.report.formatting import percent, significant
from pytest_gpucap.results.encoding import to_builtins
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.trend import AlarmState, LevelChange, Trend, TrendPoint
from pytest_gpucap.results.whole_file import write_whole
from pytest_gpucap.secondary import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-~=+*#"
"""The same eight heights, for terminals that cannot show the blocks."""

_WIDTH: Final = 78
_FEW: Final = 4
"""Changed versions shown for one change; there may be many where the place of a change is uncertain."""


def trends_text(trends: Sequence[Trend], skipped: Sequence[str] = (), *, heights: str = BLOCKS) -> str:
    """All trends, those with a standing drop first, then one line per skipped file."""
    parts = [_one(trend, heights) for trend in _worst_first(cleaned(list(trends)))]
    if skipped:
        parts.append("\n".join(f"skipped {visible(line)}" for line in skipped))
    return "\n\n".join(parts)


def trends_markdown(trends: Sequence[Trend], skipped: Sequence[str] = ()) -> str:
    """The same for a pull request or the summary of a job: a table of all trends, then what changed in each."""
    rows = [
        [
            _icon(trend),
            prose(trend.title),
            len(trend.points),
            f"`{sparkline(trend)}`",
            _level(trend, trend.segments[-1].rate) if trend.segments else "",
            percent(trend.run_sd),
            prose(_verdict(trend)),
        ]
        for trend in _worst_first(trends)
    ]
    headers = ["", "series", "runs", "trend", "now (95%), rates in req/s per replica", "run-to-run sd", ""]
    parts = [tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)]
    for trend in _worst_first(trends):
        if trend.changes:
            lines = "\n".join(f"- {prose(_sentence(trend, change))}" for change in trend.changes)
            parts.append(f"**{prose(trend.title)}**\n\n{lines}")
    if skipped:
        parts.append("\n".join(f"- skipped {prose(line)}" for line in skipped))
    return "\n\n".join(parts)


def trends_json(trends: Sequence[Trend], skipped: Sequence[str] = ()) -> str:
    """``trends`` (the fields of `Trend`) and ``skipped``."""
    return json_text({"trends": to_builtins(trends), "skipped": list(skipped)})


def sparkline(trend: Trend, width: int = _WIDTH - 24, heights: str = BLOCKS) -> str:
    """The judged runs as one row of bars. Where there are more than `width`, a bar is the median of its runs."""
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
        trend.title,
        f"{_runs(len(trend.points))}, {_day(first)} to {_day(last)}, run-to-run sd {percent(trend.run_sd)}",
    ]
    if trend.segments:
        span = f"{_number(trend, trend.segments[0].rate.value)} -> {_shown(trend, trend.segments[-1].rate.value)}"
        lines.append(f"{sparkline(trend, heights=heights)}  {span}")
    wide = sum(not point.judged for point in trend.points)
    if wide:
        lines.append(f"{_runs(wide)} with too wide an interval to be compared")
    if trend.changes:
        lines += ["", tabulate(_levels(trend), headers=_headers(trend), disable_numparse=True), ""]
        lines += [_bullet(_sentence(trend, change)) for change in trend.changes]
    lines.append(_verdict(trend))
    return "\n".join(lines)


def _bullet(line: str) -> str:
    return textwrap.fill(line, _WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def _headers(trend: Trend) -> list[str]:
    return ["level from", "file", "runs", f"{_unit(trend)} (95%)", "change (95%)"]


def _unit(trend: Trend) -> str:
    if trend.figure is None:
        return "req/s per replica"
    metric = METRICS[trend.figure]
    return metric.title if metric.is_share else metric.unit


def _number(trend: Trend, value: float) -> str:
    return significant(value) if trend.figure is None else METRICS[trend.figure].number(value)


def _shown(trend: Trend, value: float) -> str:
    return f"{significant(value)} req/s" if trend.figure is None else METRICS[trend.figure].shown(value)


def _level(trend: Trend, level: Interval) -> str:
    if trend.figure is None:
        return _rate(level)
    value, low, high = (_number(trend, end) for end in (level.value, level.low, level.high))
    return f"{value} ({low} to {high})"


def _levels(trend: Trend) -> list[list[str]]:
    ratios = [None, *(change.ratio for change in trend.changes)]
    return [
        [
            _day(trend.points[segment.start].when),
            _file(trend.points[segment.start]),
            str(segment.stop - segment.start),
            _level(trend, segment.rate),
            # Of a share that was nearly nothing, a ratio says nothing: the levels stand beside it.
            "" if ratio is None or _is_share(trend) else _step(ratio),
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
    if _is_share(trend):
        line = f"{kind} {_between(trend, trend.changes.index(change))}"
    line += f" from {_file(begin)} ({_day(begin.when)})"
    if change.earliest != change.latest:
        earliest, latest = trend.points[change.earliest], trend.points[change.latest]
        line += f", or anywhere from {_file(earliest)} to {_file(latest)} (95%)"
    if change.confirmed is not None:
        line += f", confirmed by {_file(trend.points[change.confirmed])}"
    if not change.changed:
        return f"{line}; nothing else is known to have changed there"
    more = len(change.changed) - _FEW
    return f"{line}; changed there: {', '.join(change.changed[:_FEW])}{f' and {more} more' if more > 0 else ''}"


def _is_share(trend: Trend) -> bool:
    return trend.figure is not None and METRICS[trend.figure].is_share


def _between(trend: Trend, number: int) -> str:
    """``from 0.2% to 3.1%``: the levels around a change."""
    before, after = (trend.segments[each].rate.value for each in (number, number + 1))
    return f"from {_number(trend, before)} to {_number(trend, after)}"


def _verdict(trend: Trend) -> str:
    """What the alarm says after the newest run, in one line."""
    bad = AlarmState.RISE_SUSPECTED if trend.rise_is_worse else AlarmState.DROP_SUSPECTED
    word = "rise" if trend.rise_is_worse else "drop"
    if (drop := trend.standing_drop) is not None and trend.standing is not None:
        since = trend.points[drop.index]
        size = f"of {percent(abs(1 - drop.ratio.value))}" if not _is_share(trend) else _between(trend, trend.standing)
        return f"{word.upper()} {size} since {_day(since.when)} ({_file(since)})"
    match trend.state:
        case AlarmState.LEARNING:
            return "too few runs on this level to compare with"
        case AlarmState.DROP_SUSPECTED | AlarmState.RISE_SUSPECTED:
            assert trend.suspected_since is not None  # noqa: S101 - what the state means
            since = trend.points[trend.suspected_since]
            advice = ": run once more to confirm" if trend.state is bad else ""
            return f"{trend.state} since {_day(since.when)} ({_file(since)}){advice}"
        case _:
            return f"no {word}"


def _icon(trend: Trend) -> str:
    if trend.standing is not None:
        return "❌"
    bad = AlarmState.RISE_SUSPECTED if trend.rise_is_worse else AlarmState.DROP_SUSPECTED
    return "⚠️" if trend.state is bad else "✅"


def _step(ratio: Interval) -> str:
    value, low, high = (percent(bound - 1, signed=True) for bound in (ratio.value, ratio.low, ratio.high))
    return f"{value} ({low} to {high})"


def _rate(rate: Interval) -> str:
    # Levels are known far better than single runs: their fourth figure is significant.
    value, low, high = (significant(bound, 4) for bound in (rate.value, rate.low, rate.high))
    return f"{value} ({low} to {high})"


def _file(point: TrendPoint) -> str:
    return Path(point.file).name


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _day(when: datetime) -> str:
    return when.date().isoformat()


class MissingLibraryError(GpuCapError, ImportError):
    """Matplotlib, of the extra ``history``, is not installed; the message says how to install it."""


FORMATS: Final = ("svg", "png", "pdf")
_WIDTH_IN: Final = 10.0
_HEIGHT_IN: Final = 3.2


def plot_trends(trends: Sequence[Trend], path: Path) -> None:
    """Write one picture with one panel per series.

    Args:
        trends: at least one.
        path: its suffix is the format, one of `FORMATS`.

    Raises:
        MissingLibraryError: without Matplotlib.
        OSError: if the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingLibraryError(f"needs matplotlib: {pip_install('history')}") from None
    # With a fixed salt and no date, the same history gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "pytest-gpucap", "date.converter": "concise"}):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * len(trends)), layout="constrained")
        for axes, trend in zip(figure.subplots(len(trends), squeeze=False)[:, 0], trends, strict=True):
            _panel(axes, trend)
        picture = io.BytesIO()
        figure.savefig(
            picture, format=path.suffix[1:].lower(), metadata={"Date": None} if path.suffix == ".svg" else None
        )
    write_whole(path, [picture.getvalue()])


def _panel(axes: Axes, trend: Trend) -> None:
    # Matplotlib takes times, but the types of its annotations allow only numbers.
    times: list[Any] = [point.when for point in trend.points]
    for judged, colour in ((True, "tab:blue"), (False, "lightgrey")):
        chosen = [index for index, point in enumerate(trend.points) if point.judged is judged]
        shown = [trend.points[index] for index in chosen]
        values = [point.rate.value for point in shown]
        # The wide intervals of runs that are not judged would set the scale for all others.
        reach = [
            [point.rate.value - point.rate.low for point in shown],
            [point.rate.high - point.rate.value for point in shown],
        ]
        axes.errorbar(
            [times[index] for index in chosen], values, reach if judged else None, fmt="o", ms=3, lw=0.6, color=colour
        )
    for segment in trend.segments:
        last = min(segment.stop, len(times) - 1)
        axes.plot([times[segment.start], times[last]], [segment.rate.value] * 2, color="black", linewidth=1.5)
    for change in trend.changes:
        colour = "tab:red" if (change.ratio.value < 1) is not trend.rise_is_worse else "tab:green"
        axes.axvspan(times[change.earliest], times[change.latest], color=colour, alpha=0.15, linewidth=0)
        axes.axvline(times[change.index], color=colour, linewidth=1)
        axes.annotate(
            percent(change.ratio.value - 1, signed=True),
            (times[change.index], 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -10),
            textcoords="offset points",
            color=colour,
            fontsize=8,
        )
    axes.set_title(visible(trend.title).replace("$", r"\$"), fontsize=9, loc="left")
    axes.set_ylabel(_unit(trend))
