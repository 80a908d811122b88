"""How head differs from base, in words and cells: the rate, latencies at an equal load, limits beside the rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from pytest_gpucap.report.columns import shortened, table, wrapped
from pytest_gpucap.report.formatting import known, limit_name, percent, percent_interval, seconds
from pytest_gpucap.results.comparison import Comparison, FigureComparison, LatencyComparison
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.secondary import METRICS

LATENCY_HEADERS: Final = ("base", "head", "change (95% interval)", "decision")
LATENCIES: Final = "latencies of base and head at an equal load, which fail no test"
FIGURES: Final = "limits beside the rate on base and head, which fail no test"
_MOST_OF_LOAD: Final = 24
"""Columns of a load above a table. Ours are shorter; a file of another hand may hold anything."""


def change(comparison: Comparison | LatencyComparison | FigureComparison) -> str:
    """``-12.1% (-14.0% to -10.0%)``: head over base minus one; empty where the two cannot be compared."""
    ratio = comparison.ratio
    if ratio is None or known(ratio.value) is None:
        return ""
    if ratio.low == ratio.high:  # both figures were read
        return percent(ratio.value - 1, signed=True)
    less_one = {"value": ratio.value - 1, "low": ratio.low - 1, "high": ratio.high - 1}
    return percent_interval(msgspec.structs.replace(ratio, **less_one))


def latency_cells(found: LatencyComparison) -> tuple[str, str, str, str]:
    """A latency of base and head under `LATENCY_HEADERS`."""
    return seconds(found.base_s), seconds(found.head_s), change(found), found.decision.value


def latency_table(latencies: Sequence[LatencyComparison], width: int, indent: str = "") -> list[str]:
    """Latencies of base and head side by side, a table for each load at which they were compared."""
    lines: list[str] = []
    for load in dict.fromkeys(each.load for each in latencies):
        named = [each for each in latencies if each.load == load]
        headers = [shortened(f"at {load}", _MOST_OF_LOAD), *LATENCY_HEADERS]
        body = [[limit_name(each.limit), *latency_cells(each)] for each in named]
        lines += [f"{indent}{line}".rstrip() for line in table(headers, body, width - len(indent))]
    return lines


def compared_lines(found: Comparison | None, width: int) -> list[str]:
    """Everything that was compared beside the rate, for a terminal: latencies, limits beside the rate; may be empty."""
    if found is None:
        return []
    lines = []
    if found.latencies:
        lines += wrapped(f"{LATENCIES}:", width=width)
        lines += latency_table(found.latencies, width, "  ")
    if found.figures:
        lines += wrapped(f"{FIGURES}:", width=width)
        lines += [line for each in figure_lines(found.figures) for line in wrapped(each, "- ", "  ", width)]
    return lines


def latency_lines(latencies: Iterable[LatencyComparison]) -> list[str]:
    """Latencies at equal load, a line each: ``p95 E2E at 71 in flight 3 s -> 4 s, +33% (+21% to +48%): REGRESSED``."""
    return [
        f"{limit_name(each.limit)} at {each.load} {seconds(each.base_s)} -> {seconds(each.head_s)}, "
        f"{change(each)}: {each.decision}"
        for each in latencies
    ]


def figure_lines(figures: Iterable[FigureComparison]) -> list[str]:
    """Limits beside the rate on base and head, a line each: ``KV cache 120,000 -> 90,000 tokens, -25% (read ...)``."""
    return [f"{METRICS[each.name].title} {figure_change(each)}" for each in figures]


def figure_change(figure: FigureComparison) -> str:
    """``60 s (cold) -> 25 s (warm), -58.3% (one start of each: ...)``; why, where something was not measured."""
    shown, said = METRICS[figure.name], []
    starts = figure.starts or ("", "")
    for found, start in zip((figure.base, figure.head), starts, strict=True):
        value = "not measured" if found is None else shown.shown(found.value)
        spread = "" if found is None or found.low == found.high else f" ({_ends(figure, found)})"
        said.append(f"{value}{spread}{f' ({start})' if start else ''}")
    by = change(figure)
    notes = "; ".join(filter(None, [figure.noise, figure.reason]))
    return f"{' -> '.join(said)}{f', {by}' if by else ''}{f' ({notes})' if notes else ''}"


def _ends(figure: FigureComparison, found: Interval) -> str:
    metric = METRICS[figure.name]
    return f"{metric.number(found.low)} to {metric.number(found.high)}"
