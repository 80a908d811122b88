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
from typing import Final

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


AS_ASSUMED: Final = SlowPace(((1.0, 0.0),), c.DRIFT_SD)
"""Nothing is known beyond the drift that every estimate assumes."""


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
    """Weigh sizes and memories of the process by paces.

    Too few of them tell nothing. Then nothing is added to the drift that every estimate assumes: most runs that are so
    short are of calm servers.

    Args:
        seen: in order of time.
        begin_s: from when on they count for the mean.
    """
    counted = seen.at_s >= begin_s
    if seen.at_s.size < c.LEAST_PACES or not counted.any():
        return AS_ASSUMED
    apart_s = np.abs(seen.at_s[:, None] - seen.at_s[None, :])
    noises = _noises(seen.log)
    columns = np.column_stack([seen.log, np.ones_like(seen.log), seen.decoding - seen.decoding.mean()])
    found: list[tuple[float, float, float, float]] = []
    for memory_s in sorted({memory for _, _, memories in c.PACE_PRIOR for memory in memories}):
        related = np.exp(-apart_s / memory_s)
        of_mean = math.sqrt(float(related[np.ix_(counted, counted)].mean()))
        # One decomposition serves all sizes and noises: they change its eigenvalues alone.
        eigenvalues, vectors = np.linalg.eigh(related)
        rotated = vectors.T @ columns
        for sd, chance, memories in c.PACE_PRIOR:
            if share := memories.count(memory_s) / len(memories):
                variances = np.maximum(sd**2 * eigenvalues, 0.0)
                score = max(_likelihood(variances + noise**2, rotated) for noise in noises)
                found.append((math.log(chance * share) + score, sd * of_mean, sd, memory_s))
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
    """Standard deviations that each pace may have of its own: shares of that of neighbours' differences.

    The last is that of all of them, seldom large ones included: on a busy host one pace in ten stands out by itself,
    which is no process that the next pace remembers.
    """
    steps = np.diff(log)
    spread = max(1.4826 * float(np.median(np.abs(steps))) / math.sqrt(2.0), c.LEAST_PACE_NOISE)
    whole = max(float(np.sqrt(np.mean(steps**2))) / math.sqrt(2.0), spread)
    return (*(share * spread for share in c.PACE_NOISES), whole)


def _likelihood(variances: Floats, rotated: Floats) -> float:
    """Logarithm of the restricted likelihood: of what is left of the paces beside a level and a slope.

    The curve was fitted to the same paces, so their level and their slope over requests decoding say nothing.

    Args:
        variances: along the eigenvectors of the process, shape (k,).
        rotated: paces, ones and requests decoding in the basis of those, shape (k, 3).
    """
    half = rotated / np.sqrt(variances)[:, None]
    values, columns = half[:, 0], half[:, 1:]
    gram = columns.T @ columns + 1e-12 * np.eye(columns.shape[1])
    left = float(values @ values) - float((columns.T @ values) @ np.linalg.solve(gram, columns.T @ values))
    return -0.5 * (float(np.log(variances).sum()) + float(np.linalg.slogdet(gram)[1]) + left)


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
