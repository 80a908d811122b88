"""Time series in flat arrays: appended to by the sampling threads, read by whoever asks."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NAN = float("nan")
LIMIT_ROWS = 1_000_000
"""A day at 10 Hz and some; beyond it the older half is dropped, so that memory stays bounded."""


class TimeSeries:
    """Rows of floats with a time each; NaN where a figure is missing. Safe between threads."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self._columns = [array("d") for _ in range(len(self.fields) + 1)]
        self._lock = threading.Lock()

    def append(self, time_s: float, values: Sequence[float]) -> None:
        """One row; `values` in the order of `fields`."""
        with self._lock:
            if len(self._columns[0]) >= LIMIT_ROWS:
                for column in self._columns:
                    del column[: LIMIT_ROWS // 2]
            self._columns[0].append(time_s)
            for column, value in zip(self._columns[1:], values, strict=True):
                column.append(value)

    def all(self) -> dict[str, Floats]:
        """Every column so far under its name, and the times under ``time_s``; copies, shape (n,) each."""
        with self._lock:
            copies = [column[:] for column in self._columns]
        return dict(zip(("time_s", *self.fields), (np.asarray(copy) for copy in copies), strict=True))

    def window(self, start_s: float, end_s: float) -> dict[str, Floats]:
        """The rows with ``start_s <= time_s <= end_s``."""
        columns = self.all()
        first = int(np.searchsorted(columns["time_s"], start_s, side="left"))
        end = int(np.searchsorted(columns["time_s"], end_s, side="right"))
        return {name: column[first:end] for name, column in columns.items()}


def mean(values: Floats) -> float | None:
    """The mean of what is there; None of nothing."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


def highest(values: Floats) -> float | None:
    """The maximum of what is there; None of nothing."""
    present = values[~np.isnan(values)]
    return float(present.max()) if present.size else None


def growth(time_s: Floats, counter: Floats, start_s: float, end_s: float) -> tuple[float, float] | None:
    """How much a counter grew in a window, and over how many seconds of it that is known.

    Between readings the counter is taken to grow evenly. A counter that falls was started anew; what it lost is not
    counted. None without two readings around some part of the window.
    """
    known = ~np.isnan(counter)
    time_s, counter = time_s[known], counter[known]
    if time_s.size < 2:  # noqa: PLR2004 - a line needs two points
        return None
    since, until = max(start_s, float(time_s[0])), min(end_s, float(time_s[-1]))
    if until <= since:
        return None
    steps = np.maximum(np.diff(counter), 0.0)
    total = np.concatenate(([0.0], np.cumsum(steps)))
    first, last = np.interp([since, until], time_s, total)
    return float(last - first), until - since


def thin(columns: dict[str, Floats], points: int) -> dict[str, list[float | None]]:
    """At most `points` rows as plain lists, each the mean of the rows it stands for; None for what is missing."""
    rows = columns["time_s"].size
    step = max(1, -(-rows // points))
    if step == 1:
        return {name: [None if np.isnan(v) else float(v) for v in column] for name, column in columns.items()}
    return {
        name: [mean(column[first : first + step]) for first in range(0, rows, step)] for name, column in columns.items()
    }
