"""Where the level of a series changed: its optimal segmentation for squared errors, with a penalty for every change.

The least sum is found by dynamic programming over the last change (optimal partitioning: Jackson et al., IEEE Signal
Processing Letters 12, 2005). PELT (Killick, Fearnhead and Eckley, JASA 107, 2012) finds the same one. It leaves out
changes that cannot be the last, which pays for series of some ten thousand runs. A test compares both.
"""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Floats


def level_starts(values: Floats, *, penalty: float, shortest: int) -> list[int]:
    """First indices of all levels but the first, oldest first.

    Args:
        values: shape (runs,); finite.
        penalty: what each change must save, in squared units of the values.
        shortest: runs that each level has at least; no change is found in less than twice as many runs.
    """
    runs = values.size
    # What levels save against none: of each level, the square of its sum over its length. Centred, so that the large
    # equal part of all values costs no digits.
    sums = np.concatenate([[0.0], np.cumsum(values - values.mean())]) if runs else np.zeros(1)
    saved = np.full(runs + 1, -np.inf)  # of the runs before each index, with the best levels
    saved[0] = penalty  # the first level is no change
    last = np.zeros(runs + 1, dtype=np.int64)  # where the last of those levels starts
    for stop in range(shortest, runs + 1):
        starts = stop - shortest + 1
        levels = (sums[stop] - sums[:starts]) ** 2 / (stop - np.arange(starts))
        total = saved[:starts] + levels
        last[stop] = total.argmax()
        saved[stop] = total[last[stop]] - penalty
    found = []
    start = last[runs]
    while start > 0:
        found.append(int(start))
        start = last[start]
    return found[::-1]
