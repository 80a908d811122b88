"""What a worker counts: figures are appended to plain lists as they come, and counted into arrays many at a time.

Appending costs tens of nanoseconds. One vectorised flush of thousands of values costs about as much per value.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load.fastpath.stream_state import StreamStates
from pytest_gpucap.load.shared_memory import (
    HISTOGRAM_BINS,
    TOKEN_BIN_S,
    TOKEN_BINS,
    Count,
    HistogramKind,
    PhaseTable,
    histogram_bins,
    item_view,
)

FLUSH_AT = 2_048
"""A list is flushed when it holds this many values: counting more at a time is no cheaper, and delays requests."""
RECENT_ANSWERS = 32
"""The latest answers that tell whether events hold several tokens, and how long a token's text is."""


class Recorder:
    """Gaps, token times and event loop lags of one worker.

    Python code appends to the lists; the fast reader counts into the arrays itself. `gaps` may hold NaN, because a
    first token has no gap before it; NaN is left out.

    Attributes:
        streams: the answers under way.
        cached_apart: the server leaves cached tokens out of a prompt's tokens; see `PromptRecipe`.
        tokens: shape (TOKEN_BINS,), of the worker.
        counts: shape (len(Count),), of the phase.
        histograms: shape (len(HistogramKind), HISTOGRAM_BINS), of the phase.
    """

    __slots__ = (
        "_counts",
        "_recent",
        "_worker",
        "bins_start_s",
        "cached_apart",
        "counts",
        "gaps",
        "histograms",
        "lateness",
        "loop_lags",
        "streams",
        "token_times",
        "tokens",
    )

    def __init__(self, tokens: Ints, bins_start_s: float, worker: int) -> None:
        self.tokens, self.bins_start_s, self._worker = tokens, bins_start_s, worker
        self.streams = StreamStates()
        self.cached_apart = False
        # Until the first phase begins, counts go to arrays that nobody reads.
        self.counts: Ints = np.zeros(len(Count), np.int64)
        self.histograms: Ints = np.zeros((len(HistogramKind), HISTOGRAM_BINS), np.int64)
        self._counts = item_view(self.counts)
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT_ANSWERS)
        self.gaps: list[float] = []
        self.token_times: list[float] = []
        self.lateness: list[float] = []
        self.loop_lags: list[float] = []

    def begin(self, table: PhaseTable) -> None:
        """Count into another phase's table from now on."""
        self.flush()
        self.counts, self.histograms = table.counts[self._worker], table.histograms[self._worker]
        self._counts = item_view(self.counts)

    def add(self, count: Count, amount: int = 1) -> None:
        """Add to a counter of the current phase."""
        self._counts[count] += amount

    def keep_highest(self, count: Count, value: int) -> None:
        """Raise a counter of the current phase to a value, if it is lower."""
        self._counts[count] = max(self._counts[count], value)

    def add_shared(self, events: int) -> None:
        """Count the token events that came in one read; a single event shares its time with none."""
        if events > 1:
            self.add(Count.SHARED_EVENTS, events)

    def learn_text_length(self, tokens: int, text_bytes: int) -> None:
        """Note how many bytes of text the tokens of a whole answer took; 0 where each token had its own event."""
        self._recent.append((tokens, text_bytes) if text_bytes > 0 else (0, 0))

    @property
    def tokens_per_byte(self) -> float:
        """Tokens per byte of text, in the latest answers with several tokens per event; 0 where there are none."""
        text_bytes = sum(size for _, size in self._recent)
        return sum(tokens for tokens, _ in self._recent) / text_bytes if text_bytes else 0.0

    def add_tokens_evenly(self, first_s: float, last_s: float, count: int) -> None:
        """Count tokens that had no event of their own, evenly over a time. A negative count takes tokens back."""
        times = np.linspace(first_s, last_s, abs(count))
        np.add.at(self.tokens, self._bin_index(times), 1 if count > 0 else -1)

    def withdraw_token(self, time_s: float) -> None:
        """Take back the last event's token: the event held none."""
        self.tokens[self._bin_index(np.array([time_s]))[0]] -= 1

    def flush_if_full(self) -> None:
        """Flush when a list has grown long."""
        if len(self.token_times) > FLUSH_AT or len(self.gaps) > FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Count everything into the arrays."""
        if self.token_times:
            bins, counts = np.unique(self._bin_index(np.array(self.token_times)), return_counts=True)
            self.tokens[bins] += counts
            self.add(Count.EVENTS, len(self.token_times))
            self.token_times.clear()
        for values, kind in (
            (self.gaps, HistogramKind.GAPS),
            (self.lateness, HistogramKind.LATENESS),
            (self.loop_lags, HistogramKind.LOOP),
        ):
            if values:
                array = np.array(values)
                np.add.at(self.histograms[kind], histogram_bins(array[~np.isnan(array)]), 1)
            values.clear()

    def _bin_index(self, times: Floats) -> Ints:
        index = np.floor((times - self.bins_start_s) / TOKEN_BIN_S).astype(np.int64)
        return np.clip(index, 0, TOKEN_BINS - 1)
