"""The model check: an open loop, simulated with its own arrivals, against what happened in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.estimate.queue_model import Calibration, ServerModel, server_of
from pytest_gpucap.estimate.queue_simulation import (
    GAP_BINS,
    GAP_GROWTH,
    GAP_LOWEST_S,
    QueueArrivals,
    QueueLatencies,
    QueueStart,
    simulate,
)
from pytest_gpucap.estimate.step_time import bins_of, integral
from pytest_gpucap.load.protocol import ERRORS, Journal, OpenLoop
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import Window
from pytest_gpucap.requirement import Metric, Slo

_TRIAL = 1.04
"""Change of pace that shows whether requests in flight depend on it."""
_FARTHEST_LN = 0.7
"""A pace off by more (in the logarithm) is not looked for: that would be another server."""
_CLOCK_BIN_S = 0.25
"""Width of the bins in which tokens per request are counted: a few engine steps, so that the pace is followed
closely."""


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """How the queue model compares with an open loop.

    Attributes:
        pace: factor on the fitted pace at which the model has as many requests in flight as were seen; NaN where
            the pace makes no difference.
        calibration: what the open loop showed beyond the model.
        violations: the largest share of requests that broke one limit.
    """

    pace: float
    calibration: Calibration
    violations: float

    @property
    def agrees(self) -> bool:
        """Whether the queue model describes what was seen."""
        return math.isnan(self.pace) or abs(math.log(self.pace)) <= c.PACE_TOLERANCE_LN


def check_model(journal: Journal, window: Window, model: ServerModel, slo: Slo) -> ModelCheck:
    """Simulate an open loop from the state in which it began, with its own arrivals, and compare.

    Args:
        journal: at the end of the open loop or later.
        window: the open loop.
        model: to be checked.
        slo: whose limits the open loop's own requests are held to.
    """
    start_s, end_s = window.span.start_s, window.span.end_s
    usable = ~np.isin(journal.status, [int(s) for s in ERRORS])
    waiting = usable & (journal.due_s < start_s) & ~(journal.first_s <= start_s) & ~(journal.end_s <= start_s)
    due = usable & (journal.due_s >= start_s) & (journal.due_s < end_s)
    rows = np.concatenate([np.flatnonzero(waiting), np.flatnonzero(due)])
    running = _running_at(journal, start_s, usable)
    arrivals = QueueArrivals(
        np.maximum(0.0, journal.due_s[rows] - start_s),
        journal.prompt_tokens[rows].astype(np.int64),
        journal.output_tokens[rows].astype(np.int64),
    )
    # The open loop had its share of the engine's stops, but nobody knows when they came: the simulation has none.
    server = server_of(model)._replace(stall_per_s=0.0, stall_s=0.0)

    @cache
    def run(factor: float) -> tuple[float, Floats, Floats]:
        found = QueueLatencies(np.full(rows.size, np.nan), np.full(rows.size, np.nan), np.zeros(rows.size))
        gaps = np.zeros(GAP_BINS)
        in_flight_s = simulate(server, factor, 0.0, arrivals, running, (0, rows.size + 1), found, gaps, end_s - start_s)
        return in_flight_s, found.ttft_s, gaps

    observed = float(np.diff(integral(np.array([start_s, end_s]), journal.due_s[usable], journal.end_s[usable]))[0])
    _, ttft, gaps = run(1.0)
    pace = observed_pace(lambda factor: run(factor)[0], observed) / (1.0 + model.stall_share)
    offset = journal.ttft_s[rows] - ttft
    offset = offset[~np.isnan(offset) & (journal.due_s[rows] >= start_s)]
    phase = window.span.phase
    rate_rps = phase.rate_rps if isinstance(phase, OpenLoop) else 0.0
    calibration = Calibration(_offset_quantiles(offset), rate_rps, _itl_factor(window, gaps, slo))
    return ModelCheck(pace, calibration, _violations(journal, window, slo))


def _running_at(journal: Journal, at_s: float, usable: Bools) -> QueueStart:
    """The requests that ran at a time, of the `usable` ones: tokens to go, and KV tokens held."""
    running = usable & (journal.first_s <= at_s) & ~(journal.end_s <= at_s)
    output = journal.output_tokens[running].astype(np.float64)
    done = np.clip(_tokens_done(journal, at_s, journal.first_s[running]), 1.0, output - 1.0)
    return QueueStart(
        np.maximum(1, output - done).astype(np.int64), (journal.prompt_tokens[running] + done).astype(np.int64)
    )


def _offset_quantiles(offset: Floats) -> tuple[float, ...]:
    """Quantiles of first-token times beyond the model's; none of too few."""
    if offset.size:
        # Requests that met a stop of the engine say nothing of the others: stops are in the model already.
        lower, middle, upper = np.quantile(offset, (0.25, 0.5, 0.75))
        offset = offset[np.abs(offset - middle) <= c.OFFSET_SPREAD * max(upper - lower, 1e-4)]
    if offset.size < c.LEAST_OFFSETS:
        return ()
    levels = (np.arange(c.OFFSET_QUANTILES) + 0.5) / c.OFFSET_QUANTILES
    return tuple(float(q) for q in np.quantile(offset, levels))


