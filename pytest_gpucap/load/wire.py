"""One kept-alive HTTP/1.1 connection that reads streamed answers, each stamped by the kernel as it arrived.

`httptools` (Node's llhttp) parses HTTP. What servers send all the time is recognised before it: a head that is byte for
byte one that it has parsed, whole chunks with one whole event each, the last chunk. Skipping a whole chunk between two
chunks leaves the parser's state as it was, and a head can be given to it later; so it takes over at the first byte that
is of no such shape.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httptools

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.blocks import Count
from pytest_gpucap.load.clocks import ANCILLARY_BYTES, TIMESPEC, Offset, enable_timestamps
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.replies import (
    CHUNK_HEADS,
    EVENT_END,
    HEAD_BYTES,
    HEAD_END,
    LAST_CHUNK,
    NO_HEAD,
    OK,
    judge_head,
    judge_status,
    take_events,
)
from pytest_gpucap.load.sse import EventStream, EventStreamError

READ_BYTES = 65_536
MAX_ERROR_BODY = 65_536
MAX_HEADS = 64
"""Known heads: with a date in it, a head comes again for a second; with a request's id, never."""
READABLE, WRITABLE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
_BUSY = (errno.EAGAIN, errno.EINTR)
_LOCAL_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
"""The client's own limits: no socket left, no port left, no memory."""

