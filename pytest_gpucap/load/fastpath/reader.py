"""The read path as machine code: what an ordinary answer consists of is read and counted without a line of Python.

`drain` fetches what epoll has, reads each connection, stamps it by the kernel's clock and takes what is of a known
shape: a head that the parser has found good before, whole chunks of one whole event of one data line each, the last
chunk. Skipping whole chunks leaves the parser's state as it was, and a head can be given to it later; so at the first
byte that is of no such shape it hands over to Python, which has the parser (`wire`).
"""

from __future__ import annotations

import errno
import math
import platform
import select
import socket
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_gpucap.jit import compiled, foreign
from pytest_gpucap.load.clocks import ANCILLARY_BYTES, SO_TIMESTAMPNS
from pytest_gpucap.load.event_stream import FIELD
from pytest_gpucap.load.fastpath.event_grammar import OPENING, STRANGE, TOKEN, USAGE, after, shape
from pytest_gpucap.load.fastpath.stream_state import LINE_BYTES, SLOT, StreamPhase
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import TOKEN_BIN_S, TOKEN_BINS, Count, Spread, bin_at, view

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Records = npt.NDArray[Any]
Record = Any
"""One item of a structured array."""

BATCH = 256
"""Connections fetched at a time."""
FEW_DESCRIPTORS = 1024
READ_BYTES = 65_536
MAX_HEADS, HEAD_BYTES = 16, 1024
"""Known heads: with a date in it, a head comes again for a second; with a request's id, never."""


NOTHING, READY, EVENT, REST, ENDED, BROKEN, DUE = range(7)
"""What `FastReader.drain` comes back for."""

CONTROL = np.dtype(
    [
        (name, np.float64 if name.endswith("_s") else np.int64)
        for name in (
            *("epoll", "bins_start_s", "heads"),
            *("polled", "fetched", "turn"),
            *("fd", "slot", "error", "time_s", "now_s"),
            *("at", "end", "data_at", "data_end", "before"),
        )
    ]
)
"""What `drain` is told, keeps between two calls, and says; see `FastReader`."""

_epoll_wait = foreign("epoll_wait", 4)
_recvmsg = foreign("recvmsg", 3, wide=True)
_clock_gettime = foreign("clock_gettime", 2)
_errno_at = foreign("__errno_location", 0, wide=True)
_copy = foreign("memcpy", 3, wide=True)
_compare = foreign("memcmp", 3)
_find = foreign("memchr", 3, wide=True)

# struct epoll_event (epoll_ctl(2)) in 32-bit words: packed on x86-64 only.
_EVENT_WORDS, _EVENT_FD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
# `message` in 64-bit words: a struct msghdr, its iovec, its ancillary data (a cmsghdr and a timespec), a timespec.
_CONTROL_LENGTH, _IOVEC, _ANCILLARY, _NOW, _MESSAGE_WORDS = 5, 7, 9, 13, 15
_STAMPED = socket.SOL_SOCKET | SO_TIMESTAMPNS << 32
"""Level and type of the ancillary data, little-endian; elsewhere stamps are user space's, and said to be."""
_CLOCK_MONOTONIC = 1
_DONTWAIT, _WRITABLE = int(socket.MSG_DONTWAIT), int(select.EPOLLOUT)
_AGAIN, _INTERRUPTED = errno.EAGAIN, errno.EINTR

_HEAD, _BODY, _RAW = int(StreamPhase.HEAD), int(StreamPhase.BODY), int(StreamPhase.RAW)
_EVENTS, _SHARED_EVENTS, _USER_STAMPS = int(Count.EVENTS), int(Count.SHARED_EVENTS), int(Count.USER_STAMPS)
_GAPS, _LAG = int(Spread.GAPS), int(Spread.LAG)
_FIRST_S, _SENT_S = (int(SLOT.fields[name][1]) for name in ("first_s", "sent_s"))  # type: ignore[index]

SLOT_BYTES = SLOT.itemsize
MAX_DIGITS = 6
"""Of a chunk's size; a longer chunk would not fit into a read."""
_CR, _LF = 0x0D, 0x0A
_FIELD = np.frombuffer(FIELD, np.uint8)
_CRLF_FIELD = np.frombuffer(b"\r\n" + FIELD, np.uint8)
_DONE = np.frombuffer(b"[DONE]", np.uint8)
_LAST_CHUNK = np.frombuffer(b"0\r\n\r\n", np.uint8)
_EVENT_END = np.frombuffer(b"\n\n\r\n", np.uint8)
_CHOICES_END = np.frombuffer(b"]}", np.uint8)
_NULL_END = np.frombuffer(b"null}", np.uint8)


