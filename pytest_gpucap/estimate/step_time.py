"""The engine's speed from a journal: seconds per token with n requests decoding, and seconds per prompt token.

In every bin of time the engine spent its seconds on decode steps and on prefill::

    width = steps * (s(n) + (held - n * mean context) * k) + prompt_tokens * p,    steps = tokens / n

with `held` the KV tokens of the requests decoding. Divided by the steps, that is a linear model of s(n), k and p. s is
convex, rising and non-negative: a sum of hinges with non-negative weights. For in a small batch a step takes as long as
reading the weights, and in a large one every further sequence adds its own time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.load.protocol import Journal, Status

STEPS_PER_BIN = 16
"""Engine steps in a bin. The step that the bin's edge cuts is then 6% of it, and the next bin has the rest."""
LEAST_BIN_S = 0.4
"""Shortest bin: tokens are counted in bins of 0.1 s, whose edges do not fall on those of a bin."""
MOST_BIN_S = 2.0
"""Longest bin: a phase of 7 s must still have several, or nothing would tell its noise."""
LEAST_DECODING = 0.5
"""Bins with fewer requests decoding, on average, say nothing of the speed: the engine idles for part of them."""
STALL_EXCESS = 0.15
"""A bin that is slower than the model by more than this share, and by more than `STALL_STEPS`, contains a stop of the
engine. It is left out of the fit and counted. The noise of a bin is a few percent."""
STALL_STEPS = 3.0
"""A stop must also last for this many engine steps. With few steps in a bin, one slow step is a large share of it."""
STALL_SPREAD = 4.0
"""A stop must also exceed the usual pace by this many standard deviations, in the logarithm. Where the pace wanders, a
slow second is no stop."""
HUBER = 2.0
"""Residuals beyond this many standard deviations weigh by their inverse (Huber 1964). Normal noise keeps 95% of its
weight."""
ROUNDS = 3
"""Rounds of fitting, each with the weights and the bins that the residuals of the round before leave. The set of bins
with a stop no longer changes after the third."""
FIRST_SPREAD = 0.02
"""Spread of the residuals that the first round assumes, to weigh the priors: that of a server without stops."""
BEND_PRIOR = 0.3
"""Before the data, a bend at a knot changes the pace of the largest batch by about this share. A few batch sizes leave
open where the curve bends, and without evidence it should not."""
PREFILL_PRIOR = 0.5
"""Before the data, prefill takes about this share of the time. At a single batch size, prompts and tokens keep a fixed
ratio and their costs cannot be told apart. Without evidence the tokens bear them."""
RELATED_PRIOR = 1.8
"""Before the data, the variance of a sum of neighbouring bins' residuals over that of unrelated ones. The data mostly
say less than 1: what the cut step gives one bin, it takes from the next."""
RELATED_PRIOR_BINS = 20.0
"""Number of bins that `RELATED_PRIOR` counts for: with as many bins, the data decide half of it."""
KV_PRIOR = 0.3
"""Before the data, reading the KV cache takes about this share of a step. Lengths that hardly vary say nothing of
it."""
PACE_FLOOR = 0.1
"""No batch is faster than this share of the fastest pace seen. A curve through noise must not reach zero."""
KNOTS = (0.4, 0.7, 0.9)
"""Where the curve may bend, as shares of the highest number decoding. Enough for a curve that bends once between the
points measured."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Time in bins, shape (b,) each.

    Width, requests decoding, tokens after the first, prompt tokens prefilled, KV tokens held by the requests decoding.
    """

    width_s: Floats
    decoding: Floats
    tokens: Floats
    prompt_tokens: Floats
    held: Floats

    def excess(self, mean_context: float) -> Floats:
        """KV tokens held beyond `mean_context` per request, shape (b,); zeros where that is unknown (0)."""
        return self.held - self.decoding * mean_context if mean_context else np.zeros_like(self.held)

    def join(self, other: Bins) -> Bins:
        """Both, one after the other."""
        return Bins(*(np.concatenate([getattr(self, f), getattr(other, f)]) for f in Bins.__slots__))


