"""Memory that the runner shares with its workers: request records, histograms, counters, token bins.

Nothing is pickled per request. A worker writes each figure into its place, and the runner reads the same memory. The
memory is anonymous (memfd), so nothing is left behind when a process dies. Rows are dealt to the workers, and every
other array has one part per worker. Two processes therefore never write to the same place, and no lock is needed.
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

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.jit import compiled
from pytest_gpucap.load.protocol import Histogram, Status

HISTOGRAM_LOWEST_S = 1e-6
HISTOGRAM_GROWTH = 1.0005
"""Percentiles of gaps, lateness and lags are right to 0.05%, from 1 us to 7 hours: 5 us in 10 ms."""
HISTOGRAM_BINS = 48_000

TOKEN_BIN_S = 0.1
TOKEN_BINS = 864_000
"""24 hours of token bins. Pages that are never touched take no memory."""


class HistogramKind(IntEnum):
    """What is counted in histograms, for each phase and worker."""

    GAPS = 0
    """Between two tokens (ITL)."""
    LATENESS = 1
    """From when a request was due to when it was sent."""
    LAG = 2
    """From the kernel's receive timestamp to our reading of the data."""
    LOOP = 3
    """From when a tick of the event loop was due to when it came."""


class Count(IntEnum):
    """What is counted for each phase and worker."""

    EVENTS = 0
    SHARED_EVENTS = 1
    """Events that came in one read with another, and so share its time."""
    USER_STAMPS = 2
    """Reads without a kernel timestamp."""
    CLOCK_STEPS = 3
    SENT = 4
    RESENT = 5
    """Sent again on a new connection, because the server had closed the kept one."""
    CPU_NS = 6
    WALL_NS = 7
    ENDED = 8
    """1 once the worker has closed the phase."""
    OUT_OF_ROWS = 9
    OPEN_SOCKETS = 10
    """The highest number in the phase."""
    WRONG_PROMPT = 11
    """Answers to prompts that had another number of tokens than asked for, as the server counted them."""
    WITHOUT_USAGE = 12
    PROMPTS = 13
    """Answers that told the tokens of their prompts."""
    WRONG_ASKED = 14
    WRONG_COUNTED = 15
    """Tokens of the prompts of `WRONG_PROMPT`, as asked for and as the server counted them."""
    ANSWERS = 16
    """Whole answers."""
    UNVERIFIED = 17
    """Whole answers without a usage, in fewer events than tokens were asked for, under ``ignore_eos``."""


class WorkerProgress(IntEnum):
    """What a worker tells about itself while it runs; int64 each."""

    HEARTBEAT_NS = 0
    IN_FLIGHT = 1
    COMPLETED = 2
    FAILED = 3
    UNSENT = 4
    """1 while a row of an open loop is due and not yet sent."""


def anonymous_memory(size: int) -> int:
    """A file descriptor of anonymous memory of `size` bytes."""
    fd = os.memfd_create("gpucap-load", os.MFD_CLOEXEC)
    os.ftruncate(fd, max(size, 1))
    return fd


def shared_bytes(data: bytes) -> int:
    """A file descriptor of anonymous memory that holds `data`: for what may be too long for one datagram."""
    fd = anonymous_memory(len(data))
    with mmap.mmap(fd, max(len(data), 1)) as memory:
        memory[: len(data)] = data
    return fd


def read_shared_bytes(fd: int, size: int) -> bytes:
    """What `shared_bytes` was given; closes the descriptor."""
    try:
        with mmap.mmap(fd, max(size, 1)) as memory:
            return memory[:size]
    finally:
        os.close(fd)


_ROW_FLOATS = ("due_s", "sent_s", "first_s", "answer_s", "last_s", "end_s")
_ROW_INTS = ("prompt_tokens", "output_tokens", "counted_prompt_tokens", "counted_output_tokens", "reasoning_tokens")
_ROW_SHORTS = ("replica",)
_ROW_BYTES = ("status", "hot", "tried")
_TURN_BYTES = 8 + 8 + 3 * 4
"""Of a row's turn: `session`, `think_s`, and `after`, `cached`, `left`."""


_Scalar = TypeVar("_Scalar", bound=np.generic)


def item_view(array: npt.NDArray[np.generic]) -> memoryview[Any]:
    """A memoryview of the array's memory: single items are read and written three times as fast as through NumPy."""
    return memoryview(array)  # type: ignore[arg-type]  # an array is a buffer; its stubs do not say so


