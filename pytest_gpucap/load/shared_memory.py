"""Memory shared between the runner and its workers: request records, histograms, counters, token bins.

Nothing is pickled per request: a worker writes each figure into its place, the runner reads the same memory. Blocks
are anonymous (memfd), so nothing is left behind whoever dies first. Rows are dealt to workers, and every other array
has one part for each worker, so no two processes ever write the same place and no lock is needed.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pytest_gpucap.jit import compiled
from pytest_gpucap.load.protocol import Floats, Histogram, Status

LOWEST_S = 1e-6
GROWTH = 1.0005
"""Percentiles of gaps, lateness and lags are right to 0.05%, from 1 us to 7 hours: 5 us in 10 ms."""
BINS = 48_000

TOKEN_BIN_S = 0.1
TOKEN_BINS = 864_000
"""24 hours of token bins; untouched pages of the block take no memory."""


class Spread(IntEnum):
    """What is counted in histograms, for each phase and worker."""

    GAPS = 0
    LATENESS = 1
    LAG = 2
    LOOP = 3


class Count(IntEnum):
    """What is counted for each phase and worker."""

    EVENTS = 0
    SHARED_EVENTS = 1
    """Events that came in one read with another, and so share its time."""
    KERNEL_STAMPS = 2
    USER_STAMPS = 3
    """Reads that carried no kernel timestamp, or one that cannot be (a clock step)."""
    CLOCK_STEPS = 4
    SENT = 5
    RESENT = 6
    """Sent again on a new connection, because the kept one had been closed under it."""
    CPU_NS = 7
    WALL_NS = 8
    ENDED = 9
    """1 once the worker has closed the phase."""
    OUT_OF_ROWS = 10
    OPEN_SOCKETS = 11
    """Highest number in the phase."""
    WRONG_PROMPT = 12
    """Answers whose prompt tokens, as the server counted them, are not those asked for."""
    WITHOUT_USAGE = 13


class WorkerState(IntEnum):
    """What a worker says of itself while it runs; int64 each."""

    HEARTBEAT_NS = 0
    IN_FLIGHT = 1
    COMPLETED = 2
    FAILED = 3
    UNSENT = 4
    """Rows of an open loop that are due but not yet sent."""


def shared_memory(size: int) -> int:
    """A file descriptor of anonymous memory of `size` bytes."""
    fd = os.memfd_create("gpucap-load", os.MFD_CLOEXEC)
    os.ftruncate(fd, max(size, 1))
    return fd


_ROW_FLOATS = ("due_s", "sent_s", "first_s", "last_s", "end_s")
_ROW_INTS = ("prompt_tokens", "output_tokens", "counted_prompt_tokens", "counted_output_tokens")
_ROW_BYTES = ("status", "hot")


_Scalar = TypeVar("_Scalar", bound=np.generic)


def view(array: npt.NDArray[np.generic]) -> memoryview[Any]:
    """The memory of an array, for single items."""
    return memoryview(array)  # type: ignore[arg-type]  # an array is a buffer; its stubs do not say so


class PhaseTable:
    """The rows of one phase, and what each worker counted in it.

    Arrays of shape (rows,) named as in `Journal`, `spreads` of shape (workers, len(Spread), BINS) and `counts` of shape
    (workers, len(Count)). Row i belongs to worker i % workers. `first_address`, `sent_address`: where
    `first_s` and `sent_s` are.
    """

    def __init__(self, fd: int, rows: int, workers: int) -> None:
        self.rows, self.workers = rows, workers
        self._memory = mmap.mmap(fd, self.size(rows, workers))
        self._offset = 0
        self.spreads: npt.NDArray[np.int64] = self._take(np.int64, workers * len(Spread) * BINS).reshape(
            workers, len(Spread), BINS
        )
        self.counts: npt.NDArray[np.int64] = self._take(np.int64, workers * len(Count)).reshape(workers, len(Count))
        self.due_s, self.sent_s, self.first_s, self.last_s, self.end_s = (
            self._take(np.float64, rows) for _ in _ROW_FLOATS
        )
        self.prompt_tokens, self.output_tokens, self.counted_prompt_tokens, self.counted_output_tokens = (
            self._take(np.int32, rows) for _ in _ROW_INTS
        )
        self.status, self.hot = (self._take(np.uint8, rows) for _ in _ROW_BYTES)
        # Single items go through memoryviews of the same memory: a third of the time that NumPy takes.
        self.due, self.sent = view(self.due_s), view(self.sent_s)
        self.first, self.last, self.end = view(self.first_s), view(self.last_s), view(self.end_s)
        self.prompt, self.output = view(self.prompt_tokens), view(self.output_tokens)
        self.counted_prompt, self.counted_output = view(self.counted_prompt_tokens), view(self.counted_output_tokens)
        self.state = view(self.status)
        self.first_address, self.sent_address = self.first_s.ctypes.data, self.sent_s.ctypes.data

    def _take(self, dtype: type[_Scalar], count: int) -> npt.NDArray[_Scalar]:
        array: npt.NDArray[_Scalar] = np.frombuffer(self._memory, dtype, count, self._offset)
        self._offset += array.nbytes
        return array

    @staticmethod
    def size(rows: int, workers: int) -> int:
        """Bytes that a table takes."""
        row = 8 * len(_ROW_FLOATS) + 4 * len(_ROW_INTS) + len(_ROW_BYTES)
        return row * rows + 8 * workers * (len(Spread) * BINS + len(Count))

    @classmethod
    def create(cls, rows: int, workers: int) -> tuple[PhaseTable, int]:
        """A fresh table, times NaN and every status IN_FLIGHT, and its descriptor (the caller closes it)."""
        fd = shared_memory(cls.size(rows, workers))
        table = cls(fd, rows, workers)
        for name in _ROW_FLOATS:
            getattr(table, name)[:] = np.nan
        table.status[:] = Status.IN_FLIGHT
        return table, fd

    def taken(self) -> npt.NDArray[np.bool_]:
        """Shape (rows,): which rows have been sent or tried; each worker takes its own in their order."""
        turn, worker = np.divmod(np.arange(self.rows), self.workers)
        taken: npt.NDArray[np.bool_] = turn < self.counts[worker, Count.SENT]
        return taken

    def histogram(self, spread: Spread) -> Histogram:
        """All workers' counts of one kind; a copy."""
        return Histogram(LOWEST_S, GROWTH, self.spreads[:, spread, :].sum(axis=0))


