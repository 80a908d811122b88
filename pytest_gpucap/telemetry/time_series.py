"""Time series in flat arrays: the sampling threads append to them, other threads read them."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence

import numpy as np

from pytest_gpucap.arrays import Floats

LIMIT_ROWS = 1_000_000
"""More than a day at 10 Hz. A longer series drops its older half, so that memory stays bounded."""


class TimeSeries:
    """Rows of floats, each with a time; NaN where a figure is missing. Threads may use it at once."""

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self._columns = [array("d") for _ in range(len(self.fields) + 1)]
        self._lock = threading.Lock()

    def append(self, time_s: float, values: Sequence[float]) -> None:
        """Add a row; `values` in the order of `fields`."""
        with self._lock:
            if len(self._columns[0]) >= LIMIT_ROWS:
                for column in self._columns:
                    del column[: LIMIT_ROWS // 2]
            self._columns[0].append(time_s)
            for column, value in zip(self._columns[1:], values, strict=True):
                column.append(value)

    def all(self) -> dict[str, Floats]:
        """Copies of all columns by name, and the times as ``time_s``; shape (n,) each."""
        with self._lock:
            copies = [column[:] for column in self._columns]
        return dict(zip(("time_s", *self.fields), (np.asarray(copy) for copy in copies), strict=True))

    def window(self, start_s: float, end_s: float) -> dict[str, Floats]:
        """The rows with ``start_s <= time_s <= end_s``."""
        columns = self.all()
        first = int(np.searchsorted(columns["time_s"], start_s, side="left"))
        end = int(np.searchsorted(columns["time_s"], end_s, side="right"))
        return {name: column[first:end] for name, column in columns.items()}


def known_mean(values: Floats) -> float | None:
    """The mean of the values that are not NaN; None without any."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else None


def known_max(values: Floats) -> float | None:
    """The maximum of the values that are not NaN; None without any."""
    present = values[~np.isnan(values)]
    return float(present.max()) if present.size else None


def counter_growth(time_s: Floats, counter: Floats, start_s: float, end_s: float) -> tuple[float, float] | None:
    """How much a counter grew in the part of a window that is between two readings, and that part's seconds.

    Between readings the counter is assumed to grow evenly. A counter that falls was reset; what it grew before the next
    reading is not counted. None if no part of the window is between two readings.
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


def thinned(columns: dict[str, Floats], points: int) -> dict[str, list[float | None]]:
    """At most `points` rows as plain lists. Each is the mean of several rows; None where all of them are missing."""
    rows = columns["time_s"].size
    step = max(1, -(-rows // points))
    if step == 1:
        return {name: [None if np.isnan(v) else float(v) for v in column] for name, column in columns.items()}
    return {
        name: [known_mean(column[first : first + step]) for first in range(0, rows, step)]
        for name, column in columns.items()
    }