@compiled
def drain(
    timeout_ms: int,
    due_s: float,
    offset_ns: int,
    control: Records,
    slots: Records,
    lines: Bytes,
    where: Ints,
    heads: Bytes,
    head_sizes: Ints,
    buffer: Bytes,
    ready: npt.NDArray[np.int32],
    message: Ints,
    tokens: Ints,
    counts: Ints,
    spreads: Ints,
) -> tuple[int, int, float]:
    """Go on until there is nothing more, or Python has something to do; see `FastReader.drain`."""
    c = control[0]
    while True:
        if c["at"] < c["end"]:
            found = _take(c, slots, lines, heads, head_sizes, buffer, tokens, counts, spreads)
            if found == ENDED:
                where[c["fd"]] = -1
            if found != NOTHING:
                return found, c["fd"], c["time_s"]
            if c["now_s"] >= due_s:
                return DUE, c["fd"], c["now_s"]
        if c["turn"] >= c["fetched"]:
            if c["polled"]:
                c["polled"] = 0
                return NOTHING, c["fetched"], c["now_s"]
            c["polled"] = 1
            c["turn"] = 0
            c["fetched"] = max(_epoll_wait(c["epoll"], ready.ctypes.data, BATCH, timeout_ms), 0)
            continue
        fd = ready[c["turn"] * _EVENT_WORDS + _EVENT_FD]
        c["fd"] = fd
        events = ready[c["turn"] * _EVENT_WORDS]
        c["turn"] += 1
        c["slot"] = where[fd] if fd < where.size else -1
        if c["slot"] < 0 or events == _WRITABLE:
            return READY, c["fd"], c["now_s"]
        found = _receive(c, offset_ns, message, counts, spreads)
        if found != NOTHING:
            return found, c["fd"], c["now_s"]
        c["before"] = slots[c["slot"]]["events"]


@compiled
def _receive(c: Record, offset_ns: int, message: Ints, counts: Ints, spreads: Ints) -> int:
    """Read a connection into the buffer, and say when what was read had come."""
    message[_CONTROL_LENGTH] = ANCILLARY_BYTES
    read = _recvmsg(c["fd"], message.ctypes.data, _DONTWAIT)
    _clock_gettime(_CLOCK_MONOTONIC, message.ctypes.data + 8 * _NOW)
    c["now_s"] = message[_NOW] + message[_NOW + 1] * 1e-9
    c["time_s"] = c["now_s"]
    c["at"] = 0
    c["end"] = 0
    if read <= 0:
        c["error"] = 0
        if read < 0:
            # The low half of a word: errno is 32 bits wide.
            message[_ANCILLARY] = 0
            _copy(message.ctypes.data + 8 * _ANCILLARY, _errno_at(), 4)
            c["error"] = message[_ANCILLARY]
            if c["error"] == _AGAIN or c["error"] == _INTERRUPTED:
                return NOTHING
        return BROKEN
    c["end"] = read
    if message[_CONTROL_LENGTH] >= ANCILLARY_BYTES and message[_ANCILLARY + 1] == _STAMPED:
        # Never later than now: that would be a wall clock just set.
        stamp_ns = message[_ANCILLARY + 2] * 1_000_000_000 + message[_ANCILLARY + 3] - offset_ns
        c["time_s"] = min(stamp_ns * 1e-9, c["now_s"])
        spreads[_LAG, bin_at(c["now_s"] - c["time_s"])] += 1
    else:
        counts[_USER_STAMPS] += 1
    return NOTHING


@compiled
def _take(
    c: Record,
    slots: Records,
    lines: Bytes,
    heads: Bytes,
    head_sizes: Ints,
    buffer: Bytes,
    tokens: Ints,
    counts: Ints,
    spreads: Ints,
) -> int:
    """Take what is of a known shape from the rest of a read."""
    s = slots[c["slot"]]
    end = c["end"]
    if s["state"] == _HEAD:
        c["at"] = _known_head(c["heads"], heads, head_sizes, buffer, end)
        if c["at"]:
            s["state"] = _BODY
    if s["state"] == _HEAD or s["state"] == _RAW:
        return _hand_over(c, REST)
    while c["at"] < end:
        start, stop = _chunk(buffer, c["at"], end)
        if start == stop:
            if s["state"] == _BODY and after(buffer, c["at"], end, _LAST_CHUNK) == end:
                _count_shared(c, s, counts)
                return _hand_over(c, ENDED)
            return _hand_over(c, REST)
        c["at"] = stop + _EVENT_END.size
        kind = _kind(c, s, lines, buffer, start, stop)
        if kind == TOKEN:
            _token(c, s, slots, stop - start, tokens, counts, spreads)
        elif kind == STRANGE:
            c["data_at"] = start
            c["data_end"] = stop
            return EVENT
    _count_shared(c, s, counts)
    return NOTHING


