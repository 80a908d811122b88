"""A window in detail, for people to look at: latency over its time, and how latencies were distributed.

No decision is made from these figures: the procedure reads the journal itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pytest_gpucap.estimate.step_time import integral
from pytest_gpucap.load.protocol import Floats, Histogram, Journal
from pytest_gpucap.results.measured import LatencyHistogram

LEAST_BIN_S = 0.5
"""Telemetry of the server comes twice a second; finer bins of latency would hold a request or two."""
MOST_BINS = 20
LOWEST_S = 1e-5
GROWTH = 1.08
"""Bins of a latency histogram grow by 8%: 30 to a factor of ten, and a figure read off one is right to 8%."""
QUANTILES = (0.5, 0.95)


def timeline(
    journal: Journal, ended: Mapping[str, tuple[Floats, Floats]], start_s: float, end_s: float
) -> dict[str, tuple[float, ...]]:
    """The window [start_s, end_s) in bins of equal width, each named by its middle.

    Args:
        journal: for the requests in flight.
        ended: by metric name, when each latency became known and how long it was; shape (n,) each.
        start_s: on the runner's clock.
        end_s: on the runner's clock.

    Returns:
        ``t_s`` on the runner's clock, ``in_flight`` (mean of the bin), and ``METRIC_p50_s`` and ``METRIC_p95_s`` of the
        latencies that ended in the bin, NaN where none did; every column as long as ``t_s``.
    """
    seconds = end_s - start_s
    if seconds <= 0:
        return {}
    count = max(1, min(MOST_BINS, round(seconds / LEAST_BIN_S)))
    edges = np.linspace(start_s, end_s, count + 1)
    # Of a long journal only what was under way in the window matters, and sorting all of it would cost milliseconds.
    here = (journal.due_s < end_s) & ~(journal.end_s <= start_s)
    in_flight = np.diff(integral(edges, journal.due_s[here], journal.end_s[here])) / np.diff(edges)
    columns: dict[str, Floats] = {"t_s": (edges[1:] + edges[:-1]) / 2, "in_flight": np.maximum(0.0, in_flight)}
    for metric, (when, latency) in ended.items():
        if latency.size:
            columns |= _quantiles(metric, when, latency, edges)
    return {name: tuple(column.tolist()) for name, column in columns.items()}


def _quantiles(metric: str, when: Floats, latency: Floats, edges: Floats) -> dict[str, Floats]:
    count = edges.size - 1
    bins = np.clip(np.searchsorted(edges, when, side="right") - 1, 0, count - 1)
    ordered = latency[np.lexsort((latency, bins))]
    sizes = np.bincount(bins, minlength=count)
    first = np.cumsum(sizes) - sizes
    columns = {}
    for q in QUANTILES:
        rank = first + np.maximum(0, np.ceil(q * sizes - 1e-9).astype(np.int64) - 1)
        values = ordered[np.minimum(rank, ordered.size - 1)]
        columns[f"{metric}_p{q * 100:.0f}_s"] = np.where(sizes > 0, values, np.nan)
    return columns


def histogram(latency: Floats) -> LatencyHistogram:
    """Latencies in seconds, counted in bins of one fixed grid, so that windows can be added up."""
    bins = np.ceil(np.log(np.maximum(latency, LOWEST_S) / LOWEST_S) / math.log(GROWTH) - 1e-9).astype(np.int64)
    return _trimmed(np.bincount(bins), LOWEST_S, GROWTH)


def histogram_of_gaps(gaps: Histogram) -> LatencyHistogram:
    """The load generator's finer histogram in coarser bins: every so many of its own, so that none is cut in two."""
    merged = max(1, round(math.log(GROWTH) / math.log(gaps.growth)))
    # Bin 0 stays alone: it holds whatever is not above the lowest edge.
    counts = np.concatenate(
        (gaps.counts[:1], np.add.reduceat(gaps.counts[1:], np.arange(0, gaps.counts.size - 1, merged)))
    )
    return _trimmed(counts, gaps.lowest_s, gaps.growth**merged)


def _trimmed(counts: np.ndarray[tuple[int], np.dtype[np.int64]], lowest_s: float, growth: float) -> LatencyHistogram:
    """Without the empty bins at both ends; bin 0 reaches from 0 to `lowest_s`."""
    filled = np.flatnonzero(counts)
    if filled.size == 0:
        return LatencyHistogram((), ())
    first, last = int(filled[0]), int(filled[-1])
    edges = [0.0 if i < 0 else lowest_s * growth**i for i in range(first - 1, last + 1)]
    return LatencyHistogram(tuple(edges), tuple(counts[first : last + 1].tolist()))
