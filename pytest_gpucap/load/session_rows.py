"""A worker's rows of a phase with sessions: which turn comes next, and when it is due."""

from __future__ import annotations

import heapq
import math
from collections import deque

import numpy as np

from pytest_gpucap.arrays import Ints
from pytest_gpucap.load.shared_memory import PhaseTable


def owners(session: Ints, workers: int) -> Ints:
    """The worker of each row, shape (n,): sessions are dealt out in the order in which they begin.

    A turn is due after the answer to the one before, so one worker has all turns of a session.
    """
    _, first, which = np.unique(session, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    found: Ints = rank[which] % workers
    return found


class SessionRows:
    """This worker's part of a phase of sessions; stands in for `event_loop.WorkerRows`.

    Args:
        table: with the columns of sessions.
        worker: number of the worker.
        closed: in a closed loop, the next turn is due as soon as the one before has ended.
    """

    __slots__ = ("_closed", "_due", "_firsts", "_follows", "_ready", "table")

    def __init__(self, table: PhaseTable, worker: int, *, closed: bool) -> None:
        self.table, self._closed = table, closed
        own = np.flatnonzero(owners(table.session, table.workers) == worker)
        follows = table.after[own]
        self._follows = dict(zip(follows[follows >= 0].tolist(), own[follows >= 0].tolist(), strict=True))
        firsts = own[follows < 0]
        self._firsts: deque[int] = deque(firsts.tolist() if closed else [])
        self._ready: deque[int] = deque()
        """Of a closed loop: turns whose sessions are under way."""
        self._due: list[tuple[float, int]] = (
            [] if closed else sorted(zip(table.due_s[firsts].tolist(), firsts.tolist(), strict=True))
        )
        """Of an open loop: a heap of when rows are due, and the rows."""

    @property
    def left(self) -> bool:
        """There is another row."""
        return bool(self._ready or self._firsts or self._due)

    @property
    def next_row(self) -> int:
        """The row that `take` takes."""
        if self._closed:
            return self._ready[0] if self._ready else self._firsts[0]
        return self._due[0][1]

    @property
    def due_s(self) -> float:
        """When the next row of an open loop is due; infinite when there is none."""
        return self._due[0][0] if self._due else math.inf

    def number(self, row: int) -> int:
        """The prompt number of a row: that of its session."""
        return int(self.table.session[row])

    def left_after(self, row: int) -> int:
        """Turns of the row's session after it."""
        return int(self.table.left[row])

    def upcoming(self, ahead: int) -> int | None:  # noqa: ARG002 - the same for every one
        """None: an answer may put another row before those that wait, so none is composed ahead."""
        return None

    def take(self) -> int:
        """Take the next row."""
        if self._closed:
            row = self._ready.popleft() if self._ready else self._firsts.popleft()
        else:
            row = heapq.heappop(self._due)[1]
        self.table.taken[row] = 1
        return row

    def ended(self, row: int, end_s: float) -> None:
        """A row of this phase has ended: the one that follows it is due after the think time."""
        follows = self._follows.pop(row, None)
        if follows is None:
            return
        if self._closed:
            self._ready.append(follows)
            return
        due_s = end_s + float(self.table.think_s[follows])
        self.table.due[follows] = due_s
        heapq.heappush(self._due, (due_s, follows))
