"""The read path as machine code: an ordinary answer is read and counted without a line of Python.

`FastReader.drain` fetches what epoll has, reads each connection, stamps the data by the kernel's clock, and takes what
has a known form: a head that the parser has accepted before, whole chunks that each hold one whole event of one data
line, and the last chunk. At the first byte of another form it hands over to Python, which has the parser
(`connection.py`). That is safe: skipping whole chunks leaves the parser's state as it was, and the parser can be given
a head later.
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

from pytest_gpucap.arrays import Bytes, Int32s, Ints
from pytest_gpucap.jit import compiled, foreign
from pytest_gpucap.load.event_stream import FIELD
from pytest_gpucap.load.fastpath.event_grammar import OTHER_EVENT, ROLE_EVENT, TOKEN_EVENT, USAGE_EVENT, after, classify
from pytest_gpucap.load.fastpath.stream_state import PREFIX_BYTES, STREAM_STATE, TAIL_BYTES, ReadState
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import TOKEN_BIN_S, TOKEN_BINS, Count, HistogramKind, histogram_bin, item_view
from pytest_gpucap.load.timestamps import ANCILLARY_BYTES, SO_TIMESTAMPNS

_Records = npt.NDArray[Any]
_Record = Any
"""One item of a structured array."""

EPOLL_BATCH = 256
"""Connections fetched from epoll at a time."""
FIRST_DESCRIPTORS = 1024
"""File descriptors that there is room for at the start; it doubles when more are needed."""
READ_BYTES = 65_536
MAX_HEADS, HEAD_BYTES = 16, 1024
"""Known heads. A head with a date in it is good for a second; one with a request's id never comes again."""


NOTHING, READY, EVENT, REST, ENDED, BROKEN, DUE = range(7)
"""Why `FastReader.drain` returns; see there."""

CONTROL = np.dtype(
    [
        (name, np.float64 if name.endswith("_s") else np.int64)
        for name in (
            *("epoll", "bins_start_s", "heads"),
            *("polled", "ready_count", "ready_at"),
            *("fd", "stream", "error", "time_s", "now_s"),
            *("at", "end", "data_at", "data_end", "events_before"),
        )
    ]
)
"""What compiled code is told, keeps between two calls, and returns.

epoll: the descriptor of the epoll instance.
bins_start_s: when token bin 0 starts.
heads: how many heads are known.
polled: 1 after epoll was asked in this call.
ready_count, ready_at: how many descriptors epoll reported, and which of them comes next.
fd, stream: the connection that was read last, and the index of its stream state.
error: errno of a failed read; 0 where the server closed the connection.
time_s, now_s: when the data of the last read arrived, and when it was read.
at, end: the part of the buffer that is still to be taken.
data_at, data_end: the part of the buffer that Python is handed.
events_before: token events that the answer had before this read.
"""

_epoll_wait = foreign("epoll_wait", 4)
_recvmsg = foreign("recvmsg", 3, wide=True)
_clock_gettime = foreign("clock_gettime", 2)
_errno_at = foreign("__errno_location", 0, wide=True)
_copy = foreign("memcpy", 3, wide=True)
_compare = foreign("memcmp", 3)
_find = foreign("memchr", 3, wide=True)

# struct epoll_event (epoll_ctl(2)) in 32-bit words: packed on x86-64 only.
_EVENT_WORDS, _EVENT_FD = (3, 1) if platform.machine() == "x86_64" else (4, 2)
# `message` in 64-bit words: a struct msghdr, its iovec, its ancillary data (a cmsghdr and a timespec), and a timespec.
_CONTROL_LENGTH, _IOVEC, _ANCILLARY, _NOW, _MESSAGE_WORDS = 5, 7, 9, 13, 15
_STAMPED = socket.SOL_SOCKET | SO_TIMESTAMPNS << 32
"""Level and type of the ancillary data, little-endian. Elsewhere user space stamps, and the self-check says so."""
_CLOCK_MONOTONIC = 1
_DONTWAIT, _WRITABLE = int(socket.MSG_DONTWAIT), int(select.EPOLLOUT)
_AGAIN, _INTERRUPTED = errno.EAGAIN, errno.EINTR

_HEAD, _BODY, _RAW = int(ReadState.HEAD), int(ReadState.BODY), int(ReadState.RAW)
_EVENTS, _SHARED_EVENTS, _USER_STAMPS = int(Count.EVENTS), int(Count.SHARED_EVENTS), int(Count.USER_STAMPS)
_GAPS, _LAG = int(HistogramKind.GAPS), int(HistogramKind.LAG)
_FIRST_S, _SENT_S = (int(STREAM_STATE.fields[name][1]) for name in ("first_s", "sent_s"))  # type: ignore[index]

