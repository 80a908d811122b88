"""The engine's speed from a journal: seconds per token with n requests decoding, and seconds per prompt token.

In every bin of time the engine spent its seconds on decode steps and on prefill::

    width = steps * (s(n) + (held - n * mean context) * k) + prompt_tokens * p + prompt_squares * g
    steps = tokens / n

with `held` the KV tokens of the requests decoding, and `prompt_squares` the sum of the squares of prompts' lengths: a
token attends to all before it, so a prompt twice as long takes more than twice the time. Divided by the steps, that is
a linear model of s(n), k, p and g. s is convex, rising and non-negative: a sum of hinges with non-negative weights. For
in a small batch a step takes as long as reading the weights, and in a large one every further sequence adds its own
time. Where the engine has CUDA graphs for some batch sizes only, it pads a batch to the next of them, and s is a
staircase.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.estimate.bins import LEAST_DECODING, STAIRS, Bins, padded

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
GROWTH_PRIOR = 0.3
"""Before the data, what grows with the square of the prompt takes about this share of the time."""
KV_PRIOR = 0.3
"""Before the data, reading the KV cache takes about this share of a step. Lengths that hardly vary say nothing of
it."""
STAIRS_GAIN = 12.0
"""A batch is padded if that makes the residuals' log-likelihood ratio so much larger. By chance it is as large in one
fit of a thousand: a chi-square of one degree of freedom, with three candidates."""
STAIRS_SPREADS = 3.0
"""Residuals count for no more than so many standard deviations in that ratio: a stop of the engine is no stair."""
RIVAL_GAIN = 4.0
"""A staircase whose log-likelihood ratio is worse by this is less likely by the factor e. Independent bins would make
that 2; neighbours share the step that an edge cuts, and what is left of a trend."""
LEAST_RIVAL = 0.02
"""A staircase less likely than this against the curve does not count."""
APART_LN = 0.06
"""Nor does one beside a smooth curve whose steps never take so much more or less, in the logarithm."""
DECIDING = 1.4
"""Batches that decide a percentile are at most so many times the largest one measured: beyond, the curve is bounded."""
DECIDING_SIZES = 64
"""Batch sizes at which two curves are compared up to there: some on each step."""
STEP_RISES = (0.0, 0.04)
"""On one step of a staircase the time is the same for all batches, or grows by this power of the batch: their KV tokens
are read all the same."""
LEAST_STEP = 16
"""Batches that are all padded to fewer than these leave no staircase open: so few hardly change the time of a step."""
GROWING_SHARE = 0.5
"""Where all batches were padded to one size, this share of a step is taken to grow with that size: they do not tell."""
ERROR_SIZES = 12
"""Batch sizes at which the curve's error is known; in between it is interpolated."""
FURTHEST_ERROR = 1.5
"""The largest of them, over the largest in the data. Further away extremes stand for the error."""
PACE_FLOOR = 0.1
"""No batch is faster than this share of the fastest pace seen. A curve through noise must not reach zero."""
KNOTS = (0.4, 0.7, 0.9)
"""Where the curve may bend, as shares of the highest number decoding. Enough for a curve that bends once between the
points measured."""