def integral(times: Floats, starts: Floats, ends: Floats) -> Floats:
    """Integral over time, up to each of `times`, of how many spans [start, end) are under way; NaN: not ended."""
    begun = np.sort(starts[~np.isnan(starts)])
    ended = np.sort(ends[~np.isnan(ends) & ~np.isnan(starts)])

    def elapsed(events: Floats) -> Floats:
        before = np.searchsorted(events, times)
        total = np.concatenate([[0.0], np.cumsum(events)])
        result: Floats = before * times - total[before]
        return result

    difference: Floats = elapsed(begun) - elapsed(ended)
    return difference


def bin_width_s(step_s: float) -> float:
    """A width that holds enough steps of the engine."""
    return min(MOST_BIN_S, max(LEAST_BIN_S, STEPS_PER_BIN * step_s))


def bins_of(journal: Journal, start_s: float, end_s: float, width_s: float) -> Bins:
    """The span [start_s, end_s) in bins of about `width_s`."""
    count = max(1, round((end_s - start_s) / width_s))
    edges = np.linspace(start_s, end_s, count + 1)
    decoding = np.diff(integral(edges, journal.first_s, journal.end_s)) / np.diff(edges)
    ticks: Floats = journal.bins_start_s + journal.bin_s * np.arange(journal.tokens.size + 1, dtype=np.float64)
    made = np.interp(edges, ticks, np.concatenate([[0.0], np.cumsum(journal.tokens)]))
    first = np.sort(journal.first_s[~np.isnan(journal.first_s)])
    tokens = np.diff(made) - np.diff(np.searchsorted(first, edges))
    return Bins(
        np.diff(edges),
        decoding,
        np.maximum(tokens, 0.0),
        np.diff(_prefilled(journal, edges)),
        _held(journal, edges, ticks, made),
    )


def _held(journal: Journal, edges: Floats, ticks: Floats, made: Floats) -> Floats:
    """KV tokens of the requests decoding, mean of each bin: prompts begun and tokens made, less all of ended requests.

    `ticks`: the edges of the journal's own bins; `made`: tokens up to each of `edges`. The tokens of a request that
    failed are estimated from the pace while it ran.
    """
    begun = ~np.isnan(journal.first_s)
    over = begun & ~np.isnan(journal.end_s)

    def total(times: Floats, tokens: Floats) -> Floats:
        order = np.argsort(times, kind="stable")
        sums: Floats = np.concatenate([[0.0], np.cumsum(tokens[order])])
        return sums[np.searchsorted(times[order], edges)]

    prompt, output = journal.prompt_tokens.astype(np.float64), journal.output_tokens.astype(np.float64)
    broken = over & (journal.status != Status.OK)
    if broken.any():
        decoding = np.diff(integral(ticks, journal.first_s, journal.end_s)) / journal.bin_s
        clock = np.concatenate([[0.0], np.cumsum(journal.tokens / np.maximum(decoding, LEAST_DECODING))])
        first, end = (np.interp(t[broken], ticks, clock) for t in (journal.first_s, journal.end_s))
        output[broken] = np.minimum(output[broken], end - first)
    at = total(journal.first_s[begun], prompt[begun]) + made - total(journal.end_s[over], (prompt + output)[over])
    mean: Floats = (at[1:] + at[:-1]) / 2.0
    return mean


def _prefilled(journal: Journal, times: Floats) -> Floats:
    """Prompt tokens prefilled up to each time; a prompt is spread over the time since the one before it was done."""
    known = ~np.isnan(journal.first_s)
    order = np.argsort(journal.first_s[known], kind="stable")
    first = journal.first_s[known][order]
    if first.size == 0:
        return np.zeros_like(times)
    prompt = journal.prompt_tokens[known][order].astype(np.float64)
    before = np.concatenate([[-math.inf], first[:-1]])
    begin = np.maximum(journal.sent_s[known][order], before)
    points = np.column_stack([np.minimum(begin, first), first]).ravel()
    levels = np.concatenate([[0.0], np.cumsum(prompt)])
    values = np.column_stack([levels[:-1], levels[1:]]).ravel()
    result: Floats = np.interp(times, np.maximum.accumulate(points), values)
    return result


