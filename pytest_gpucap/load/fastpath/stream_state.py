"""The numbers of the answers under way, where compiled code and Python both reach them: a slot for each answer."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_gpucap.load.shared_memory import view

SLOT = np.dtype(
    [
        (name, np.float64 if name.endswith("_s") else np.int64)
        for name in (
            *("first_s", "last_s", "gap_s", "sent_s"),
            *("first_address", "sent_address"),  # of the row's `first_s` and `sent_s`
            *("events", "size", "around", "line"),
            *("counted_prompt", "counted_output", "done", "state"),
        )
    ]
)
"""What is known of one answer; the names are those of `Answer`, except for the addresses and `state`."""
LINE_BYTES = 448
"""Room for how the data of an answer's token events begins."""
FEW_SLOTS = 256


class StreamPhase(IntEnum):
    """How far a connection is with its answer, between two reads."""

    HEAD = 0
    """The answer's head comes next."""
    BODY = 1
    """A chunk comes next; the parser has seen nothing of this answer."""
    PARSED = 2
    """A chunk comes next; the parser has seen the head, and waits for a chunk or the end."""
    RAW = 3
    """The parser is in the middle of something: everything goes to it."""


class StreamStates:
    """As many slots as there are answers at once, used again.

    Attributes:
        records: shape (n,), of `SLOT`. Another array after it has grown, as are `lines` and the views.
        lines: shape (n, LINE_BYTES), of which ``records["line"]`` bytes count.
        first_s, last_s, ...: views of single fields, for Python.
    """

    first_s: memoryview[Any]
    last_s: memoryview[Any]
    gap_s: memoryview[Any]
    sent_s: memoryview[Any]
    first_address: memoryview[Any]
    sent_address: memoryview[Any]
    events: memoryview[Any]
    size: memoryview[Any]
    around: memoryview[Any]
    line: memoryview[Any]
    counted_prompt: memoryview[Any]
    counted_output: memoryview[Any]
    done: memoryview[Any]
    state: memoryview[Any]

    def __init__(self) -> None:
        self._free: list[int] = []
        self._blank = bytes(_blank())
        self._hold(np.zeros(FEW_SLOTS, SLOT), np.zeros((FEW_SLOTS, LINE_BYTES), np.uint8))
        self._free.extend(range(FEW_SLOTS - 1, -1, -1))

    def _hold(self, records: npt.NDArray[Any], lines: npt.NDArray[np.uint8]) -> None:
        self.records, self.lines = records, lines
        self._bytes = view(records.view(np.uint8))
        self._text = view(lines.reshape(-1))
        for name in SLOT.names or ():
            setattr(self, name, view(records[name]))

    def take(self) -> int:
        """A slot of which nothing is known yet."""
        if not self._free:
            held = self.records.size
            more = np.zeros(held, SLOT)
            self._hold(np.concatenate([self.records, more]), np.concatenate([self.lines, np.zeros_like(self.lines)]))
            self._free.extend(range(2 * held - 1, held - 1, -1))
        slot = self._free.pop()
        self._bytes[slot * SLOT.itemsize : (slot + 1) * SLOT.itemsize] = self._blank
        return slot

    def give(self, slot: int) -> None:
        """A slot whose answer is over."""
        self._free.append(slot)

    def line_of(self, slot: int) -> bytes:
        """How the data of this answer's token events begins; empty until it is known."""
        return bytes(self._text[slot * LINE_BYTES : slot * LINE_BYTES + self.line[slot]])

    def set_line(self, slot: int, line: bytes) -> None:
        """Token events of this answer begin so; what is too long is not kept."""
        held = len(line) if len(line) <= LINE_BYTES else 0
        self._text[slot * LINE_BYTES : slot * LINE_BYTES + held] = line[:held]
        self.line[slot] = held


def _blank() -> npt.NDArray[Any]:
    blank = np.zeros(1, SLOT)
    for name in ("first_s", "last_s", "gap_s", "sent_s"):
        blank[name] = np.nan
    return blank
