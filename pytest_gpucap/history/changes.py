"""Where the level of a series changed: an exact segmentation of the whole history, and how sure each place is.

The segmentation is the optimal one for squared errors with a penalty for every change (PELT: Killick, Fearnhead and
Eckley, JASA 107, 2012), by ``ruptures``. Apache Otava answers the same question; it was measured beside this
(``benchmarks/history/RESULTS.md``) and left out because it installs 40 packages, among them clients of BigQuery,
PostgreSQL and Slack, and pins NumPy to 2.2, which is not ours to decide in the environment that has the tests.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.history.alarm import run_sd

Floats = npt.NDArray[np.float64]

PENALTY: Final = 2.5
"""Squared z that one more change must be worth, in units of ln(runs)."""
SHORTEST: Final = 3
"""Runs between two changes; two outliers in a row are not a level."""
_REACH: Final = 60
"""Runs around a change where it may have begun; beyond them, a few unlikely places each would add up."""
_NEIGHBOURS: Final = 3
_CLIP_SD: Final = 2.5


class MissingLibraryError(GpuCapError, ImportError):
    """A library of the extra ``history`` is not installed; the message says how to install it."""


def change_points(logs: Floats) -> list[int]:
    """First runs of new levels, oldest first.

    Args:
        logs: logarithms of the rates, shape (runs,).

    Raises:
        MissingLibraryError: without ``ruptures``.
    """
    if logs.size < 2 * SHORTEST:
        return []
    try:
        import ruptures  # type: ignore[import-untyped]
    except ImportError:
        raise MissingLibraryError('needs ruptures: pip install "pytest-gpucap[history]"') from None
    scaled = despiked(logs) / run_sd(logs)
    penalty = PENALTY * math.log(max(logs.size, 60))
    found = ruptures.KernelCPD(kernel="linear", min_size=SHORTEST, jump=1).fit(scaled[:, None]).predict(pen=penalty)
    return [int(index) for index in found[:-1]]


def despiked(logs: Floats) -> Floats:
    """Outliers pulled to 2.5 sd from the median of their neighbourhood; a level that lasts keeps its height."""
    reach = min(_NEIGHBOURS, logs.size - 1)
    if reach < 1:
        return logs
    padded = np.pad(logs, reach, mode="reflect")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)
    most = _CLIP_SD * run_sd(logs)
    clipped: Floats = np.clip(logs, around - most, around + most)
    return clipped


def place(logs: Floats, index: int, start: int, stop: int, sd: float, confidence: float) -> tuple[int, int]:
    """Runs between which the change at `index` began: a credible set, with every place as likely beforehand.

    Args:
        logs: logarithms of the rates, shape (runs,); outliers already pulled in.
        index: the change's most likely place.
        start: first run of the level before it.
        stop: one past the last run of the level after it.
        sd: run-to-run standard deviation of `logs`.
        confidence: of the set.

    Returns:
        The earliest and the latest first run of the new level.
    """
    start, stop = max(start, index - _REACH), min(stop, index + _REACH)
    part = logs[start:stop]
    first = np.arange(1, part.size)
    sums = np.cumsum(part)
    before = sums[first - 1] / first
    after = (sums[-1] - sums[first - 1]) / (part.size - first)
    # Twice the log likelihood ratio of a change there against none (normal, known sd).
    gain = np.square(after - before) / (1 / first + 1 / (part.size - first)) / sd**2
    weight = np.exp((gain - gain.max()) / 2)
    order = np.argsort(-weight)
    enough = int(np.searchsorted(np.cumsum(weight[order]) / weight.sum(), confidence)) + 1
    chosen = {*(int(first[each]) + start for each in order[:enough]), index}
    return min(chosen), max(chosen)
