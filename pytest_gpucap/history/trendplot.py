"""Trends as a picture: every run with its interval, the levels, and where they changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_gpucap.history.changes import MissingLibraryError
from pytest_gpucap.history.trend import Trend
from pytest_gpucap.report.formatting import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS: Final = ("svg", "png", "pdf")
_WIDTH_IN: Final = 10.0
_HEIGHT_IN: Final = 3.2


def plot(trends: Sequence[Trend], path: Path) -> None:
    """Write one picture with one panel a series.

    Args:
        trends: at least one.
        path: its suffix says the format: one of `FORMATS`.

    Raises:
        MissingLibraryError: without Matplotlib.
        OSError: if the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingLibraryError('needs matplotlib: pip install "pytest-gpucap[history]"') from None
    # The salt and no date: the same history gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "pytest-gpucap", "date.converter": "concise"}):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * len(trends)), layout="constrained")
        for axes, trend in zip(figure.subplots(len(trends), squeeze=False)[:, 0], trends, strict=True):
            _panel(axes, trend)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Axes, trend: Trend) -> None:
    # Matplotlib takes times everywhere; its annotations know of numbers only.
    times: list[Any] = [point.when for point in trend.points]
    for judged, colour in ((True, "tab:blue"), (False, "lightgrey")):
        chosen = [index for index, point in enumerate(trend.points) if point.judged is judged]
        shown = [trend.points[index] for index in chosen]
        values = [point.rate.value for point in shown]
        # The intervals of runs that are not judged would set the scale for all others.
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
        colour = "tab:red" if change.ratio.value < 1 else "tab:green"
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
    axes.set_title(trend.series.title, fontsize=9, loc="left")
    axes.set_ylabel("req/s a replica")