@dataclass(frozen=True, slots=True)
class Speed:
    """A fitted curve.

    Attributes:
        intercept_s, slope_s: of the straight part.
        knots, bends_s: where it bends upwards, and by how much per request.
        prefill_s: engine seconds per prompt token.
        least, most: requests decoding in the bins behind it (5th and 95th percentile).
        error: standard error of ln s in the middle of the data, from the residuals alone, and from how those of
            neighbouring bins are related (`related`).
        bins: behind it.
        stops_s: length of each stop of the engine, in bins left out; neighbouring bins are one.
        seconds: of bins behind it, those left out included.
        kv_token_s: seconds per step for each KV token held beyond `mean_context` per request; the curve itself is for
            requests of that context.
        mean_context: 0 where unknown.
    """

    intercept_s: float
    slope_s: float
    knots: tuple[float, ...]
    bends_s: tuple[float, ...]
    prefill_s: float
    least: float
    most: float
    error: float
    bins: int
    stops_s: tuple[float, ...]
    seconds: float
    kv_token_s: float = 0.0
    mean_context: float = 0.0

    def at(self, n: Floats) -> Floats:
        """Seconds per token with n decoding."""
        s: Floats = self.intercept_s + self.slope_s * n
        for knot, bend in zip(self.knots, self.bends_s, strict=True):
            s = s + bend * np.maximum(0.0, n - knot)
        return s

    def taken_s(self, bins: Bins) -> Floats:
        """Engine seconds that the work of each bin takes by the model, shape (b,); NaN where nobody decodes."""
        with np.errstate(invalid="ignore", divide="ignore"):
            steps = bins.tokens / bins.decoding
        pace = self.at(bins.decoding) + self.kv_token_s * bins.excess(self.mean_context)
        return steps * pace + self.prefill_s * bins.prompt_tokens

    def table(self, most: int) -> Floats:
        """`at` for n from 0 to `most`; the entry of 0, which is never used, is that of 1."""
        return self.at(np.maximum(1.0, np.arange(most + 1, dtype=np.float64)))

    def pessimistic(self, most: int) -> Floats:
        """`table`, but beyond the data throughput gains nothing from a larger batch."""
        n = np.maximum(1.0, np.arange(most + 1, dtype=np.float64))
        edge = max(1.0, self.most)
        return np.where(n <= edge, self.at(n), float(self.at(np.array([edge]))[0]) * n / edge)

    def optimistic(self, most: int) -> Floats:
        """`table`, but beyond the data the curve goes on straight along its first, flattest part."""
        n = np.maximum(1.0, np.arange(most + 1, dtype=np.float64))
        edge = max(1.0, self.most)
        at_edge = float(self.at(np.array([edge]))[0])
        # A convex curve lies above its chord from the origin's intercept; half its own mean slope is well below it.
        slope = 0.5 * max(0.0, at_edge - self.intercept_s) / edge
        return np.where(n <= edge, self.at(n), np.minimum(self.at(n), at_edge + slope * (n - edge)))


def _runs(lost_s: Floats) -> tuple[float, ...]:
    """The sums of neighbouring values above 0."""
    lost = lost_s > 0
    begins = np.flatnonzero(lost & ~np.append(False, lost[:-1]))
    if not begins.size:
        return ()
    sums = np.add.reduceat(np.append(lost_s, 0.0), np.append(begins, lost_s.size))[:-1]
    return tuple(float(each) for each in sums)


def related(residual: Floats, keep: Bools) -> float:
    """Variance of a sum of residuals over that of unrelated ones: 1 + 2 * correlation of neighbours, held to a prior.

    A long-run variance (Newey and West 1987) of one lag at full weight: an edge touches two bins, and whatever lasts
    longer is drift. `residual` and `keep`, shape (b,), are in order of time; bins left out have no neighbours.
    """
    kept = residual[keep]
    centred = np.where(keep, residual - kept.mean(), 0.0)
    # A bin far out would decide alone.
    most = HUBER * 1.4826 * float(np.median(np.abs(centred[keep]))) + 1e-12
    centred = np.clip(centred, -most, most)
    ratio = 1.0 + 2.0 * float((centred[1:] * centred[:-1]).sum()) / max(float((centred**2).sum()), 1e-30)
    return (kept.size * max(0.0, ratio) + RELATED_PRIOR_BINS * RELATED_PRIOR) / (kept.size + RELATED_PRIOR_BINS)


class SpeedError(GpuCapError, ValueError):
    """Too little was decoded for a curve."""