@dataclass(frozen=True, slots=True)
class WorkerBoard:
    """What holds across phases: `live`, shape (workers, len(WorkerState)); `tokens`, shape (workers, TOKEN_BINS)."""

    live: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]

    @staticmethod
    def size(workers: int) -> int:
        """Bytes of the board; most are never touched."""
        return 8 * workers * (len(WorkerState) + TOKEN_BINS)

    @classmethod
    def attach(cls, fd: int, workers: int) -> WorkerBoard:
        """The board behind a descriptor."""
        memory = mmap.mmap(fd, cls.size(workers))
        live = np.frombuffer(memory, np.int64, workers * len(WorkerState))
        tokens = np.frombuffer(memory, np.int64, workers * TOKEN_BINS, live.nbytes)
        return cls(live.reshape(workers, len(WorkerState)), tokens.reshape(workers, TOKEN_BINS))


def bin_of(seconds: Floats) -> npt.NDArray[np.int64]:
    """The histogram bin of each value; see `Histogram`. Negative values fall into bin 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bins = np.ceil(np.log(seconds / LOWEST_S) / np.log(GROWTH) - 1e-9)
    held = np.clip(np.nan_to_num(bins, nan=0.0, neginf=0.0, posinf=BINS), 0, BINS - 1)
    index: npt.NDArray[np.int64] = held.astype(np.int64)
    return index


@compiled
def bin_at(seconds: float) -> int:
    """`bin_of` a single value."""
    if seconds <= LOWEST_S:
        return 0
    return min(math.ceil(math.log(seconds / LOWEST_S) / math.log(GROWTH) - 1e-9), BINS - 1)
