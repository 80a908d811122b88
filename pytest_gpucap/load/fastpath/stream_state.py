"""The state of the streams under way, in arrays that compiled code and Python both reach: one row per answer."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_gpucap.arrays import Bytes
from pytest_gpucap.load.shared_memory import item_view

STREAM_STATE = np.dtype(
    [
        (name, np.float64 if name.endswith("_s") else np.int64)
        for name in (
            *("first_s", "last_s", "gap_s", "sent_s", "answer_s"),
            *("first_address", "sent_address"),  # of the row's `first_s` and `sent_s`
            *("events", "event_bytes", "frame_bytes", "prefix", "last_bytes"),
            *("counted_prompt", "counted_output", "counted_at", "reasoning", "done", "read_state"),
        )
    ]
)
"""What is known of one answer.

first_s, last_s: when its first and last tokens came.
gap_s: the gap before the last event, not yet recorded: the event may turn out to hold no token.
sent_s: when the request was handed to the kernel.
answer_s: when the first token after the reasoning came, of an answer that began with reasoning.
first_address, sent_address: memory addresses of the row's `first_s` and `sent_s` in the phase table.
events: events with a token.
event_bytes: bytes of the lines of events with a token, after the first. The first may repeat the end of the prompt.
frame_bytes: bytes of such a line without its text; 0 until it is known.
prefix: bytes of how the data of token events begins, up to their choices; of events with reasoning, up to their text.
    It is renewed when it changes, as a time in it does.
last_bytes: bytes of the data of the last event with a token, if the fast reader took it: `tails` has its end. Else 0.
counted_prompt, counted_output: tokens by the latest usage in an event of its own; -1 before there is one.
counted_at: events with a token before that usage.
reasoning: events with reasoning before the first one with anything else.
done: 1 after [DONE].
read_state: a `ReadState`.
"""
PREFIX_BYTES = 448
"""Room for how the data of an answer's token events begins."""
TAIL_BYTES = 512
"""Room for the end of an answer's last token event: nearly always all of it."""
FIRST_STREAMS = 256
"""Rows at the start; they double when more are needed."""


class ReadState(IntEnum):
    """How far a connection has read its answer, between two reads."""

    HEAD = 0
    """The answer's head comes next."""
    BODY = 1
    """A chunk comes next; the parser has seen nothing of this answer."""
    PARSED = 2
    """A chunk comes next; the parser has seen the head, and waits for a chunk or the end."""
    RAW = 3
    """The parser is in the middle of something: everything goes to it."""


class StreamStates:
    """A row per answer under way; rows are used again.

    Attributes:
        records: shape (n,), of `STREAM_STATE`. After growing it is another array, as are the others and the views.
        prefixes: shape (n, PREFIX_BYTES), of which the first ``records["prefix"]`` bytes count.
        tails: shape (n, TAIL_BYTES), of which the first ``records["last_bytes"]`` bytes count.
        first_s, last_s, ...: item views of single fields, for Python code.
    """

    first_s: memoryview[Any]
    last_s: memoryview[Any]
    gap_s: memoryview[Any]
    sent_s: memoryview[Any]
    answer_s: memoryview[Any]
    first_address: memoryview[Any]
    sent_address: memoryview[Any]
    events: memoryview[Any]
    event_bytes: memoryview[Any]
    frame_bytes: memoryview[Any]
    prefix: memoryview[Any]
    last_bytes: memoryview[Any]
    counted_prompt: memoryview[Any]
    counted_output: memoryview[Any]
    counted_at: memoryview[Any]
    reasoning: memoryview[Any]
    done: memoryview[Any]
    read_state: memoryview[Any]

    def __init__(self) -> None:
        self._free: list[int] = []
        self._blank = bytes(_blank())
        self._hold(
            np.zeros(FIRST_STREAMS, STREAM_STATE),
            np.zeros((FIRST_STREAMS, PREFIX_BYTES), np.uint8),
            np.zeros((FIRST_STREAMS, TAIL_BYTES), np.uint8),
        )
        self._free.extend(range(FIRST_STREAMS - 1, -1, -1))

    def _hold(self, records: npt.NDArray[Any], prefixes: Bytes, tails: Bytes) -> None:
        self.records, self.prefixes, self.tails = records, prefixes, tails
        self._bytes = item_view(records.view(np.uint8))
        self._text = item_view(prefixes.reshape(-1))
        self._ends = item_view(tails.reshape(-1))
        for name in STREAM_STATE.names or ():
            setattr(self, name, item_view(records[name]))

    def acquire(self) -> int:
        """The index of a row of which nothing is known yet."""
        if not self._free:
            held = self.records.size
            records = np.concatenate([self.records, np.zeros(held, STREAM_STATE)])
            self._hold(records, *(np.concatenate([old, np.zeros_like(old)]) for old in (self.prefixes, self.tails)))
            self._free.extend(range(2 * held - 1, held - 1, -1))
        stream = self._free.pop()
        self._bytes[stream * STREAM_STATE.itemsize : (stream + 1) * STREAM_STATE.itemsize] = self._blank
        return stream

    def release(self, stream: int) -> None:
        """Free the row of an answer that is over."""
        self._free.append(stream)

    def prefix_of(self, stream: int) -> bytes:
        """How the data of this answer's token events begins; empty until it is known."""
        return bytes(self._text[stream * PREFIX_BYTES : stream * PREFIX_BYTES + self.prefix[stream]])

    def tail_of(self, stream: int) -> bytes:
        """The end of the answer's last token event, as the fast reader kept it: at most `TAIL_BYTES`."""
        start = stream * TAIL_BYTES
        return bytes(self._ends[start : start + min(self.last_bytes[stream], TAIL_BYTES)])

    def set_prefix(self, stream: int, prefix: bytes) -> None:
        """Set how the data of this answer's token events begins; a prefix that is too long is not kept."""
        held = len(prefix) if len(prefix) <= PREFIX_BYTES else 0
        self._text[stream * PREFIX_BYTES : stream * PREFIX_BYTES + held] = prefix[:held]
        self.prefix[stream] = held


def _blank() -> npt.NDArray[Any]:
    blank = np.zeros(1, STREAM_STATE)
    for name in ("first_s", "last_s", "gap_s", "sent_s", "answer_s"):
        blank[name] = np.nan
    blank["counted_prompt"] = blank["counted_output"] = -1
    return blank