STREAM_STATE_BYTES = STREAM_STATE.itemsize
MAX_SIZE_DIGITS = 6
"""Hexadecimal digits of a chunk's size; a longer chunk would not fit into a read."""
_CR, _LF = 0x0D, 0x0A
_FIELD = np.frombuffer(FIELD, np.uint8)
_CRLF_FIELD = np.frombuffer(b"\r\n" + FIELD, np.uint8)
_DONE = np.frombuffer(b"[DONE]", np.uint8)
_LAST_CHUNK = np.frombuffer(b"0\r\n\r\n", np.uint8)
_EVENT_END = np.frombuffer(b"\n\n\r\n", np.uint8)
_CHOICES_END = np.frombuffer(b"]}", np.uint8)
_NULL_END = np.frombuffer(b"null}", np.uint8)


@compiled
def _drain(
    timeout_ms: int,
    due_s: float,
    offset_ns: int,
    control: _Records,
    streams: _Records,
    prefixes: Bytes,
    tails: Bytes,
    stream_of: Ints,
    heads: Bytes,
    head_sizes: Ints,
    buffer: Bytes,
    ready: Int32s,
    message: Ints,
    tokens: Ints,
    counts: Ints,
    histograms: Ints,
) -> tuple[int, int, float]:
    """Read until nothing is left, or Python has something to do; see `FastReader.drain`."""
    c = control[0]
    while True:
        if c["at"] < c["end"]:
            found = _take(c, streams, prefixes, tails, heads, head_sizes, buffer, tokens, counts, histograms)
            if found == ENDED:
                stream_of[c["fd"]] = -1
            if found != NOTHING:
                return found, c["fd"], c["time_s"]
            if c["now_s"] >= due_s:
                return DUE, c["fd"], c["now_s"]
        if c["ready_at"] >= c["ready_count"]:
            if c["polled"]:
                c["polled"] = 0
                return NOTHING, c["ready_count"], c["now_s"]
            c["polled"] = 1
            c["ready_at"] = 0
            c["ready_count"] = max(_epoll_wait(c["epoll"], ready.ctypes.data, EPOLL_BATCH, timeout_ms), 0)
            continue
        fd = ready[c["ready_at"] * _EVENT_WORDS + _EVENT_FD]
        c["fd"] = fd
        events = ready[c["ready_at"] * _EVENT_WORDS]
        c["ready_at"] += 1
        c["stream"] = stream_of[fd] if fd < stream_of.size else -1
        if c["stream"] < 0 or events == _WRITABLE:
            return READY, c["fd"], c["now_s"]
        found = _receive(c, offset_ns, message, counts, histograms)
        if found != NOTHING:
            return found, c["fd"], c["now_s"]
        c["events_before"] = streams[c["stream"]]["events"]


@compiled
def _receive(c: _Record, offset_ns: int, message: Ints, counts: Ints, histograms: Ints) -> int:
    """Read a connection into the buffer, and note when the data had arrived."""
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
            # errno is 32 bits wide: the low half of a word.
            message[_ANCILLARY] = 0
            _copy(message.ctypes.data + 8 * _ANCILLARY, _errno_at(), 4)
            c["error"] = message[_ANCILLARY]
            if c["error"] == _AGAIN or c["error"] == _INTERRUPTED:
                return NOTHING
        return BROKEN
    c["end"] = read
    if message[_CONTROL_LENGTH] >= ANCILLARY_BYTES and message[_ANCILLARY + 1] == _STAMPED:
        # A time later than now means that the wall clock was just set.
        stamp_ns = message[_ANCILLARY + 2] * 1_000_000_000 + message[_ANCILLARY + 3] - offset_ns
        c["time_s"] = min(stamp_ns * 1e-9, c["now_s"])
        histograms[_LAG, histogram_bin(c["now_s"] - c["time_s"])] += 1
    else:
        counts[_USER_STAMPS] += 1
    return NOTHING


@compiled
def _take(
    c: _Record,
    streams: _Records,
    prefixes: Bytes,
    tails: Bytes,
    heads: Bytes,
    head_sizes: Ints,
    buffer: Bytes,
    tokens: Ints,
    counts: Ints,
    histograms: Ints,
) -> int:
    """Take what has a known form from the rest of a read."""
    s = streams[c["stream"]]
    end = c["end"]
    if s["read_state"] == _HEAD:
        c["at"] = _known_head(c["heads"], heads, head_sizes, buffer, end)
        if c["at"]:
            s["read_state"] = _BODY
    if s["read_state"] == _HEAD or s["read_state"] == _RAW:
        return _hand_over(c, REST)
    while c["at"] < end:
        start, stop = _chunk(buffer, c["at"], end)
        if start == stop:
            if s["read_state"] == _BODY and after(buffer, c["at"], end, _LAST_CHUNK) == end:
                _count_shared(c, s, counts)
                return _hand_over(c, ENDED)
            return _hand_over(c, REST)
        c["at"] = stop + _EVENT_END.size
        kind = _kind(c, s, prefixes, buffer, start, stop)
        if kind == TOKEN_EVENT:
            _keep_end(c, s, tails, buffer, start, stop)
            _token(c, s, streams, stop - start, tokens, counts, histograms)
            if s["reasoning"] and s["answer_s"] != s["answer_s"]:  # NaN
                s["reasoning"] += 1
        elif kind == OTHER_EVENT:
            c["data_at"] = start
            c["data_end"] = stop
            return EVENT
    _count_shared(c, s, counts)
    return NOTHING