def fit(bins: Bins, mean_context: float = 0.0) -> Speed:
    """Fit the curve for requests that hold `mean_context` KV tokens on average; 0 leaves KV tokens out of the model.

    Raises:
        SpeedError: with fewer than 4 usable bins.
    """
    usable = (bins.decoding >= LEAST_DECODING) & (bins.tokens > 0)
    if usable.sum() < 4:  # noqa: PLR2004 - documented
        raise SpeedError("fewer than 4 bins of time in which tokens were generated")
    width, n = bins.width_s[usable], bins.decoding[usable]
    steps = bins.tokens[usable] / n
    pace = width / steps
    most = float(np.quantile(n, 0.95))
    knots = tuple(float(k * n.max()) for k in KNOTS)
    bends = (np.maximum(0.0, n - knot) for knot in knots)
    columns = [np.ones_like(n), n, *bends, bins.excess(mean_context)[usable], bins.prompt_tokens[usable] / steps]
    # Relative errors: divide by the pace itself.
    design = np.column_stack(columns) / pace[:, None]
    scale = np.maximum(np.abs(design).max(axis=0), 1e-30)
    weight = np.sqrt(width / width.mean())
    keep = np.ones(n.size, bool)
    huber = np.ones(n.size)
    solution = np.zeros(design.shape[1])
    residual = np.zeros(n.size)
    spread = FIRST_SPREAD
    # Few distinct batch sizes leave open where the curve bends: without evidence it does not.
    priors = np.zeros((len(knots) + 2, design.shape[1]))
    priors[-2, -2] = float(np.median(n)) * max(mean_context, 1.0) / float(np.median(pace)) / KV_PRIOR
    priors[:-2, 2:-2] = np.diag(np.full(len(knots), n.max() / float(np.median(pace)) / BEND_PRIOR))
    priors[-1, -1] = float(np.median(design[:, -1])) / PREFILL_PRIOR
    for _ in range(ROUNDS):
        w = (weight * np.sqrt(huber))[keep]
        rows = np.vstack([design[keep] * w[:, None], priors * spread])
        solution = nnls(rows / scale, np.concatenate([w, np.zeros(len(priors))]))[0] / scale
        residual = 1.0 - design @ solution
        centre = float(np.median(residual[keep]))
        wide = max(STALL_EXCESS, 1.0 - math.exp(-STALL_SPREAD * spread))
        keep = residual - centre < np.maximum(wide, STALL_STEPS / steps)
        spread = 1.4826 * float(np.median(np.abs(residual[keep] - np.median(residual[keep])))) + 1e-6
        huber = np.minimum(1.0, HUBER * spread / np.maximum(np.abs(residual - centre), 1e-9))
    kept = residual[keep]
    # Where requests decode and no token comes, the engine stands still.
    frozen = (bins.decoding >= LEAST_DECODING) & (bins.tokens <= 0)
    lost_s = np.where(frozen, bins.width_s, 0.0)
    lost_s[np.flatnonzero(usable)[~keep]] = (residual * width)[~keep]
    # A stop begins and ends in the middle of bins, which alone would not look like one.
    edges = (lost_s <= 0.0) & (np.append(lost_s[1:], 0.0) + np.append(0.0, lost_s[:-1]) > 0.0)
    excess_s = np.zeros(lost_s.size)
    excess_s[usable] = np.maximum(0.0, (residual - centre) * width)
    lost_s[edges] = excess_s[edges]
    error = float(np.std(kept)) * math.sqrt(related(residual, keep) / max(1.0, kept.size - 3.0))
    return Speed(
        intercept_s=max(
            float(solution[0]), PACE_FLOOR * float(pace[keep].min()) if solution[0] + solution[1] <= 0 else 0.0
        ),
        slope_s=float(solution[1]),
        knots=knots,
        bends_s=tuple(float(b) for b in solution[2:-2]),
        prefill_s=float(solution[-1]),
        least=float(np.quantile(n, 0.05)),
        most=most,
        error=error,
        bins=int(keep.sum()),
        stops_s=_runs(lost_s),
        seconds=float(width.sum() + bins.width_s[frozen].sum()),
        kv_token_s=float(solution[-2]),
        mean_context=mean_context,
    )