@dataclass(frozen=True, slots=True)
class Speed:
    """A fitted curve.

    Attributes:
        intercept_s, slope_s: of the straight part.
        knots, bends_s: where it bends upwards, and by how much per request.
        prefill_s: engine seconds per prompt token, in a prompt of `even_prompt` tokens.
        least, most: requests decoding in the bins behind it (5th and 95th percentile).
        error: standard error of ln s in the middle of the data, from the residuals alone, and from how those of
            neighbouring bins are related (`related`).
        scatter: standard deviation of the logarithm of a bin's time, around the curve.
        trend: of ln(time) per second of the bins, beyond what the work in them explains; its standard error; seconds.
        errors: of ln(time per step), by requests decoding: larger where the curve rests on few bins.
        bins: behind it.
        stops_s: length of each stop of the engine, in bins left out; neighbouring bins are one.
        seconds: of bins behind it, those left out included.
        kv_token_s: seconds per step for each KV token held beyond `mean_context` per request; the curve itself is for
            requests of that context.
        mean_context: 0 where unknown.
        prefill_growth_s: engine seconds by which each prompt token takes longer for each token of its prompt beyond
            `even_prompt`.
        even_prompt: 0 where unknown.
        stair: batches are padded to its multiples; 0: they are not.
        rivals: staircases that the times leave possible beside this curve, and how likely each is against it: other
            ones, or those of which the batches measured are all on one step.
    """

    intercept_s: float
    slope_s: float
    knots: tuple[float, ...]
    bends_s: tuple[float, ...]
    prefill_s: float
    least: float
    most: float
    error: float
    scatter: float
    trend: tuple[float, float, float]
    errors: tuple[tuple[float, float], ...]
    bins: int
    stops_s: tuple[float, ...]
    seconds: float
    kv_token_s: float = 0.0
    mean_context: float = 0.0
    prefill_growth_s: float = 0.0
    even_prompt: float = 0.0
    stair: int = 0
    rivals: tuple[tuple[float, Speed], ...] = ()

    def at(self, n: Floats, size: Floats | None = None) -> Floats:
        """Seconds per token with n decoding, in a batch of `size` (None: the one that n are padded to)."""
        if size is None:
            size = padded(n, self.stair) if self.stair else n
        s: Floats = self.intercept_s + self.slope_s * size
        for knot, bend in zip(self.knots, self.bends_s, strict=True):
            s = s + bend * np.maximum(0.0, n - knot)
        return s

    def taken_s(self, bins: Bins) -> Floats:
        """Engine seconds that the work of each bin takes by the model, shape (b,); NaN where nobody decodes."""
        # A bin may end its last request's tokens with nobody left: infinite steps at a pace of 0 are no number.
        steps = np.full(bins.tokens.size, np.nan)
        np.divide(bins.tokens, bins.decoding, out=steps, where=bins.decoding > 0)
        pace = self.at(bins.decoding, bins.sizes(self.stair)) + self.kv_token_s * bins.excess(self.mean_context)
        growth = bins.prompt_squares - self.even_prompt * bins.prompt_tokens
        return steps * pace + self.prefill_s * bins.prompt_tokens + self.prefill_growth_s * growth

    def falls(self, z: float, least_ln: float) -> bool:
        """Whether times fell over the bins by `least_ln`, which is so many standard errors of it."""
        slope, error, seconds = self.trend
        return slope < -z * error and slope * seconds < -least_ln

    def error_at(self, n: float) -> float:
        """Standard error of the logarithm of the time per step with n decoding.

        Within the data a bin is near, so it is no larger than that bin's scatter. Beyond them the curve lies between a
        flat one and one in proportion to n, and either is as likely.
        """
        sizes, errors = zip(*self.errors, strict=True)
        inside = min(max(n, self.least), self.most)
        bound = abs(math.log(max(n, 1e-9) / max(inside, 1e-9))) / math.sqrt(12.0)
        near = min(float(np.interp(inside, sizes, errors)), max(self.error, self.scatter))
        return min(float(np.interp(n, sizes, errors)), math.hypot(near, bound))

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


def _trend(design: Floats, weight: Floats, at_s: Floats, alike: float) -> tuple[float, float, float]:
    """The slope of relative times over time in a regression with the curve's own columns, its error, and the span.

    A curve that was fitted first has taken up what it could of a trend: batch sizes follow each other in time.

    Args:
        design: shape (b, m): what the columns take of a bin's time, per unit of their coefficients.
        weight: shape (b,).
        at_s: shape (b,): when.
        alike: variance of sums of residuals over that of unrelated ones.
    """
    columns = design[:, np.abs(design).max(axis=0) > 0]
    columns = np.column_stack([columns / np.abs(columns).max(axis=0), at_s - at_s.mean()]) * weight[:, None]
    freedom = at_s.size - columns.shape[1]
    if freedom < 1:
        return 0.0, math.inf, 0.0
    inverse = np.linalg.pinv(columns.T @ columns)
    found = inverse @ columns.T @ weight
    left = weight - columns @ found
    variance = float(left @ left) / freedom * alike * float(inverse[-1, -1])
    return float(found[-1]), math.sqrt(max(variance, 1e-30)), float(np.ptp(at_s))


class SpeedError(GpuCapError, ValueError):
    """Too little was decoded for a curve."""