Address = tuple[socket.AddressFamily, tuple[str | int, ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go; `head` is the request up to the value of Content-Length."""

    address: Address
    head: bytes
    ignore_eos: bool

    def request(self, body: bytes) -> bytes:
        """The whole request; the body alone where a library adds the rest (no head)."""
        return body if not self.head else b"%b%d\r\n\r\n%b" % (self.head, len(body), body)


class Owner(Protocol):
    """What a connection tells the engine."""

    offset: Offset
    recorder: Recorder
    heads: set[bytes]
    """Heads that the parser has found to begin an event stream in chunks on a connection that is kept."""

    def watch(self, connection: Connection, events: int, *, known: bool) -> None:
        """Call the connection's `handler` on these epoll events."""
        ...

    def forget(self, connection: Connection) -> None:
        """The socket is about to be closed."""
        ...

    def ended(self, connection: Connection, answer: Answer, end_s: float, *, reusable: bool) -> None:
        """An answer is over, well or not."""
        ...

    def resend(self, answer: Answer, request: bytes) -> None:
        """The kept connection had been closed by the server before it saw the request."""
        ...


class Connection:
    """One socket; at most one request at a time."""

    __slots__ = (
        "_at_boundary",
        "_body",
        "_chunked",
        "_close_delimited",
        "_closed",
        "_content_type",
        "_encoding",
        "_finished",
        "_fresh",
        "_head",
        "_heads",
        "_in_chunk",
        "_interim",
        "_keep_alive",
        "_now_s",
        "_offset",
        "_owner",
        "_parser",
        "_recorder",
        "_recvmsg",
        "_request",
        "_sent",
        "_status",
        "_stream",
        "_target",
        "_watched",
        "answer",
        "connected",
        "fd",
        "handler",
        "idle_since_s",
        "sock",
    )

    def __init__(self, target: Target, owner: Owner) -> None:
        """Begin to connect.

        Raises:
            OSError: if the connection cannot even be begun.
        """
        self._target, self._owner = target, owner
        self._recorder, self._offset, self._heads = owner.recorder, owner.offset, owner.heads
        self.handler: Callable[[int], None] = self._ready
        family, address = target.address
        self.sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.fd = self.sock.fileno()
        self._closed = False
        self.connected = False
        self.idle_since_s = 0.0
        self.answer: Answer | None = None
        self._request = b""
        self._sent = 0
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_timestamps(self.sock)
            with contextlib.suppress(BlockingIOError):
                self.sock.connect(address)
                self.connected = True
        except OSError:
            self.sock.close()
            raise
        self._recvmsg = self.sock.recvmsg
        self._parser = httptools.HttpResponseParser(self)
        self._stream = EventStream()
        self._reset_answer_state()
        self._watched = 0
        self._watch(READABLE if self.connected else WRITABLE)

    def _reset_answer_state(self) -> None:
        self._status = 0
        self._content_type = self._encoding = b""
        self._chunked = self._finished = self._in_chunk = self._interim = self._at_boundary = self._keep_alive = False
        self._close_delimited = self._fresh = True
        self._body = self._head = b""
        self._now_s = 0.0

    def send(self, answer: Answer, request: bytes) -> None:
        """Send a request; its answer is reported to the owner."""
        self.answer, self._request, self._sent = answer, request, 0
        if self.connected:
            self._write()

    def _write(self) -> None:
        answer = self.answer
        if answer is None:
            return
        # Before the call: a server on this machine may have answered by the time it returns.
        now_s = time.monotonic()
        try:
            self._sent += self.sock.send(self._request[self._sent :] if self._sent else self._request)
        except OSError as error:
            if error.errno not in _BUSY:
                self._broken(f"sending failed: {error.strerror}")
                return
        if self._sent >= len(self._request):
            if answer.sent_at != answer.sent_at:  # NaN: not one sent again
                answer.sent_at = now_s
            self._watch(READABLE)
        else:
            self._watch(READABLE | WRITABLE)

    def _watch(self, events: int) -> None:
        if events != self._watched:
            self.handler = self._read if events == READABLE else self._ready
            self._owner.watch(self, events, known=self._watched != 0)
            self._watched = events

    def _ready(self, events: int) -> None:
        """Epoll says that something can be done."""
        if not self.connected:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(Status.CONNECT, f"connection failed: {errno.errorcode.get(code, code)}")
                return
            self.connected = True
            if self.answer is not None:
                self._write()
            return
        if events & ~WRITABLE:
            self._read(events)
        elif events & WRITABLE and self.answer is not None:
            self._write()

    def _read(self, _events: int) -> None:
        try:
            data, ancillary, _, _ = self._recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except OSError as error:
            if error.errno not in _BUSY:
                self._broken(f"the connection broke: {error.strerror}")
            return
        time_s = now_s = time.monotonic()
        if not data:
            self._end_of_file(now_s)
            return
        recorder = self._recorder
        if ancillary:
            seconds, nanoseconds = TIMESPEC.unpack(ancillary[0][2])
            # Never later than now: that would be a wall clock just set.
            time_s = min((seconds * 1_000_000_000 + nanoseconds - self._offset.ns) * 1e-9, now_s)
            recorder.lags.append(now_s - time_s)
        else:
            recorder.add(Count.USER_STAMPS)
        answer = self.answer
        if answer is None:
            self.close()  # Nothing was asked: the server says goodbye (or talks out of turn).
            return
        if self._at_boundary and answer.line is not None:
            length = len(data) - len(EVENT_END)
            head = CHUNK_HEADS.get(length, NO_HEAD)
            if (
                data.startswith(head + answer.line)
                and data.find(b"\n", HEAD_BYTES) == length
                and data.endswith(EVENT_END)
            ):
                # The body of Answer.token, in place: this is where the time goes.
                recorder.gaps.append(answer.gap_s)
                answer.gap_s = time_s - answer.last_s
                answer.last_s = time_s
                answer.events += 1
                answer.size += length - len(head)
                answer.tail = data
                recorder.times.append(time_s)
                return
        self._take(answer, data, time_s)

    def _take(self, answer: Answer, data: bytes, time_s: float) -> None:
        """Take what is of a known shape; the rest goes to the parser."""
        if self._fresh:
            data = self._take_head(data)
        if self._at_boundary:
            data = take_events(answer, data, time_s)
            if data == LAST_CHUNK and self._head:
                self._finished = self._keep_alive = True
            if self._finished or answer.status is not None:
                self._over(time_s)
                return
        if data:
            self._parse(answer, data, time_s)

    def _take_head(self, data: bytes) -> bytes:
        """Skip the head that `data` begins with if it is known; what is left."""
        self._fresh = False
        head, end, left = data.partition(HEAD_END)
        if not end:
            return data
        self._head = head + end
        if self._head not in self._heads:
            return data
        self._status, self._chunked, self._close_delimited = OK, True, False
        self._at_boundary = True
        return left

    def _parse(self, answer: Answer, data: bytes, time_s: float) -> None:
        before = answer.events
        self._now_s = time_s
        if self._at_boundary and self._head:
            data, self._head = self._head + data, b""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            text = str(cause) if isinstance(cause, EventStreamError) else f"not HTTP: {error}"
            self._fail(Status.PROTOCOL, text)
            return
        if self._closed or self.answer is not answer:
            return
        if answer.events > before + 1:
            self._recorder.add(Count.SHARED_EVENTS, answer.events - before)
        self._at_boundary = (
            self._chunked
            and not self._in_chunk
            and self._stream.empty
            and data.endswith(b"\r\n")
            and not self._finished
        )
        if answer.status in (Status.STREAM_ERROR, Status.PROTOCOL) or self._finished:
            self._over(time_s)

    # -- httptools callbacks ------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One response header."""
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.lower()
        elif name == b"content-encoding":
            self._encoding = value.lower()
        elif name == b"transfer-encoding":
            self._chunked = b"chunked" in value.lower()
            self._close_delimited = not self._chunked
        elif name == b"content-length":
            self._close_delimited = False

    def on_headers_complete(self) -> None:
        """The status is known."""
        self._status = self._parser.get_status_code()
        self._interim = 100 <= self._status < 200  # noqa: PLR2004 - the class of interim answers
        head, self._head = self._head, b""
        answer = self.answer
        if answer is None or self._interim:
            return
        judge_head(answer, self._status, self._content_type.decode("latin-1"), self._encoding.decode("latin-1"))
        plain = self._status == OK and answer.status is None and self._chunked
        if plain and head and self._parser.should_keep_alive():
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads.add(head)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        """A chunk is whole."""
        self._in_chunk = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        answer = self.answer
        if answer is None:
            return
        if self._status != OK or answer.status is not None:
            if len(self._body) < MAX_ERROR_BODY:
                self._body += body
            return
        for data in self._stream.feed(body):
            answer.event(data, self._now_s)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one."""
        if self._interim:
            self._content_type = self._encoding = b""
            self._close_delimited, self._chunked = True, False
        else:
            self._finished = True
            # Asked here: between two messages the parser no longer knows.
            self._keep_alive = not self._close_delimited and self._parser.should_keep_alive()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _over(self, time_s: float) -> None:
        """The answer ended, or can no longer be one."""
        answer = self.answer
        if answer is None:
            return
        judge_status(answer, self._status, self._body)
        reusable = self._finished and self._keep_alive
        self.answer = None
        if reusable:
            if not self._stream.empty:
                self._stream = EventStream()
            self._reset_answer_state()
            self.idle_since_s = time_s
        else:
            self.close()
        self._owner.ended(self, answer, time_s, reusable=reusable)

    def _end_of_file(self, time_s: float) -> None:
        answer = self.answer
        if answer is None:
            self.close()
        elif self._status == 0 and not self._interim:
            self._broken("the server closed the connection without an answer")
        else:
            if self._close_delimited and self._status == OK and self._stream.empty:
                self._finished = True  # HTTP/1.0: the end of the connection is the end of the answer.
            elif not answer.done and self._status == OK:
                answer.fail(Status.RESET, "the server closed the connection within the answer")
            self._over(time_s)

    def _broken(self, error: str) -> None:
        """The connection is gone. A kept one may have been closed before the server saw the request: try a new one."""
        answer = self.answer
        if answer is not None and self.idle_since_s and self._status == 0 and not answer.events:
            self.answer = None
            request = self._request
            self.close()
            self._owner.resend(answer, request)
        else:
            self._fail(Status.RESET, error)

    def _fail(self, status: Status, error: str) -> None:
        answer, self.answer = self.answer, None
        self.close()
        if answer is not None:
            answer.fail(status, error)
            self._owner.ended(self, answer, time.monotonic(), reusable=False)

    def abandon(self, status: Status, error: str) -> None:
        """Give up the request under way (a timeout, a cancellation)."""
        self._fail(status, error)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._owner.forget(self)
            self.sock.close()


def is_local_limit(error: OSError) -> bool:
    """Whether a socket could not be had for a reason on the client's own side."""
    return error.errno in _LOCAL_LIMITS
