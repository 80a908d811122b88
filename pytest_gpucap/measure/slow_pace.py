"""How the pace moves over a run, and how wrong its mean over the run may therefore be.

A run shows the pace of its own seconds; the rate is asked for good. Where the pace drifts over minutes, takes another
level every half minute or wanders from second to second, the mean over the run is one draw. How far such a draw lies
from what a server does for good depends on the size and the memory of the process, and a short run tells neither well:
a variance estimated from it is too small more often than not. So sizes and memories are weighed against each other
(Bayes): those of servers that were met before the run, by how well each explains the paces in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.bins import LEAST_DECODING, bins_of
from pytest_gpucap.estimate.paces import GROUP_S, PATH_BIN_S, STOP_LN, STOP_SPREADS
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import Window


@dataclass(frozen=True, slots=True)
class SlowPace:
    """What a run tells of the process that moves the pace.

    Attributes:
        errors: the chance of each size and memory, and the standard error of the mean of ln(pace) that it leaves.
        drift_sd: standard deviation of what moves over half a minute and longer, in the logarithm: the median.
    """

    errors: tuple[tuple[float, float], ...]
    drift_sd: float


@dataclass(frozen=True, slots=True)
class Paces:
    """Departures of the pace from the curve over a run, shape (k,) each, one every `GROUP_S` of load.

    Attributes:
        at_s: when.
        log: logarithm of time taken over time by the curve, stops of the engine left out.
        decoding: requests decoding.
    """

    at_s: Floats
    log: Floats
    decoding: Floats


def slow_pace(journal: Journal, windows: list[Window], speed: Speed, begin_s: float = -math.inf) -> SlowPace:
    """What some windows tell of the process.

    Args:
        journal: at the end of the windows or later.
        windows: that tell of the process.
        speed: the curve.
        begin_s: from when on they count for the mean.
    """
    return weighed(_seen(journal, windows, speed), begin_s)


def weighed(seen: Paces, begin_s: float = -math.inf) -> SlowPace:
    """Weigh sizes and memories of the process by paces. With too few of them, what is believed beforehand is left.

    Args:
        seen: in order of time.
        begin_s: from when on they count for the mean.
    """
    prior = [(chance / len(memories), sd, memory) for sd, chance, memories in c.PACE_PRIOR for memory in memories]
    counted = seen.at_s >= begin_s
    enough = seen.at_s.size >= c.LEAST_PACES and bool(counted.any())
    apart_s = np.abs(seen.at_s[:, None] - seen.at_s[None, :])
    noises = _noises(seen.log) if enough else ()
    design = np.column_stack([np.ones_like(seen.log), seen.decoding - seen.decoding.mean()]) if enough else None
    found: list[tuple[float, float, float, float]] = []
    for chance, sd, memory_s in prior:
        related = sd**2 * np.exp(-apart_s / memory_s)
        score = 0.0
        if design is not None:
            score = max(_likelihood(related, noise, seen.log, design) for noise in noises)
        error = math.sqrt(float(related[np.ix_(counted, counted)].mean())) if enough else sd
        found.append((math.log(chance) + score, error, sd, memory_s))
    most = max(score for score, *_ in found)
    weights = np.array([math.exp(score - most) for score, *_ in found])
    weights /= weights.sum()
    chances = weights.tolist()
    errors = _merged([(chance, error) for chance, (_, error, _, _) in zip(chances, found, strict=True)])
    sizes = [(chance, sd, memory_s) for chance, (_, _, sd, memory_s) in zip(chances, found, strict=True)]
    return SlowPace(errors, _median(sizes))


def _seen(journal: Journal, windows: list[Window], speed: Speed) -> Paces:
    each = max(2, round(GROUP_S / PATH_BIN_S))
    parts: list[Floats] = []
    for window in windows:
        bins = bins_of(journal, window.start_s, window.end_s, PATH_BIN_S)
        taken = speed.taken_s(bins)
        usable = (bins.decoding >= LEAST_DECODING) & (taken > 0)
        log = np.full(taken.size, np.nan)
        np.log(np.divide(bins.width_s, taken, out=np.ones_like(taken), where=usable), out=log, where=usable)
        at_s = window.start_s + np.cumsum(bins.width_s) - bins.width_s / 2.0
        parts.append(np.stack([at_s, log, bins.decoding]))
    at_s, log, decoding = np.concatenate(parts, axis=1)
    known = np.isfinite(log)
    if known.any():
        middle = float(np.median(log[known]))
        spread = 1.4826 * float(np.median(np.abs(log[known] - middle)))
        known &= ~(log - middle > max(STOP_LN, STOP_SPREADS * spread))
    at_s, log, decoding = at_s[known], log[known], decoding[known]
    whole = log.size // each * each
    grouped = [column[:whole].reshape(-1, each).mean(axis=1) for column in (at_s, log, decoding)]
    return Paces(*grouped)


def _noises(log: Floats) -> tuple[float, ...]:
    """Standard deviations that each pace may have of its own: shares of that of neighbours' differences."""
    steps = np.abs(np.diff(log))
    spread = max(1.4826 * float(np.median(steps)) / math.sqrt(2.0), c.LEAST_PACE_NOISE)
    return tuple(share * spread for share in c.PACE_NOISES)


def _likelihood(related: Floats, noise: float, log: Floats, design: Floats) -> float:
    """Logarithm of the restricted likelihood: of what is left of the paces beside the columns of `design`.

    The curve was fitted to the same paces, so their level and their slope over requests decoding say nothing.
    """
    root = np.linalg.cholesky(related + noise**2 * np.eye(log.size))
    half = np.linalg.solve(root, np.column_stack([log, design]))
    values, columns = half[:, 0], half[:, 1:]
    gram = columns.T @ columns + 1e-12 * np.eye(columns.shape[1])
    left = float(values @ values) - float((columns.T @ values) @ np.linalg.solve(gram, columns.T @ values))
    return -float(np.log(np.diag(root)).sum()) - 0.5 * float(np.linalg.slogdet(gram)[1]) - 0.5 * left


def _merged(errors: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Fewer scenarios: those of neighbouring errors are one, of their mean square."""
    errors = sorted(errors, key=lambda pair: pair[1])
    merged: list[tuple[float, float]] = []
    for chance, error in errors:
        if merged and (merged[-1][0] < c.LEAST_CHANCE or error < c.SAME_ERROR * merged[-1][1]):
            before, other = merged.pop()
            both = before + chance
            merged.append((both, math.sqrt((before * other**2 + chance * error**2) / max(both, 1e-300))))
        else:
            merged.append((chance, error))
    return tuple(merged)


def _median(scenarios: list[tuple[float, float, float]]) -> float:
    """Median size of the processes that last long; the assumed one where none does."""
    long = sorted((sd, chance) for chance, sd, memory_s in scenarios if memory_s >= c.LONG_MEMORY_S)
    total = sum(chance for _, chance in long)
    if total < 0.5:  # noqa: PLR2004 - the pace rather moves within seconds
        return c.DRIFT_SD
    reached = 0.0
    for sd, chance in long:
        reached += chance
        if reached >= total / 2.0:
            return sd
    return c.DRIFT_SD
