"""Latency against rate as a Mermaid chart, which GitHub and GitLab draw in Markdown.

Mermaid's ``xychart-beta`` spreads a line's values evenly over a numeric axis. So the curve is sampled at even
distances: the axis is to scale, and the line is straight between two windows. No outside text goes into a chart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from pytest_gpucap.report import windows
from pytest_gpucap.report.formatting import percentile_name, rate, seconds, significant
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.windows import ON_THE_WAY

_STEPS: Final = 48
_NEEDLE: Final = 120
_LEAST_RATES: Final = 3
_LEAST_SPAN: Final = 2.0
"""Lowest ratio of highest to lowest rate. Closer windows show the scatter of one point, not a curve."""
_SAME: Final = 0.03
"""Windows whose rates differ by less than this share are one point of the curve."""
_HEIGHT: Final = 2.5
"""The vertical axis ends at this many times the limit. Latencies in saturation would flatten the rest."""
_BLUE, _RED, _GREY = "#2563eb", "#dc2626", "#94a3b8"
"""Of middle brightness: they show on a light and on a dark page."""

Point = tuple[float, float]


def chart(result: Result) -> tuple[str, str] | None:
    """A Mermaid chart and the sentence that explains it; None where too few rates were measured for a curve."""
    limit = _limit(result)
    metric, percent = windows.kept_percentile(limit) if limit else ("e2e", 95)
    curve = _curve(result, metric, percent)
    if len(curve) < _LEAST_RATES or curve[-1][0] < _LEAST_SPAN * curve[0][0]:
        return None
    limit_s = result.slo.percentiles.get(limit)
    highest = max(latency for _, latency in curve)
    top = max(highest, limit_s or 0.0) * 1.1 if limit_s is None else min(max(highest, limit_s) * 1.1, limit_s * _HEIGHT)
    if not top > 0:
        return None
    unit, scale = ("ms", 1000.0) if top < 1 else ("s", 1.0)
    low, high = curve[0][0], curve[-1][0]
    grid = [low + (high - low) * step / _STEPS for step in range(_STEPS + 1)]
    name = percentile_name(metric, percent)
    plots = [(_BLUE, f"line {_list([min(_height(curve, x), top) * scale for x in grid])}")]
    said = [f"Blue: {name} of the windows measured at {len(curve)} rates, joined by straight lines"]
    if limit_s is not None:
        plots.append((_RED, f"line {_list([limit_s * scale] * 2)}"))
        said.append(f"red: its limit, {seconds(limit_s)}")
    design = result.design_rate_rps
    if design is not None and low <= design <= high:
        # A steep line, because Mermaid chooses the width of bars. It comes first, so that the curve is drawn over it.
        needle = [0.0] * (_NEEDLE + 1)
        needle[round((design - low) / (high - low) * _NEEDLE)] = top * scale
        plots.insert(0, (_GREY, f"line {_list(needle)}"))
        said.append(f"grey: the design rate, {rate(design)}")
    if highest > top:
        said.append(f"cut at {seconds(top)}, the highest was {seconds(highest)}")
    palette = ", ".join(colour for colour, _ in plots)
    lines = [
        f'%%{{init: {{"themeVariables": {{"xyChart": {{"plotColorPalette": "{palette}"}}}}}}}}%%',
        "xychart-beta",
        f'    x-axis "requests a second, one replica" {_number(low)} --> {_number(high)}',
        f'    y-axis "{_words(name)} in {unit}" 0 --> {_number(top * scale)}',
        *(f"    {plot}" for _, plot in plots),
    ]
    return "\n".join(["```mermaid", *lines, "```"]), f"{'; '.join(said)}."


def _limit(result: Result) -> str:
    limits = result.slo.percentiles
    return result.binding if result.binding is not None and result.binding in limits else next(iter(limits), "")


def _curve(result: Result, metric: str, percent: int) -> list[Point]:
    """(req/s, seconds) in rising order of rate, one point for each rate that differs."""
    points = []
    for window, slices in windows.grouped(result.points or result.samples):
        seen = windows.latency(slices, metric, percent)
        done = windows.mean(slices, lambda sample: sample.completed_rps)
        # Windows that search for a first guess or lead to the next rate are too short to be a point.
        if seen and done and window.phase not in ON_THE_WAY:
            points.append((done, sum(seen) / len(seen)))
    points.sort()
    merged: list[list[Point]] = []
    for point in points:
        if merged and point[0] <= merged[-1][0][0] * (1 + _SAME):
            merged[-1].append(point)
        else:
            merged.append([point])
    return [_mean(group) for group in merged]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _height(curve: Sequence[Point], x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1]


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(_number(value) for value in values)}]"


def _number(value: float) -> str:
    # Mermaid's numbers have no exponent.
    return significant(value, 4) if math.isfinite(value) else "0"


def _words(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 .]", "", text)