@compiled
def _known_head(known: int, heads: Bytes, head_sizes: Ints, buffer: Bytes, end: int) -> int:
    """The size of the known head that the buffer begins with; 0 if it is none."""
    for i in range(known):
        size: int = head_sizes[i]
        if size <= end and _compare(buffer.ctypes.data, heads.ctypes.data + i * HEAD_BYTES, size) == 0:
            return size
    return 0


@compiled
def _kind(c: Record, s: Record, lines: Bytes, buffer: Bytes, start: int, stop: int) -> int:
    """What an event's data is, and what is to be kept of it: how tokens begin, the usage, that it was the last one."""
    size = stop - start
    text = buffer.ctypes.data + start
    line = lines.ctypes.data + c["slot"] * LINE_BYTES
    kind = TOKEN
    if not s["line"] or size < s["line"] or _compare(text, line, s["line"]) != 0:
        kind, first, second = shape(buffer, start, stop)
        if kind == TOKEN:
            s["line"] = first if first <= LINE_BYTES else 0
            _copy(line, text, s["line"])
            s["around"] = _FIELD.size + size - second
        elif kind == USAGE:
            s["counted_prompt"] = first
            s["counted_output"] = second
        elif kind == STRANGE and after(buffer, start, stop, _DONE) == stop:
            s["done"] = 1
            return OPENING
    # Where something follows the choices, a usage may be in there.
    if kind == TOKEN and after(buffer, stop - _CHOICES_END.size, stop, _CHOICES_END) < 0:
        return TOKEN if after(buffer, stop - _NULL_END.size, stop, _NULL_END) > 0 else STRANGE
    return kind


