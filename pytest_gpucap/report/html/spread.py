"""Records -> how latencies were distributed, by metric and phase, in bins as wide as the number of values asks for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from pytest_gpucap.report.html.charts import Phase, Record, phases, short, watched

METRICS: Final = ("ttft", "tpot", "itl", "e2e")
SHOWN_PHASES: Final = 4
"""Distributions visible before anybody asks for more; the legend has the others."""
_FEW: Final = ((150, 3), (600, 2))
"""Up to so many values, so many bins of the record become one: fewer would show chance more than shape."""

Bins = dict[tuple[float, float], int]


def spread(record: Record) -> dict[str, Any] | None:
    """Histograms by metric and phase, as shares of the phase's values; None where none were recorded."""
    ran = [phase for phase in phases(record["samples"]) if any(each.get("histograms") for each in phase.samples)]
    chosen = sorted(ran, key=_interest, reverse=True)[:SHOWN_PHASES]
    found: dict[str, Any] = {}
    for metric in METRICS:
        held = {phase.name: bins for phase in ran if (bins := _added(phase, metric))}
        if not held:
            continue
        grid = _Grid(held.values())
        rows = [
            {"name": phase.name, "load": phase.load, "shown": phase in chosen, **grid.shares(held[phase.name])}
            for phase in ran
            if phase.name in held
        ]
        limits = [[short(w.limit_s), w.limit_label] for w in watched(record) if w.metric == metric and w.limit_s]
        found[metric] = {"series": rows, "limits": limits, "step": grid.step}
    return found or None


def _interest(phase: Phase) -> tuple[bool, bool, int]:
    """What a reader wants to see first: open loops, then whatever is not a way up, with the most requests."""
    sample = phase.samples[0]
    aside = phase.name.startswith(("to ", "warm-up", "search"))
    return sample["kind"] == "open", not aside, sum(each["requests"] for each in phase.samples)


def _added(phase: Phase, metric: str) -> Bins:
    """The windows of a phase in one histogram. ITL is counted by phase already, so one window has it all."""
    held = [each["histograms"][metric] for each in phase.samples if each.get("histograms", {}).get(metric)]
    bins: Bins = {}
    for histogram in held[:1] if metric == "itl" else held:
        for edges, count in zip(pairwise(histogram["edges_s"]), histogram["counts"], strict=True):
            bins[edges] = bins.get(edges, 0) + count
    return bins


class _Grid:
    """Bins of one metric, each of so many of the record's that grow by one factor; the same for all phases."""

    def __init__(self, histograms: Any) -> None:
        held: Sequence[Bins] = list(histograms)
        steps = [high / low for bins in held for low, high in bins if low > 0]
        # All windows count on one grid, but for rounding.
        self._log_step = math.log(statistics.median(steps)) if steps else math.log(2)
        first = min(high for bins in held for _, high in bins)
        self._origin = math.log(first)
        middle = statistics.median(sum(bins.values()) for bins in held)
        self._merged = next((merged for most, merged in _FEW if middle <= most), 1)

    @property
    def step(self) -> str:
        """``8%``: how much wider each bin is than the one before."""
        return f"{(math.exp(self._log_step * self._merged) - 1) * 100:.0f}%"

    def shares(self, bins: Mapping[tuple[float, float], int]) -> dict[str, Any]:
        """``edges`` in seconds, one more than ``shares``, and the ``count`` of values behind them."""
        counts: dict[int, int] = {}
        for (_, high), count in bins.items():
            place = round((math.log(high) - self._origin) / self._log_step) // self._merged
            counts[place] = counts.get(place, 0) + count
        total = sum(counts.values())
        first, last = min(counts), max(counts)
        return {
            "edges": [short(self._edge(place)) for place in range(first, last + 2)],
            "shares": [short(counts.get(place, 0) / total) for place in range(first, last + 1)],
            "count": total,
        }

    def _edge(self, place: int) -> float:
        return math.exp(self._origin + (place * self._merged - 1) * self._log_step)