def fit(bins: Bins, mean_context: float = 0.0, even_prompt: float = 0.0) -> Speed:
    """Fit the curve, and a staircase where that explains the times clearly better.

    Args:
        bins: of time.
        mean_context: KV tokens that the requests hold on average; 0 leaves KV tokens out of the model.
        even_prompt: length of the prompt that the average prompt token is in; 0 leaves it out that prefill takes longer
            in long prompts.

    Raises:
        SpeedError: with fewer than 4 usable bins.
    """
    usable = (bins.decoding >= LEAST_DECODING) & (bins.tokens > 0)
    if usable.sum() < 4:  # noqa: PLR2004 - documented
        raise SpeedError("fewer than 4 bins of time in which tokens were generated")
    smooth, residual = _fit(bins, usable, mean_context, even_prompt, 0)
    most = STAIRS_SPREADS * (1.4826 * float(np.median(np.abs(residual - np.median(residual)))) + 1e-9)

    def lost(each: Floats) -> float:
        return float((np.clip(each - np.median(each), -most, most) ** 2).sum())

    fits = [(lost(other[1]), other[0]) for other in (_fit(bins, usable, mean_context, even_prompt, s) for s in STAIRS)]
    least, stairs = min(fits, key=lambda pair: pair[0])
    if residual.size * math.log(lost(residual) / max(least, 1e-30)) <= STAIRS_GAIN:
        stair = _one_step(smooth)
        found = [_possible(smooth, residual.size, lost(residual), pair) for pair in fits if pair[1].stair != stair]
        if stair:
            steps = [lost(_fit(bins, usable, mean_context, even_prompt, stair, rise)[1]) for rise in STEP_RISES]
            gain = residual.size * math.log(max(min(steps), 1e-30) / max(lost(residual), 1e-30))
            found.append(_unseen_step(smooth, stair, gain) if gain < STAIRS_GAIN else (0.0, smooth))
        return replace(smooth, rivals=tuple(pair for pair in found if pair[0] > LEAST_RIVAL))
    gains = [(residual.size * math.log(max(other, 1e-30) / max(least, 1e-30)), speed) for other, speed in fits]
    rivals = tuple(
        (math.exp(-gain / RIVAL_GAIN), speed) for gain, speed in gains if speed is not stairs and gain < STAIRS_GAIN
    )
    return replace(stairs, rivals=rivals)


def _possible(smooth: Speed, bins: int, lost: float, staircase: tuple[float, Speed]) -> tuple[float, Speed]:
    """A staircase that does not explain the times clearly better than a smooth curve, and how likely it is against it.

    One that makes no difference up to the batches that may decide is as good as the smooth curve: it has no chance.

    Args:
        smooth: the curve without a staircase.
        bins: behind both.
        lost: by the smooth curve's residuals.
        staircase: what its residuals lose, and the staircase.
    """
    other, speed = staircase
    n = np.linspace(smooth.least, DECIDING * smooth.most, DECIDING_SIZES)
    apart = float(np.abs(np.log(speed.at(n) / smooth.at(n))).max())
    gain = bins * math.log(max(lost, 1e-30) / max(other, 1e-30))
    return math.exp(min(0.0, gain - STAIRS_GAIN) / RIVAL_GAIN) if apart > APART_LN else 0.0, speed


def _one_step(smooth: Speed) -> int:
    """The coarsest staircase of which all batches measured are on one step; 0: they are on several of each."""
    for stair in sorted(STAIRS, reverse=True):
        least, most = padded(np.array([smooth.least, smooth.most]), stair)
        if least == most >= max(stair, LEAST_STEP):
            return stair
    return 0


def _unseen_step(smooth: Speed, stair: int, gain: float) -> tuple[float, Speed]:
    """A staircase of which the batches measured are all on one step, and how likely it is against a smooth curve.

    A flat curve and one step look the same, but the next larger batch is slower on the staircase. A staircase is rarer
    than a smooth curve, and a smooth curve is seldom as flat: before the times tell, both are as likely.

    Args:
        smooth: the curve without a staircase.
        stair: the staircase.
        gain: log-likelihood ratio by which the smooth curve explains the times better than one step.
    """
    size = float(padded(np.array([smooth.most]), stair)[0])
    step_s = float(smooth.at(np.array([smooth.most]))[0])
    growing = replace(
        smooth,
        intercept_s=(1.0 - GROWING_SHARE) * step_s,
        slope_s=GROWING_SHARE * step_s / size,
        knots=(),
        bends_s=(),
        stair=stair,
    )
    return math.exp(-max(0.0, gain) / RIVAL_GAIN), growing


def _frozen(bins: Bins) -> Bools:
    """Bins in which requests decode and no token comes: the engine stands still."""
    frozen: Bools = (bins.decoding >= LEAST_DECODING) & (bins.tokens <= 0)
    return frozen


def _lost_s(bins: Bins, usable: Bools, stopped: Bools, beyond: Floats, residual: Floats) -> Floats:
    """Seconds of each bin for which the engine stood still, shape (b,).

    Args:
        bins: all of them.
        usable: those that the curve was fitted to.
        stopped: of the usable ones, those that contain a stop.
        beyond: by how much they are slower than the usual one, as a share of their time.
        residual: the same, slower than the curve.
    """
    lost_s = np.where(_frozen(bins), bins.width_s, 0.0)
    lost_s[np.flatnonzero(usable)[stopped]] = (residual * bins.width_s[usable])[stopped]
    # A stop begins and ends in the middle of bins, which alone would not look like one.
    edges = (lost_s <= 0.0) & (np.append(lost_s[1:], 0.0) + np.append(0.0, lost_s[:-1]) > 0.0)
    excess_s = np.zeros(lost_s.size)
    excess_s[usable] = np.maximum(0.0, beyond * bins.width_s[usable])
    lost_s[edges] = excess_s[edges]
    return lost_s