@compiled
def _known_head(known: int, heads: Bytes, head_sizes: Ints, buffer: Bytes, end: int) -> int:
    """The size of the known head that the buffer begins with; 0 if it begins with none."""
    for i in range(known):
        size: int = head_sizes[i]
        if size <= end and _compare(buffer.ctypes.data, heads.ctypes.data + i * HEAD_BYTES, size) == 0:
            return size
    return 0


@compiled
def _kind(c: _Record, s: _Record, prefixes: Bytes, buffer: Bytes, start: int, stop: int) -> int:
    """The kind of an event. Keeps what it tells of the answer: how token events begin, the usage, that it is done."""
    size = stop - start
    text = buffer.ctypes.data + start
    prefix = prefixes.ctypes.data + c["stream"] * PREFIX_BYTES
    kind = TOKEN_EVENT
    if not s["prefix"] or size < s["prefix"] or _compare(text, prefix, s["prefix"]) != 0:
        kind, first, second = classify(buffer, start, stop)
        if kind == TOKEN_EVENT and s["reasoning"] and s["answer_s"] != s["answer_s"]:  # NaN
            return OTHER_EVENT  # the first token after the reasoning: Python keeps its time
        if kind == TOKEN_EVENT:
            s["prefix"] = first if first <= PREFIX_BYTES else 0
            _copy(prefix, text, s["prefix"])
            s["frame_bytes"] = _FIELD.size + size - second
        elif kind == USAGE_EVENT:
            s["counted_prompt"] = first
            s["counted_output"] = second
            s["counted_at"] = s["events"]
        elif kind == OTHER_EVENT and after(buffer, start, stop, _DONE) == stop:
            s["done"] = 1
            return ROLE_EVENT
    # What follows the choices may hold a usage.
    if kind == TOKEN_EVENT and after(buffer, stop - _CHOICES_END.size, stop, _CHOICES_END) < 0:
        return TOKEN_EVENT if after(buffer, stop - _NULL_END.size, stop, _NULL_END) > 0 else OTHER_EVENT
    return kind


@compiled
def _keep_end(c: _Record, s: _Record, tails: Bytes, buffer: Bytes, start: int, stop: int) -> None:
    """Keep the end of a token event: it may be the last, and then says why the answer ended."""
    size = min(stop - start, TAIL_BYTES)
    _copy(tails.ctypes.data + c["stream"] * TAIL_BYTES, buffer.ctypes.data + stop - size, size)
    s["last_bytes"] = stop - start


@compiled
def _chunk(buffer: Bytes, at: int, end: int) -> tuple[int, int]:
    """Where the event's data begins and ends, if the chunk at `at` is one event of one data line; else 0, 0."""
    size, start = 0, at
    while start < min(end, at + MAX_SIZE_DIGITS):
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
def _token(c: _Record, s: _Record, streams: _Records, size: int, tokens: Ints, counts: Ints, histograms: Ints) -> None:
    """Count a token event, as `Answer.token` and the recorder do."""
    time_s = c["time_s"]
    if s["events"]:
        if s["gap_s"] == s["gap_s"]:  # not NaN
            histograms[_GAPS, histogram_bin(s["gap_s"])] += 1
        s["gap_s"] = time_s - s["last_s"]
        s["event_bytes"] += _FIELD.size + size
    else:
        s["first_s"] = time_s
        at = streams.ctypes.data + c["stream"] * STREAM_STATE_BYTES
        _copy(s["first_address"], at + _FIRST_S, 8)
        _copy(s["sent_address"], at + _SENT_S, 8)
    s["events"] += 1
    s["last_s"] = time_s
    counts[_EVENTS] += 1
    tokens[min(max(math.floor((time_s - c["bins_start_s"]) / TOKEN_BIN_S), 0), TOKEN_BINS - 1)] += 1


@compiled
def _count_shared(c: _Record, s: _Record, counts: Ints) -> None:
    """Count the events that came in one read, and so share its time."""
    if s["events"] > c["events_before"] + 1:
        counts[_SHARED_EVENTS] += s["events"] - c["events_before"]


@compiled
def _hand_over(c: _Record, found: int) -> int:
    """Leave the rest of the read to Python."""
    c["data_at"] = c["at"]
    c["data_end"] = c["end"]
    c["at"] = c["end"]
    return found


