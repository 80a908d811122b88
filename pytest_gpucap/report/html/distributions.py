"""A result -> how latencies were distributed, by metric and phase. More values give narrower bins."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Final

import msgspec

from pytest_gpucap.report.html.charts import ChartPhase, LimitLine, chart_phases, drawn_latencies, four_figures
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.windows import LEADING_UP

LATENCY_METRICS: Final = ("ttft", "ttfat", "tpot", "itl", "e2e")
"""In the order in which the page shows them."""
SHOWN_PHASES: Final = 4
"""Distributions visible at first; the legend has the others."""
_MERGED_BINS: Final = ((150, 3), (600, 2))
"""(values, bins): up to this many values, this many recorded bins are merged. Narrower bins would show noise."""

_Bins = dict[tuple[float, float], int]
"""Number of values by the edges of their bin, in seconds."""


class DistributionSeries(msgspec.Struct, frozen=True):
    """One phase's values of one metric.

    Attributes:
        shown: visible at first.
        edges: of the bins in seconds, one more than `shares`.
        shares: of the values, by bin.
        count: how many values there are.
    """

    name: str
    load: str
    shown: bool
    edges: list[float]
    shares: list[float]
    count: int


class DistributionChart(msgspec.Struct, frozen=True):
    """One metric's distributions; `step` says how much wider each bin is than the one before, such as ``8%``."""

    series: list[DistributionSeries]
    limits: list[LimitLine]
    step: str


def distribution_charts(result: Result) -> dict[str, DistributionChart] | None:
    """Distributions by metric; None where none were recorded."""
    phases = [phase for phase in chart_phases(result.samples) if any(each.histograms for each in phase.samples)]
    shown = sorted(phases, key=_interest, reverse=True)[:SHOWN_PHASES]
    found = {}
    for metric in LATENCY_METRICS:
        counted = [(phase, bins) for phase in phases if (bins := _counted(phase, metric))]
        if not counted:
            continue
        grid = _Grid([bins for _, bins in counted])
        limits = [each for each in drawn_latencies(result.slo) if each.metric == metric]
        found[metric] = DistributionChart(
            series=[grid.series(phase, bins, shown=phase in shown) for phase, bins in counted],
            limits=[LimitLine(four_figures(each.limit_s), each.limit_text) for each in limits if each.limit_s],
            step=grid.step,
        )
    return found or None


def _interest(phase: ChartPhase) -> tuple[bool, bool, int]:
    """The order of importance: open loops first, then phases that do not lead to another one, then many requests."""
    requests = sum(each.requests for each in phase.samples)
    return phase.kind == "open", phase.window.phase not in LEADING_UP, requests


def _counted(phase: ChartPhase, metric: str) -> _Bins:
    """The windows of a phase in one histogram."""
    histograms = [each.histograms[metric] for each in phase.samples if metric in each.histograms]
    bins: _Bins = {}
    # ITL is counted by phase, so one window has all of it.
    for histogram in histograms[:1] if metric == "itl" else histograms:
        for edges, count in zip(pairwise(histogram.edges_s), histogram.counts, strict=True):
            bins[edges] = bins.get(edges, 0) + count
    return bins


class _Grid:
    """Bins of one metric that grow by one factor, the same for all phases. Each is one or more recorded bins."""

    def __init__(self, counted: Collection[_Bins]) -> None:
        steps = [high / low for bins in counted for low, high in bins if low > 0]
        # All windows are counted on one grid. Its edges are rounded in the file.
        self._log_step = math.log(statistics.median(steps)) if steps else math.log(2)
        self._origin = math.log(min(high for bins in counted for _, high in bins))
        values = statistics.median(sum(bins.values()) for bins in counted)
        self._merged = next((merged for most, merged in _MERGED_BINS if values <= most), 1)

    @property
    def step(self) -> str:
        """``8%``: how much wider each bin is than the one before."""
        return f"{(math.exp(self._log_step * self._merged) - 1) * 100:.0f}%"

    def series(self, phase: ChartPhase, bins: Mapping[tuple[float, float], int], *, shown: bool) -> DistributionSeries:
        """The phase's values on this grid."""
        counts: dict[int, int] = {}
        for (_, high), count in bins.items():
            place = round((math.log(high) - self._origin) / self._log_step) // self._merged
            counts[place] = counts.get(place, 0) + count
        total = sum(counts.values())
        first, last = min(counts), max(counts)
        return DistributionSeries(
            name=phase.name,
            load=phase.load,
            shown=shown,
            edges=[four_figures(self._edge(place)) for place in range(first, last + 2)],
            shares=[four_figures(counts.get(place, 0) / total) for place in range(first, last + 1)],
            count=total,
        )

    def _edge(self, place: int) -> float:
        return math.exp(self._origin + (place * self._merged - 1) * self._log_step)