def observed_pace(in_flight: Callable[[float], float], observed: float) -> float:
    """The factor on the pace at which as many requests are in flight as were seen; NaN where they hardly depend on it.

    Searched for, not extrapolated from one trial: a server near its limit holds twice as many at a pace a few percent
    slower.

    Args:
        in_flight: requests in flight, on average, at a factor (above 1 is slower); asked for some factors twice.
        observed: those that were seen.
    """
    as_fitted = in_flight(1.0)
    sensitivity = (in_flight(_TRIAL) - as_fitted) / max(as_fitted, 1e-9) / math.log(_TRIAL)
    if not sensitivity > 0.1:  # noqa: PLR2004 - below, requests in flight hardly depend on the pace
        return math.nan
    farthest = math.copysign(_FARTHEST_LN, observed - as_fitted)

    def excess(log_factor: float) -> float:
        return in_flight(math.exp(log_factor)) - observed

    if excess(farthest) * (as_fitted - observed) > 0.0:
        return math.exp(farthest)
    return math.exp(brentq(excess, 0.0, farthest, xtol=1e-3))


def _tokens_done(journal: Journal, at_s: float, first_s: Floats) -> Floats:
    """Tokens that requests running at `at_s` had received, from when their first came and the pace since."""
    if first_s.size == 0:
        return np.zeros(0)
    begin = float(first_s.min())
    if at_s - begin < 2 * _CLOCK_BIN_S:
        return np.ones(first_s.size)
    bins = bins_of(journal, begin, at_s, _CLOCK_BIN_S)
    edges = np.concatenate([[begin], begin + np.cumsum(bins.width_s)])
    clock = np.concatenate([[0.0], np.cumsum(bins.tokens / np.maximum(bins.decoding, 0.5))])
    result: Floats = clock[-1] - np.interp(first_s, edges, clock) + 1.0
    return result


def _itl_factor(window: Window, gaps: Floats, slo: Slo) -> float:
    """Observed over modelled percentile of the inter-token gaps, where a limit is set on them; otherwise 1."""
    limits = [limit for limit in slo.limits if limit.metric is Metric.ITL]
    if not limits or window.span.gaps.total == 0:
        return 1.0
    counts = np.maximum(gaps, 0.0)
    quantile = float(limits[0].quantile)
    at = np.searchsorted(np.cumsum(counts), quantile * counts.sum())
    modelled = GAP_LOWEST_S * GAP_GROWTH ** (float(at) - 0.5)
    return float(window.span.gaps.quantile_s(quantile) / modelled)


def _violations(journal: Journal, window: Window, slo: Slo) -> float:
    """Largest share of the open loop's own requests that broke a limit; undecided requests count for neither side."""
    rows = slice(window.span.first_row, window.span.end_row)
    end_s = window.end_s
    shares = [0.0]
    age = end_s - journal.due_s[rows]
    for limit in slo.limits:
        if limit.metric is Metric.ITL:
            total = window.span.gaps.total
            shares.append(window.span.gaps.share_above(limit.limit_s) if total else 0.0)
            continue
        value = {Metric.TTFT: journal.ttft_s, Metric.E2E: journal.e2e_s, Metric.TPOT: journal.tpot_s}[limit.metric][
            rows
        ]
        ended = ~np.isnan(journal.first_s[rows] if limit.metric is Metric.TTFT else journal.end_s[rows])
        late = np.where(ended, value > limit.limit_s, (age > limit.limit_s) & (limit.metric is not Metric.TPOT))
        known = ended | late
        if known.sum() >= c.LEAST_OFFSETS:
            shares.append(float(late[known].mean()))
    return max(shares)
