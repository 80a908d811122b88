"""The direct check of the twin: the open loop's own arrivals, replayed, against what happened."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq

from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.queue_simulation import GAP_BINS, GAP_GROWTH, GAP_LOWEST_S, run_lane
from pytest_gpucap.estimate.step_time import bins_of, integral
from pytest_gpucap.load.protocol import ERRORS, Floats, Journal
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import Window
from pytest_gpucap.requirement import Metric, Slo

_TRIAL = 1.04
"""Change of pace that shows whether requests in flight depend on it."""
_FARTHEST_LN = 0.7
"""A pace off by more (in the logarithm) is not looked for: that would be another server."""
_CLOCK_BIN_S = 0.25


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What the replay found.

    Attributes:
        pace: factor on the fitted pace at which the replay has as many requests in flight as were seen; NaN where
            the pace makes no difference.
        ttft_offset_s: quantiles of first-token times beyond the model's, shape (k,); empty where too few.
        correction: observed over modelled percentile, for gaps.
        gross: largest share of requests that broke a limit.
    """

    pace: float
    ttft_offset_s: tuple[float, ...]
    correction: tuple[tuple[str, float], ...]
    gross: float

    @property
    def agrees(self) -> bool:
        """Whether the twin describes what was seen."""
        return math.isnan(self.pace) or abs(math.log(self.pace)) <= c.PACE_TOLERANCE_LN


def replay(journal: Journal, window: Window, model: ServerModel, slo: Slo) -> ModelCheck:
    """Start the twin in the state in which the open loop began, give it the same arrivals, and compare."""
    start_s, end_s = window.span.start_s, window.span.end_s
    usable = ~np.isin(journal.status, [int(s) for s in ERRORS])
    running = usable & (journal.first_s <= start_s) & ~(journal.end_s <= start_s)
    waiting = usable & (journal.due_s < start_s) & ~(journal.first_s <= start_s) & ~(journal.end_s <= start_s)
    due = usable & (journal.due_s >= start_s) & (journal.due_s < end_s)
    done = _tokens_done(journal, start_s, journal.first_s[running])
    output = journal.output_tokens[running].astype(np.float64)
    done = np.clip(done, 1.0, output - 1.0)
    left = np.maximum(1, output - done).astype(np.int64)
    context = (journal.prompt_tokens[running] + done).astype(np.int64)
    rows = np.concatenate([np.flatnonzero(waiting), np.flatnonzero(due)])
    due_s = np.maximum(0.0, journal.due_s[rows] - start_s)
    prompt, tokens = journal.prompt_tokens[rows].astype(np.int64), journal.output_tokens[rows].astype(np.int64)

    @cache
    def run(factor: float) -> tuple[float, Floats, Floats]:
        ttft, e2e = np.full(rows.size, np.nan), np.full(rows.size, np.nan)
        seen, gaps, load = np.zeros(rows.size), np.zeros(GAP_BINS), np.zeros(3)
        run_lane(
            model.speed, factor, model.prefill_s, model.max_seqs, model.kv_tokens, model.kv_token_s, model.mean_context,
            0.0, 0.0, 0.0, due_s, prompt, tokens, left, context, 0, rows.size + 1, ttft, e2e, seen, gaps, True,
            end_s - start_s, load,
        )  # fmt: skip
        return float(load[0]), ttft, gaps

    observed = float(np.diff(integral(np.array([start_s, end_s]), journal.due_s[usable], journal.end_s[usable]))[0])
    _, ttft, gaps = run(1.0)
    # The lane runs without stops of the engine; the open loop had its share of them.
    pace = pace_of(lambda factor: run(factor)[0], observed) / (1.0 + model.stall_share)
    offset = journal.ttft_s[rows] - ttft
    offset = offset[~np.isnan(offset) & (journal.due_s[rows] >= start_s)]
    quantiles: tuple[float, ...] = ()
    if offset.size:
        # Whom a stop of the engine caught tells nothing of the others: stops are in the model already.
        lower, middle, upper = np.quantile(offset, (0.25, 0.5, 0.75))
        offset = offset[np.abs(offset - middle) <= c.OFFSET_SPREAD * max(upper - lower, 1e-4)]
    if offset.size >= c.LEAST_OFFSETS:
        quantiles = tuple(
            float(q) for q in np.quantile(offset, (np.arange(c.OFFSET_QUANTILES) + 0.5) / c.OFFSET_QUANTILES)
        )
    return ModelCheck(pace, quantiles, _gap_correction(window, gaps, slo), _gross(journal, window, slo))


def pace_of(in_flight: Callable[[float], float], observed: float) -> float:
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


def _gap_correction(window: Window, gaps: Floats, slo: Slo) -> tuple[tuple[str, float], ...]:
    """Observed over modelled percentile of the gaps, where a limit is set on them."""
    limits = [limit for limit in slo.limits if limit.metric is Metric.ITL]
    if not limits or window.span.gaps.total == 0:
        return ()
    counts = np.maximum(gaps, 0.0)
    quantile = float(limits[0].quantile)
    at = np.searchsorted(np.cumsum(counts), quantile * counts.sum())
    modelled = GAP_LOWEST_S * GAP_GROWTH ** (float(at) - 0.5)
    return (("itl", window.span.gaps.quantile_s(quantile) / modelled),)


def _gross(journal: Journal, window: Window, slo: Slo) -> float:
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