class PhaseTable:
    """The rows of one phase, and what each worker counted in it.

    Row i belongs to worker i % workers; of sessions `session_rows.owners` tells.

    Attributes:
        session, think_s, after, cached, left: shape (rows,), see `Turns`; (0,) without sessions.
        due_s, sent_s, ...: shape (rows,), named as in `Journal`. `due`, `sent`, ... are item views of the same memory.
        tried: shape (rows,), above 0 for rows that a worker has taken, to send them or to give them up. When a row was
            sent stands here with its first token only, and a turn's due time may lie beyond the phase. `taken` is the
            item view.
        histograms: shape (workers, len(HistogramKind), HISTOGRAM_BINS).
        counts: shape (workers, len(Count)).
        first_address, sent_address: memory addresses of `first_s` and `sent_s`, for compiled code.
    """

    def __init__(self, fd: int, rows: int, workers: int, *, turns: bool = False) -> None:
        self.rows, self.workers = rows, workers
        self._memory = mmap.mmap(fd, self.size(rows, workers, turns=turns))
        self._offset = 0
        kinds = len(HistogramKind)
        histograms = self._take(np.int64, workers * kinds * HISTOGRAM_BINS)
        self.histograms: Ints = histograms.reshape(workers, kinds, HISTOGRAM_BINS)
        self.counts: Ints = self._take(np.int64, workers * len(Count)).reshape(workers, len(Count))
        self.due_s, self.sent_s, self.first_s, self.answer_s, self.last_s, self.end_s = (
            self._take(np.float64, rows) for _ in _ROW_FLOATS
        )
        in_sessions = rows if turns else 0
        self.session, self.think_s = self._take(np.int64, in_sessions), self._take(np.float64, in_sessions)
        self.prompt_tokens, self.output_tokens = (self._take(np.int32, rows) for _ in range(2))
        self.counted_prompt_tokens, self.counted_output_tokens, self.reasoning_tokens = (
            self._take(np.int32, rows) for _ in range(len(_ROW_INTS) - 2)
        )
        self.after, self.cached, self.left = (self._take(np.int32, in_sessions) for _ in range(3))
        self.replicas = self._take(np.uint16, rows)
        self.status, self.hot, self.tried = (self._take(np.uint8, rows) for _ in _ROW_BYTES)
        self.due, self.sent = item_view(self.due_s), item_view(self.sent_s)
        self.first, self.last, self.end = item_view(self.first_s), item_view(self.last_s), item_view(self.end_s)
        self.prompt, self.output = item_view(self.prompt_tokens), item_view(self.output_tokens)
        self.counted_prompt = item_view(self.counted_prompt_tokens)
        self.counted_output = item_view(self.counted_output_tokens)
        self.answer, self.reasoning = item_view(self.answer_s), item_view(self.reasoning_tokens)
        self.state, self.replica = item_view(self.status), item_view(self.replicas)
        self.taken = item_view(self.tried)
        self.first_address, self.sent_address = self.first_s.ctypes.data, self.sent_s.ctypes.data

    def _take(self, dtype: type[_Scalar], count: int) -> npt.NDArray[_Scalar]:
        array: npt.NDArray[_Scalar] = np.frombuffer(self._memory, dtype, count, self._offset)
        self._offset += array.nbytes
        return array

    @staticmethod
    def size(rows: int, workers: int, *, turns: bool = False) -> int:
        """Bytes that a table takes."""
        row = 8 * len(_ROW_FLOATS) + 4 * len(_ROW_INTS) + 2 * len(_ROW_SHORTS) + len(_ROW_BYTES)
        row += _TURN_BYTES if turns else 0
        return row * rows + 8 * workers * (len(HistogramKind) * HISTOGRAM_BINS + len(Count))

    @classmethod
    def create(cls, rows: int, workers: int, *, turns: bool = False) -> tuple[PhaseTable, int]:
        """A fresh table, all times NaN and every status IN_FLIGHT, and its descriptor, which the caller closes."""
        fd = anonymous_memory(cls.size(rows, workers, turns=turns))
        table = cls(fd, rows, workers, turns=turns)
        for name in _ROW_FLOATS:
            getattr(table, name)[:] = np.nan
        table.status[:] = Status.IN_FLIGHT
        return table, fd

    def histogram(self, kind: HistogramKind) -> Histogram:
        """All workers' values of one kind; a copy."""
        return Histogram(HISTOGRAM_LOWEST_S, HISTOGRAM_GROWTH, self.histograms[:, kind, :].sum(axis=0))


@dataclass(frozen=True, slots=True)
class RunTable:
    """What the workers write that belongs to no single phase.

    Attributes:
        progress: shape (workers, len(WorkerProgress)).
        tokens: shape (workers, TOKEN_BINS), output tokens received in each bin of `TOKEN_BIN_S`.
    """

    progress: Ints
    tokens: Ints

    @staticmethod
    def size(workers: int) -> int:
        """Bytes of the table; most are never touched."""
        return 8 * workers * (len(WorkerProgress) + TOKEN_BINS)

    @classmethod
    def attach(cls, fd: int, workers: int) -> RunTable:
        """The table behind a descriptor."""
        memory = mmap.mmap(fd, cls.size(workers))
        progress = np.frombuffer(memory, np.int64, workers * len(WorkerProgress))
        tokens = np.frombuffer(memory, np.int64, workers * TOKEN_BINS, progress.nbytes)
        return cls(progress.reshape(workers, len(WorkerProgress)), tokens.reshape(workers, TOKEN_BINS))


def histogram_bins(seconds: Floats) -> Ints:
    """The bin of each value, see `Histogram`; the same shape. Negative values fall into bin 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bins = np.ceil(np.log(seconds / HISTOGRAM_LOWEST_S) / np.log(HISTOGRAM_GROWTH) - 1e-9)
    held = np.clip(np.nan_to_num(bins, nan=0.0, neginf=0.0, posinf=HISTOGRAM_BINS), 0, HISTOGRAM_BINS - 1)
    index: Ints = held.astype(np.int64)
    return index


@compiled
def histogram_bin(seconds: float) -> int:
    """`histogram_bins` of a single value."""
    if seconds <= HISTOGRAM_LOWEST_S:
        return 0
    steps = math.log(seconds / HISTOGRAM_LOWEST_S) / math.log(HISTOGRAM_GROWTH)
    return min(math.ceil(steps - 1e-9), HISTOGRAM_BINS - 1)