@compiled
def _chunk(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """Where the data of the one event of one line begins and ends that is all of the chunk at `at`; else 0, 0."""
    size, start = 0, at
    while start < min(end, at + MAX_DIGITS):
        digit = _hexadecimal(int(buffer[start]))
        if digit < 0:
            break
        size = 16 * size + digit
        start += 1
    if start == at:
        return 0, 0
    start = after(buffer, start, end, _CRLF_FIELD)
    stop = start + size - _FIELD.size - 2
    if not 0 < start < stop or after(buffer, stop, end, _EVENT_END) < 0:
        return 0, 0
    first = buffer.ctypes.data + start
    if _find(first, _LF, stop - start) or _find(first, _CR, stop - start):
        return 0, 0
    return start, stop


@compiled
def _hexadecimal(byte: int) -> int:
    if 0x30 <= byte <= 0x39:  # noqa: PLR2004 - digits
        return byte - 0x30
    letter = byte | 0x20
    return letter - 0x57 if 0x61 <= letter <= 0x66 else -1  # noqa: PLR2004 - a to f


@compiled
def _token(c: Record, s: Record, slots: Records, size: int, tokens: Ints, counts: Ints, spreads: Ints) -> None:
    """`Answer.token`, and what the recorder makes of it."""
    time_s = c["time_s"]
    if s["events"]:
        if s["gap_s"] == s["gap_s"]:  # not NaN
            spreads[_GAPS, bin_at(s["gap_s"])] += 1
        s["gap_s"] = time_s - s["last_s"]
        s["size"] += _FIELD.size + size
    else:
        s["first_s"] = time_s
        at = slots.ctypes.data + c["slot"] * SLOT_BYTES
        _copy(s["first_address"], at + _FIRST_S, 8)
        _copy(s["sent_address"], at + _SENT_S, 8)
    s["events"] += 1
    s["last_s"] = time_s
    counts[_EVENTS] += 1
    tokens[min(max(math.floor((time_s - c["bins_start_s"]) / TOKEN_BIN_S), 0), TOKEN_BINS - 1)] += 1


@compiled
def _count_shared(c: Record, s: Record, counts: Ints) -> None:
    """What came in one read shares its time."""
    if s["events"] > c["before"] + 1:
        counts[_SHARED_EVENTS] += s["events"] - c["before"]


@compiled
def _hand_over(c: Record, found: int) -> int:
    """Leave the rest of the read to Python."""
    c["data_at"] = c["at"]
    c["data_end"] = c["end"]
    c["at"] = c["end"]
    return found


class FastReader:
    """A worker's connections, the ordinary ones read by compiled code. Properties speak of what it came back for."""

    __slots__ = (
        "_buffer",
        "_control",
        "_head_sizes",
        "_heads",
        "_learned",
        "_message",
        "_ready",
        "_recorder",
        "_said",
        "_text",
        "_to_be_read",
        "_where",
    )

    def __init__(self, epoll: int, recorder: Recorder) -> None:
        self._recorder = recorder
        self._control = np.zeros(1, CONTROL)
        self._control["epoll"], self._control["bins_start_s"] = epoll, recorder.bins_start_s
        self._said: dict[str, memoryview[Any]] = {name: view(self._control[name]) for name in CONTROL.names or ()}
        self._where = np.full(FEW_DESCRIPTORS, -1, np.int64)
        self._to_be_read = view(self._where)
        self._heads = np.zeros((MAX_HEADS, HEAD_BYTES), np.uint8)
        self._head_sizes = np.zeros(MAX_HEADS, np.int64)
        self._learned = 0
        self._buffer = np.zeros(READ_BYTES, np.uint8)
        self._text = view(self._buffer)
        self._ready = np.zeros(BATCH * _EVENT_WORDS, np.int32)
        self._message = np.zeros(_MESSAGE_WORDS, np.int64)
        at = self._message.ctypes.data
        self._message[2:5] = at + 8 * _IOVEC, 1, at + 8 * _ANCILLARY
        self._message[_IOVEC : _IOVEC + 2] = self._buffer.ctypes.data, READ_BYTES

    def drain(self, timeout_ms: int, due_s: float, offset_ns: int) -> tuple[int, int, float]:
        """Read what is ready, waiting for it `timeout_ms` at most, until there is something for Python to do.

        `offset_ns` is what the kernel's stamps are ahead of the monotonic clock.

        Returns:
            What it is, which descriptor it is about, and when that had come (BROKEN: when it was read). To be called
            again, which goes on, until it is NOTHING. It is one of

            NOTHING: everything that was ready has been read; instead of a descriptor, how many were ready.
            READY: epoll has a descriptor that is not to be read here.
            EVENT: `data` is that of a whole event of no ordinary shape; what comes after it is taken next.
            REST: `data` is all that is left of the read, of no known shape.
            ENDED: the answer is whole, and the connection is not to be read any more.
            BROKEN: the connection failed with an `error`, or the server closed it (0).
            DUE: it is `due_s`, and a request is to be sent.
        """
        recorder = self._recorder
        slots = recorder.slots
        return drain(
            timeout_ms,
            due_s,
            offset_ns,
            self._control,
            slots.records,
            slots.lines,
            self._where,
            self._heads,
            self._head_sizes,
            self._buffer,
            self._ready,
            self._message,
            recorder.tokens,
            recorder.counts,
            recorder.spreads,
        )

    def read(self, fd: int, slot: int) -> None:
        """Read this connection into this answer from now on."""
        while fd >= self._where.size:
            self._where = np.concatenate([self._where, np.full_like(self._where, -1)])
            self._to_be_read = view(self._where)
        self._to_be_read[fd] = slot

    def leave(self, fd: int) -> None:
        """Read this connection no more, and forget what is left of a read of it."""
        if fd < self._where.size:
            self._to_be_read[fd] = -1
        if fd == self._said["fd"][0]:
            self._said["at"][0] = self._said["end"][0]

    def learn(self, head: bytes) -> None:
        """The parser has found this head to begin an event stream in chunks on a connection that is kept."""
        if len(head) <= HEAD_BYTES:
            at = self._learned % MAX_HEADS
            self._heads[at, : len(head)] = np.frombuffer(head, np.uint8)
            self._head_sizes[at] = len(head)
            self._learned += 1
            self._said["heads"][0] = min(self._learned, MAX_HEADS)

    @property
    def error(self) -> int:
        """Why the connection is broken (errno); 0 where the server closed it."""
        error: int = self._said["error"][0]
        return error

    @property
    def events_before(self) -> int:
        """Token events that the answer had before this read."""
        before: int = self._said["before"][0]
        return before

    @property
    def at_end(self) -> bool:
        """Nothing is left of this read."""
        at_end: bool = self._said["at"][0] == self._said["end"][0]
        return at_end

    def data(self) -> bytes:
        """The event's data, or the rest of the read."""
        return bytes(self._text[self._said["data_at"][0] : self._said["data_end"][0]])
