"""Requests of one session are not independent: what is uncertain of a share or a percentile is taken by session.

A session with a long history has long prompts turn after turn, and its turns meet the same busy time. Blocks of time
(`observed`, `direct`) hold requests of the same moments together, and tear a session apart that lasts longer than a
block. So the error is also taken with whole sessions as the units (the cluster bootstrap and the ratio estimator of
Cochran, "Sampling Techniques", 1977, section 11.7), and the larger of both counts.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Bools, Floats, Ints
from pytest_gpucap.load.protocol import Journal

LEAST_SESSIONS: Final = 4
"""Fewer show no spread."""


def owners(journal: Journal, rows: Ints) -> Ints:
    """Which session each of some rows is a turn of, shape (n,). Without sessions each is one of its own."""
    return rows if journal.sessions is None else journal.sessions.session[rows]


def resampled_sessions(whose: Ints, rng: np.random.Generator, count: int) -> Ints | None:
    """Resamples of whole sessions, as places of their requests.

    Args:
        whose: shape (n,), see `owners`.
        rng: random generator.
        count: how many resamples.

    Returns:
        Shape (count, n), the last session of each is cut off where n requests are reached. Without sessions (0, n):
        then blocks of time say it all. None if there are too few sessions to tell.
    """
    n = whose.size
    _, place, sizes = np.unique(whose, return_inverse=True, return_counts=True)
    if sizes.size == n:
        return np.zeros((0, n), np.int64)
    if sizes.size < LEAST_SESSIONS:
        return None
    rows = np.argsort(place, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    found = np.empty((count, n), np.int64)
    for resample in range(count):
        drawn = rng.integers(0, sizes.size, n)
        ends = np.cumsum(sizes[drawn])
        drawn = drawn[: int(np.searchsorted(ends, n)) + 1]
        lengths = sizes[drawn]
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        found[resample] = rows[(np.repeat(starts[drawn], lengths) + within)[:n]]
    return found


def error_of_share(late: Bools, whose: Ints) -> float:
    """Standard error of the share of requests that are late, with sessions as the units; 0 without sessions.

    Args:
        late: shape (n,).
        whose: shape (n,), see `owners`.
    """
    n = whose.size
    _, place, sizes = np.unique(whose, return_inverse=True, return_counts=True)
    if sizes.size == n:
        return 0.0
    if sizes.size < LEAST_SESSIONS:
        return math.inf
    departures: Floats = np.bincount(place, late, sizes.size) - late.mean() * sizes
    return float(math.sqrt(sizes.size / (sizes.size - 1) * float((departures**2).sum())) / n)