class FastReader:
    """Reads a worker's connections in compiled code. The properties describe why `drain` returned last."""

    __slots__ = (
        "_buffer",
        "_control",
        "_control_view",
        "_head_sizes",
        "_heads",
        "_learned",
        "_message",
        "_ready",
        "_recorder",
        "_stream_of",
        "_stream_view",
        "_text",
    )

    def __init__(self, epoll: int, recorder: Recorder) -> None:
        self._recorder = recorder
        self._control = np.zeros(1, CONTROL)
        self._control["epoll"], self._control["bins_start_s"] = epoll, recorder.bins_start_s
        self._control_view: dict[str, memoryview[Any]] = {
            name: item_view(self._control[name]) for name in CONTROL.names or ()
        }
        self._stream_of = np.full(FIRST_DESCRIPTORS, -1, np.int64)
        self._stream_view = item_view(self._stream_of)
        self._heads = np.zeros((MAX_HEADS, HEAD_BYTES), np.uint8)
        self._head_sizes = np.zeros(MAX_HEADS, np.int64)
        self._learned = 0
        self._buffer = np.zeros(READ_BYTES, np.uint8)
        self._text = item_view(self._buffer)
        self._ready = np.zeros(EPOLL_BATCH * _EVENT_WORDS, np.int32)
        self._message = np.zeros(_MESSAGE_WORDS, np.int64)
        at = self._message.ctypes.data
        self._message[2:5] = at + 8 * _IOVEC, 1, at + 8 * _ANCILLARY
        self._message[_IOVEC : _IOVEC + 2] = self._buffer.ctypes.data, READ_BYTES

    def drain(self, timeout_ms: int, due_s: float, offset_ns: int) -> tuple[int, int, float]:
        """Read what is ready until Python has something to do.

        Call it again until it returns NOTHING; each call goes on where the last one stopped.

        Args:
            timeout_ms: longest wait for something to become ready.
            due_s: when the next request is due.
            offset_ns: by how much the kernel's stamps are ahead of the monotonic clock.

        Returns:
            The reason, the file descriptor, and when the data had arrived (BROKEN: when it was read). The reason is
            one of

            NOTHING: everything that was ready has been read; instead of a descriptor, how many were ready.
            READY: epoll reports a descriptor that is not read here.
            EVENT: `data` is the data of one whole event that is out of the ordinary.
            REST: `data` is all that is left of the read, of no known form.
            ENDED: the answer is whole, and the connection is no longer read.
            BROKEN: the connection failed with `error`, or the server closed it (0).
            DUE: it is `due_s`, and a request must be sent.
        """
        recorder = self._recorder
        streams = recorder.streams
        return _drain(
            timeout_ms,
            due_s,
            offset_ns,
            self._control,
            streams.records,
            streams.prefixes,
            streams.tails,
            self._stream_of,
            self._heads,
            self._head_sizes,
            self._buffer,
            self._ready,
            self._message,
            recorder.tokens,
            recorder.counts,
            recorder.histograms,
        )

    def add(self, fd: int, stream: int) -> None:
        """Read this connection into this stream state from now on."""
        while fd >= self._stream_of.size:
            self._stream_of = np.concatenate([self._stream_of, np.full_like(self._stream_of, -1)])
            self._stream_view = item_view(self._stream_of)
        self._stream_view[fd] = stream

    def remove(self, fd: int) -> None:
        """Stop reading this connection, and forget what is left of a read of it."""
        if fd < self._stream_of.size:
            self._stream_view[fd] = -1
        if fd == self._control_view["fd"][0]:
            self._control_view["at"][0] = self._control_view["end"][0]

    def learn_head(self, head: bytes) -> None:
        """Know this head: the parser found that it begins an event stream in chunks on a kept connection."""
        if len(head) <= HEAD_BYTES:
            at = self._learned % MAX_HEADS
            self._heads[at, : len(head)] = np.frombuffer(head, np.uint8)
            self._head_sizes[at] = len(head)
            self._learned += 1
            self._control_view["heads"][0] = min(self._learned, MAX_HEADS)

    @property
    def error(self) -> int:
        """Why the connection is broken (errno); 0 where the server closed it."""
        error: int = self._control_view["error"][0]
        return error

    @property
    def events_before(self) -> int:
        """Token events that the answer had before this read."""
        before: int = self._control_view["events_before"][0]
        return before

    @property
    def at_end(self) -> bool:
        """Nothing is left of this read."""
        at_end: bool = self._control_view["at"][0] == self._control_view["end"][0]
        return at_end

    def data(self) -> bytes:
        """The event's data, or the rest of the read."""
        return bytes(self._text[self._control_view["data_at"][0] : self._control_view["data_end"][0]])
