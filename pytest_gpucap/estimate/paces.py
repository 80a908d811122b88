"""What departs from the one curve that all requests share: the pace from second to second, and each request's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.bins import LEAST_DECODING, bins_of
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.load.protocol import Journal, Status

PATH_BIN_S = 0.5
"""Width of the bins of a path: finer than any wandering that a request feels, and some engine steps long."""
GROUP_S = 1.5
"""Averages over this time show whether the pace wanders. The noise of single steps is gone from them."""
WANDER_LEAST = 0.03
"""The pace wanders if those averages differ by this standard deviation of the logarithm, beyond what bins that have
nothing to do with each other would show."""
MEMORY_S = 12.0
"""The pace is taken to forget within this time: the longest lag of the long-run variance (Newey and West 1987)."""
STOP_LN = 0.5
"""A bin slower than the median by more than this, in the logarithm, may hold a stop of the engine."""
STOP_SPREADS = 4.0
"""It holds one if it is also slower by this many standard deviations: where the pace wanders, slow seconds are none."""
CLOCK_BIN_S = 0.25
"""Width of the bins in which tokens per request are counted: a few engine steps, so that the pace is followed
closely."""
LEAST_TOKENS = 24
"""Answers of fewer tokens tell no pace of their own: a step more or less is several percent of them."""
LEAST_ANSWERS = 30
"""Answers that tell a distribution of paces."""
OWN_LEAST = 0.06
"""Paces are the requests' own if they differ by this standard deviation of the logarithm. Where all run at the common
pace, what a step more or less does to them is below it."""
OWN_QUANTILES = 200
"""Paces that are kept of a distribution."""


@dataclass(frozen=True, slots=True)
class PacePath:
    """The pace over the time measured.

    Attributes:
        factors: shape (k,), time taken over time by the curve, bin by bin, without stops of the engine; one where the
            pace does not wander.
        error: standard error of the mean of their logarithms.
    """

    factors: tuple[float, ...]
    error: float


def departures(journal: Journal, start_s: float, end_s: float, speed: Speed) -> Floats:
    """Time taken over time by the curve in bins of [start_s, end_s), shape (k,).

    NaN where next to nobody decodes, and where the curve has no time for what was done.
    """
    bins = bins_of(journal, start_s, end_s, PATH_BIN_S)
    taken = speed.taken_s(bins)
    factors: Floats = np.full(taken.size, np.nan)
    np.divide(bins.width_s, taken, out=factors, where=(bins.decoding >= LEAST_DECODING) & (taken > 0))
    return factors


def pace_path(journal: Journal, spans: list[tuple[float, float]], speed: Speed) -> PacePath:
    """The pace over some spans of time."""
    logs = []
    for start_s, end_s in spans:
        factors = departures(journal, start_s, end_s, speed)
        logs.append(np.log(factors[np.isfinite(factors)]))
    log = np.concatenate(logs)
    if log.size < 12:  # noqa: PLR2004 - too few to tell noise from wandering
        return PacePath((1.0,), 0.0)
    middle = float(np.median(log))
    spread = 1.4826 * float(np.median(np.abs(log - middle)))
    log = np.where(log - middle > max(STOP_LN, STOP_SPREADS * spread), middle, log)
    each = max(2, round(GROUP_S / PATH_BIN_S))
    groups = log[: log.size // each * each].reshape(-1, each).mean(axis=1)
    beyond = float(np.var(groups, ddof=1)) - float(np.var(log, ddof=1)) / each
    error = math.sqrt(long_run_variance(log, round(MEMORY_S / PATH_BIN_S)) / log.size)
    if beyond <= WANDER_LEAST**2:
        return PacePath((1.0,), error)
    return PacePath(tuple(float(f) for f in np.exp(log)), error)


def long_run_variance(values: Floats, lags: int) -> float:
    """Variance of the mean of a series, times its length (Newey and West 1987, Bartlett weights)."""
    centred = values - values.mean()
    lags = min(lags, values.size // 3)
    total = float((centred**2).mean())
    for lag in range(1, lags + 1):
        total += 2.0 * (1.0 - lag / (lags + 1.0)) * float((centred[lag:] * centred[:-lag]).sum()) / values.size
    return max(total, 0.0)


def token_clock(journal: Journal, start_s: float, end_s: float) -> tuple[Floats, Floats]:
    """Times in [start_s, end_s], and how many tokens a request that decodes all the time has received by each of them.

    Of an answer under way, the common pace makes ``tokens / decoding`` tokens in each bin of time.

    Returns:
        Shape (k,) each, rising.
    """
    bins = bins_of(journal, start_s, end_s, CLOCK_BIN_S)
    edges: Floats = start_s + np.concatenate([[0.0], np.cumsum(bins.width_s)])
    clock: Floats = np.concatenate([[0.0], np.cumsum(bins.tokens / np.maximum(bins.decoding, LEAST_DECODING))])
    return edges, clock


def paces_of(journal: Journal, start_s: float, end_s: float) -> Floats:
    """Each answer's pace over the common one, shape (rows,); NaN where it is too short or not whole within the span."""
    counted = np.where(journal.counted_output_tokens > 0, journal.counted_output_tokens, journal.output_tokens)
    whole = (journal.status == Status.OK) & (journal.first_s >= start_s) & (journal.last_s <= end_s)
    whole &= counted >= LEAST_TOKENS
    edges, clock = token_clock(journal, start_s, end_s)
    common = np.interp(journal.last_s[whole], edges, clock) - np.interp(journal.first_s[whole], edges, clock)
    paces: Floats = np.full(whole.size, np.nan)
    paces[whole] = (counted[whole] - 1.0) / np.maximum(common, 1e-9)
    return paces


def own_paces(paces: Floats) -> tuple[float, ...]:
    """The distribution of answers' paces (`paces_of`), in rising order; empty where all run at the common one."""
    paces = paces[~np.isnan(paces)]
    if paces.size < LEAST_ANSWERS:
        return ()
    paces = np.clip(paces, *np.quantile(paces, (0.005, 0.995)))
    if float(np.std(np.log(paces))) < OWN_LEAST:
        return ()
    paces = np.quantile(paces, (np.arange(OWN_QUANTILES) + 0.5) / OWN_QUANTILES)
    # The common pace is that of the engine's time: over all answers, their own paces take as long.
    return tuple(float(p) for p in paces * float((1.0 / paces).mean()))