def _work(sizes: Floats, stair: int, knots: tuple[float, ...], prompts: Floats) -> Floats:
    """What a step takes by each coefficient of the curve, shape (k, m): with so many decoding, shape (k,).

    `prompts`, shape (2,): squares of prompts, and prompt tokens, for each token made.
    """
    batch = padded(sizes, stair) if stair else sizes
    bends = (np.maximum(0.0, sizes - knot) for knot in knots)
    return np.column_stack([np.ones_like(sizes), batch, *bends, np.zeros_like(sizes), np.outer(sizes, prompts)])


def _step_columns(n: Floats, sizes: Floats, rise: float | None) -> tuple[Floats, Floats]:
    """What a step takes whatever the batch, and for each request in it, padded to `sizes`; on one step (see `_fit`)."""
    return (np.ones_like(n), sizes) if rise is None else ((n / n.max()) ** rise, np.zeros_like(n))


def _fit(
    bins: Bins, usable: Bools, mean_context: float, even_prompt: float, stair: int, rise: float | None = None
) -> tuple[Speed, Floats]:
    """The curve with one staircase or none, and the residuals of the `usable` bins, relative to their time.

    With a `rise` all batches are on one step of the staircase, on which the time grows with the batch by this power.
    """
    from scipy.optimize import nnls  # imported late: sessions without an estimate need nothing of SciPy

    width, n = bins.width_s[usable], bins.decoding[usable]
    steps = bins.tokens[usable] / n
    pace = width / steps
    most = float(np.quantile(n, 0.95))
    knots = tuple(float(k * n.max()) for k in KNOTS) if rise is None else ()
    bends = (np.maximum(0.0, n - knot) for knot in knots)
    squares = bins.prompt_squares[usable] if even_prompt else np.zeros_like(n)
    columns = [
        *_step_columns(n, bins.sizes(stair)[usable], rise),
        *bends,
        bins.excess(mean_context)[usable],
        squares / steps,
    ]
    columns.append(bins.prompt_tokens[usable] / steps)
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
    priors = np.zeros((len(knots) + 3, design.shape[1]))
    priors[-3, -3] = float(np.median(n)) * max(mean_context, 1.0) / float(np.median(pace)) / KV_PRIOR
    priors[:-3, 2:-3] = np.diag(np.full(len(knots), n.max() / float(np.median(pace)) / BEND_PRIOR))
    per_token = float(np.median(design[:, -1]))
    priors[-2, -2] = per_token * even_prompt / GROWTH_PRIOR
    priors[-1, -2:] = per_token * even_prompt / PREFILL_PRIOR, per_token / PREFILL_PRIOR
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
    lost_s = _lost_s(bins, usable, ~keep, residual - centre, residual)
    alike = related(residual, keep)
    trend = _trend(design[keep], weight[keep], np.cumsum(bins.width_s)[usable][keep], alike)
    scatter = float(np.std(kept))
    error = scatter * math.sqrt(alike / max(1.0, kept.size - 3.0))
    # All coefficients have an error, those that the data put at 0 too: a bend that was not seen is not excluded.
    known = np.vstack([design[keep] * (weight * np.sqrt(huber))[keep][:, None], priors * scatter]) / scale
    inverse = np.linalg.pinv(known.T @ known) / np.outer(scale, scale)
    sizes = np.linspace(0.0, FURTHEST_ERROR * float(n.max()), ERROR_SIZES + 1)[1:]
    prompts = np.array([squares.sum(), bins.prompt_tokens[usable].sum()]) / float(bins.tokens[usable].sum())
    work = _work(sizes, stair, knots, prompts)
    variances = np.maximum(0.0, np.einsum("ij,jk,ik->i", work, inverse, work))  # rounding may make them negative
    spreads = scatter * np.sqrt(alike * variances)
    errors = np.maximum(error, spreads / np.maximum(work @ solution, 1e-30))
    speed = Speed(
        intercept_s=max(
            float(solution[0]), PACE_FLOOR * float(pace[keep].min()) if solution[0] + solution[1] <= 0 else 0.0
        ),
        slope_s=float(solution[1]),
        knots=knots,
        bends_s=tuple(float(b) for b in solution[2:-3]),
        prefill_s=float(solution[-1] + solution[-2] * even_prompt),
        least=float(np.quantile(n, 0.05)),
        most=most,
        error=error,
        scatter=scatter,
        trend=trend,
        errors=tuple(zip(sizes.tolist(), errors.tolist(), strict=True)),
        bins=int(keep.sum()),
        stops_s=_runs(lost_s),
        seconds=float(width.sum() + bins.width_s[_frozen(bins)].sum()),
        kv_token_s=float(solution[-3]),
        mean_context=mean_context,
        prefill_growth_s=float(solution[-2]),
        even_prompt=even_prompt,
        stair=stair,
    )
    return speed, residual
