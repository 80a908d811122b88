"""Samples from a journal: what one window of time showed.

Timelines and histograms are for people to look at. No decision is made from them: the procedure reads the journal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.estimate.bins import integral
from pytest_gpucap.estimate.reasoned import first_answer_tokens, reasoning_of
from pytest_gpucap.load.latencies import good
from pytest_gpucap.load.protocol import ERRORS, ClosedLoop, Histogram, Journal, OpenLoop, PhaseSpan, Status
from pytest_gpucap.requirement import Metric, Slo, Workload
from pytest_gpucap.results.measured import Latency, LatencyHistogram, Sample
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.reasoning import TTFAT
from pytest_gpucap.results.windows import WindowId

LEAST_BIN_S = 0.5
"""Width of a timeline's bin at least. The server's telemetry comes twice a second, and a finer bin would hold a request
or two."""
MOST_BINS = 20
"""Bins of one timeline at most: a chart shows no more, and every sample has one."""
LOWEST_S = 1e-5
"""Upper edge of the first bin of a latency histogram: no latency over a network is shorter."""
GROWTH = 1.08
"""Factor between the edges of a latency histogram. It gives 30 bins per factor of ten, and a percentile read off them
is right to 8%."""
QUANTILES = (0.5, 0.95)
"""Of the latencies in each bin of a timeline: the usual one, and the one that most limits are set on."""


def quantile(values: Floats, q: float) -> float:
    """The nearest-rank percentile of values sorted in rising order; NaN of nothing."""
    if values.size == 0:
        return math.nan
    return float(values[max(0, math.ceil(q * values.size - 1e-9) - 1)])


def latency_of(values: Floats) -> Latency:
    """Percentiles of latencies in seconds."""
    values = np.sort(values)
    q50, q90, q95, q99 = (quantile(values, q) for q in (0.5, 0.9, 0.95, 0.99))
    return Latency(values.size, float(values.mean()), q50, q90, q95, q99)


def latency_of_gaps(gaps: Histogram) -> Latency:
    """Percentiles of a histogram of gaps."""
    edges = gaps.lowest_s * gaps.growth ** np.arange(gaps.counts.size)
    # The middle of a bin, in the logarithm, stands for it.
    mean = float((gaps.counts * edges).sum() / gaps.total / gaps.growth**0.5)
    q50, q90, q95, q99 = (gaps.quantile_s(q) for q in (0.5, 0.9, 0.95, 0.99))
    return Latency(gaps.total, mean, q50, q90, q95, q99)


def sample_of(
    journal: Journal,
    span: PhaseSpan,
    window: WindowId,
    slo: Slo,
    start_s: float,
    end_s: float,
    problems: tuple[Problem, ...] = (),
    workload: Workload | None = None,
) -> Sample:
    """The window [start_s, end_s) of a phase.

    A latency belongs to the window in which it ended: the first token for TTFT, the first one after the reasoning for
    TTFAT (where answers reason), the last for TPOT and E2E. In steady
    state that is an unbiased selection, where counting only requests that also began in the window drops the long ones.
    Requests that began mid-life are left out. ITL is the whole phase's. Goodput is that of the requests that ended or
    failed in the window; one that failed is not good. Where the workload's answers come as a whole, E2E alone is known.
    """
    closed = isinstance(span.phase, ClosedLoop)
    seconds = max(end_s - start_s, 1e-9)
    whole = ~journal.hot
    ended = (journal.end_s >= start_s) & (journal.end_s < end_s)
    ok = ended & (journal.status == Status.OK)
    began = whole & (journal.first_s >= start_s) & (journal.first_s < end_s)
    known: dict[Metric, tuple[Floats, Floats]] = {
        Metric.TTFT: (journal.first_s[began], journal.ttft_s[began]),
        Metric.TPOT: (journal.end_s[ok & whole], journal.tpot_s[ok & whole]),
        Metric.E2E: (journal.end_s[ok & whole], journal.e2e_s[ok & whole]),
    }
    known = {metric: (when[~np.isnan(v)], v[~np.isnan(v)]) for metric, (when, v) in known.items()}
    streamed = workload is None or workload.streamed
    if not streamed:
        known = {Metric.E2E: known[Metric.E2E]}
    values = {metric: v for metric, (_, v) in known.items()}
    named = {metric.value: pair for metric, pair in known.items()}
    if streamed and (answers := first_answer_tokens(journal, start_s, end_s)) is not None:
        named[TTFAT] = answers
    latencies = {name: latency_of(v) for name, (_, v) in named.items() if v.size}
    histograms = {name: histogram(v) for name, (_, v) in named.items() if v.size}
    if span.gaps.total and streamed:
        latencies[Metric.ITL.value] = latency_of_gaps(span.gaps)
        histograms[Metric.ITL.value] = histogram_of_gaps(span.gaps)
    goodput = _goodput(journal, slo, whole & ended)
    attainment = _attainment(span, slo, values, goodput)
    errors = {
        status.name.lower(): int(count)
        for status in sorted(ERRORS)
        if (count := int((ended & (journal.status == status)).sum()))
    }
    edges = journal.bins_start_s + journal.bin_s * np.arange(journal.tokens.size + 1)
    tokens = np.diff(np.interp([start_s, end_s], edges, np.concatenate([[0.0], np.cumsum(journal.tokens)])))[0]
    if workload is not None and not workload.endpoint.generates:
        tokens = 0.0
    in_flight = np.diff(integral(np.array([start_s, end_s]), journal.due_s, journal.end_s))[0] / seconds
    at_end = int(((journal.due_s <= end_s) & ~(journal.end_s <= end_s)).sum())
    checks: dict[str, float | int | str] = {}
    for field in fields(span.check):
        value = getattr(span.check, field.name)
        if field.name == "worker_cpu_share":
            if value:
                checks[field.name] = max(value)
        elif field.name != "problems" and not (isinstance(value, float) and math.isnan(value)):
            checks[field.name] = value
    return Sample(
        kind="closed" if closed else "open",
        window=window,
        start_s=start_s,
        end_s=end_s,
        offered_rps=span.phase.rate_rps if isinstance(span.phase, OpenLoop) else None,
        concurrency=span.phase.concurrency if isinstance(span.phase, ClosedLoop) else 0,
        requests=int(((journal.due_s >= start_s) & (journal.due_s < end_s)).sum()),
        completed_rps=float(ok.sum()) / seconds,
        output_tokens_per_s=float(tokens) / seconds,
        in_flight_mean=float(in_flight),
        in_flight_end=at_end,
        latencies=latencies,
        attainment=attainment,
        goodput=goodput,
        errors=errors,
        checks=checks,
        problems=(*span.check.problems, *problems),
        timeline=timeline(journal, named, start_s, end_s),
        histograms=histograms,
        reasoning=reasoning_of(journal, ok & whole),
    )


def _goodput(journal: Journal, slo: Slo, ended: Bools) -> float | None:
    """Share of the requests that ended or failed which kept every threshold; None without thresholds or requests."""
    served = journal.status == Status.OK
    judged = ended & (served | journal.failed)
    if not slo.good or not judged.any():
        return None
    return float((served & good(journal, slo.good))[judged].mean())


def _attainment(span: PhaseSpan, slo: Slo, values: Mapping[Metric, Floats], goodput: float | None) -> dict[str, float]:
    """Share within each limit, by its name; without those of which nothing is known."""
    found: dict[str, float] = {}
    for limit in slo.percentiles:
        if limit.of_gaps:
            if span.gaps.total:
                found[limit.name] = 1.0 - span.gaps.share_above(limit.limit_s)
        elif values[limit.metric].size:
            found[limit.name] = float((values[limit.metric] <= limit.limit_s).mean())
    if slo.goodput is not None and goodput is not None:
        found[slo.goodput.name] = goodput
    return found


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
    """The load generator's finer histogram in coarser bins, each of several whole bins of its own."""
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
