"""Samples from a journal: what one window of time showed."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np

from pytest_gpucap.estimate import detail
from pytest_gpucap.estimate.step_time import integral
from pytest_gpucap.load.protocol import ERRORS, ClosedLoop, Floats, Histogram, Journal, OpenLoop, PhaseSpan, Status
from pytest_gpucap.requirement import LatencyLimit, Metric
from pytest_gpucap.results.measured import Latency, Sample
from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.windows import WindowId


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
    limits: tuple[LatencyLimit, ...],
    start_s: float,
    end_s: float,
    problems: tuple[Problem, ...] = (),
) -> Sample:
    """The window [start_s, end_s) of a phase.

    A latency belongs to the window in which it ended: the first token for TTFT, the last for TPOT and E2E. In steady
    state that is an unbiased selection, where counting only requests that also began in the window drops the long ones.
    Requests that began mid-life are left out. ITL is the whole phase's.
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
    values = {metric: v for metric, (_, v) in known.items()}
    latencies = {metric.value: latency_of(v) for metric, v in values.items() if v.size}
    histograms = {metric.value: detail.histogram(v) for metric, v in values.items() if v.size}
    if span.gaps.total:
        latencies[Metric.ITL.value] = latency_of_gaps(span.gaps)
        histograms[Metric.ITL.value] = detail.histogram_of_gaps(span.gaps)
    attainment: dict[str, float] = {}
    for limit in limits:
        if limit.metric is Metric.ITL:
            if span.gaps.total:
                attainment[limit.name] = 1.0 - span.gaps.share_above(limit.limit_s)
        elif values[limit.metric].size:
            attainment[limit.name] = float((values[limit.metric] <= limit.limit_s).mean())
    errors = {
        status.name.lower(): int(count)
        for status in sorted(ERRORS)
        if (count := int((ended & (journal.status == status)).sum()))
    }
    edges = journal.bins_start_s + journal.bin_s * np.arange(journal.tokens.size + 1)
    tokens = np.diff(np.interp([start_s, end_s], edges, np.concatenate([[0.0], np.cumsum(journal.tokens)])))[0]
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
        errors=errors,
        checks=checks,
        problems=(*span.check.problems, *problems),
        timeline=detail.timeline(journal, {metric.value: pair for metric, pair in known.items()}, start_s, end_s),
        histograms=histograms,
    )
