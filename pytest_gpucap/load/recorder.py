"""A worker's book-keeping: figures are appended to plain lists as they come, and counted into arrays many at a time.

Appending costs tens of nanoseconds; one vectorised flush of thousands of values costs about as much for each.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from pytest_gpucap.load.fastpath.stream_state import StreamStates
from pytest_gpucap.load.shared_memory import BINS, TOKEN_BIN_S, TOKEN_BINS, Count, PhaseTable, Spread, bin_of, view

FLUSH_AT = 2_048
"""Values a list may hold before it is flushed: counting more at a time is no cheaper, and holds up what is due."""
RECENT_ANSWERS = 32
"""Answers that say whether events hold several tokens now, and how long a token's text is."""


class Recorder:
    """Gaps, token times and the worker's own lags of one worker.

    Python appends to the lists; `lane` counts into the arrays itself. `gaps` may hold NaN (a first token has no gap
    before it); those are left out.

    Attributes:
        slots: the answers under way.
        tokens: shape (TOKEN_BINS,), of the worker.
        counts, spreads: shapes (len(Count),) and (len(Spread), BINS), of the phase.
    """

    __slots__ = (
        "_counts",
        "_recent",
        "_worker",
        "bins_start_s",
        "counts",
        "gaps",
        "lags",
        "lateness",
        "loop_lags",
        "slots",
        "spreads",
        "times",
        "tokens",
    )

    def __init__(self, tokens: npt.NDArray[np.int64], bins_start_s: float, worker: int) -> None:
        self.tokens, self.bins_start_s, self._worker = tokens, bins_start_s, worker
        self.slots = StreamStates()
        # Before the first phase nothing is to be counted: these are nobody's.
        self.counts: npt.NDArray[np.int64] = np.zeros(len(Count), np.int64)
        self.spreads: npt.NDArray[np.int64] = np.zeros((len(Spread), BINS), np.int64)
        self._counts = view(self.counts)
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT_ANSWERS)
        self.gaps: list[float] = []
        self.times: list[float] = []
        self.lags: list[float] = []
        self.lateness: list[float] = []
        self.loop_lags: list[float] = []

    def begin(self, table: PhaseTable) -> None:
        """Count into another phase's table from now on."""
        self.flush()
        self.counts, self.spreads = table.counts[self._worker], table.spreads[self._worker]
        self._counts = view(self.counts)

    def add(self, count: Count, amount: int = 1) -> None:
        """Add to a counter of the current phase."""
        self._counts[count] += amount

    def highest(self, count: Count, value: int) -> None:
        """Keep the highest value seen in the current phase."""
        self._counts[count] = max(self._counts[count], value)

    def add_shared(self, events: int) -> None:
        """So many token events came in one read."""
        if events > 1:
            self.add(Count.SHARED_EVENTS, events)

    def learn(self, tokens: int, text_bytes: int) -> None:
        """So many tokens had so many bytes of text in a whole answer; 0 where each token had an event of its own."""
        self._recent.append((tokens, text_bytes) if text_bytes > 0 else (0, 0))

    @property
    def tokens_per_byte(self) -> float:
        """Of the latest whole answers with several tokens in an event, as a busy server sends them; 0 without any."""
        text_bytes = sum(size for _, size in self._recent)
        return sum(tokens for tokens, _ in self._recent) / text_bytes if text_bytes else 0.0

    def spread_tokens(self, first_s: float, last_s: float, count: int) -> None:
        """Count tokens that no event of their own brought, evenly over a time; fewer than none takes some back."""
        times = np.linspace(first_s, last_s, abs(count))
        np.add.at(self.tokens, self._bin_index(times), 1 if count > 0 else -1)

    def withdraw_token(self, time_s: float) -> None:
        """The last event was no token after all."""
        self.tokens[self._bin_index(np.array([time_s]))[0]] -= 1

    def flush_if_full(self) -> None:
        """Flush when a list has grown long."""
        if len(self.lags) > FLUSH_AT or len(self.times) > FLUSH_AT or len(self.gaps) > FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Count everything into the arrays."""
        if self.times:
            bins, counts = np.unique(self._bin_index(np.array(self.times)), return_counts=True)
            self.tokens[bins] += counts
            self.add(Count.EVENTS, len(self.times))
            self.times.clear()
        for values, spread in (
            (self.gaps, Spread.GAPS),
            (self.lateness, Spread.LATENESS),
            (self.lags, Spread.LAG),
            (self.loop_lags, Spread.LOOP),
        ):
            if values:
                array = np.array(values)
                np.add.at(self.spreads[spread], bin_of(array[~np.isnan(array)]), 1)
            values.clear()

    def _bin_index(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        index = np.floor((times - self.bins_start_s) / TOKEN_BIN_S).astype(np.int64)
        return np.clip(index, 0, TOKEN_BINS - 1)
