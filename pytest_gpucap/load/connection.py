"""One kept-alive HTTP/1.1 connection: what it sends, and what comes back that the fast reader does not know.

`httptools` (Node's llhttp) parses HTTP. It gets the rest of a read from the first byte that is out of the ordinary,
until everything is ordinary again. Where it has not seen the answer's head, it first gets one of the same meaning.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import httptools

from pytest_gpucap.load.answer import HTTP_OK, Answer
from pytest_gpucap.load.event_stream import EventStream, EventStreamError
from pytest_gpucap.load.fastpath.reader import EVENT, REST, FastReader
from pytest_gpucap.load.fastpath.stream_state import ReadState
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.timestamps import enable_timestamps
from pytest_gpucap.load.whole_answer import MOST_BYTES
from pytest_gpucap.requirement import ApiKind, Workload

MAX_ERROR_BODY = 65_536
MAX_BODILESS = 2**18
"""Bytes that may come without a part of a body among them: heads, trailers, and what stands beside a chunk's size."""
HEAD_END = b"\r\n\r\n"
MINIMAL_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
"""The meaning of every head that `FastReader.learn_head` is told."""
READABLE, WRITABLE = select.EPOLLIN | select.EPOLLRDHUP, select.EPOLLOUT
_BUSY = (errno.EAGAIN, errno.EINTR)
_LOCAL_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
"""The client's own limits: no socket left, no port left, no memory."""


class AnswerForm(StrEnum):
    """How answers come."""

    STREAM = "stream"
    RESPONSES = "responses"
    """A stream of the events of ``/v1/responses``."""
    WHOLE = "whole"
    POOLED = "pooled"
    """Whole, and without tokens."""

    @property
    def accept(self) -> str:
        """The type of such an answer."""
        return "text/event-stream" if self in {AnswerForm.STREAM, AnswerForm.RESPONSES} else "application/json"


def answer_form(workload: Workload) -> AnswerForm:
    """How the answers to a workload's requests come."""
    if not workload.endpoint.generates:
        return AnswerForm.POOLED
    if not workload.streamed:
        return AnswerForm.WHOLE
    return AnswerForm.RESPONSES if workload.endpoint is ApiKind.RESPONSES else AnswerForm.STREAM


SocketAddress = tuple[socket.AddressFamily, tuple[str | int, ...]]


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """What all requests have in common.

    Attributes:
        address: where they go.
        head: a request up to the value of Content-Length; empty where an HTTP library makes the head.
        ignore_eos: answers must have the number of tokens that was asked for.
        replica: number of the server that they go to.
        form: of the answers.
    """

    address: SocketAddress
    head: bytes
    ignore_eos: bool
    replica: int = 0
    form: AnswerForm = AnswerForm.STREAM

    def request(self, body: bytes) -> bytes:
        """The whole request; the body alone where there is no head."""
        return body if not self.head else b"%b%d\r\n\r\n%b" % (self.head, len(body), body)


class ConnectionOwner(Protocol):
    """What a connection tells the event loop."""

    reader: FastReader

    def watch(self, connection: Connection, events: int, *, known: bool) -> None:
        """Wait for these epoll events, and call the connection's ``on_...`` methods when they come."""
        ...

    def forget(self, connection: Connection) -> None:
        """Forget a connection whose socket is about to be closed."""
        ...

    def ended(self, connection: Connection, answer: Answer, end_s: float, *, reusable: bool) -> None:
        """Take an answer that is over, well or not."""
        ...

    def resend(self, answer: Answer, request: bytes) -> None:
        """Send a request again, to the same server: it had closed the kept connection before it saw the request."""
        ...


class Connection:
    """One socket; at most one request at a time."""

    __slots__ = (
        "_bodiless",
        "_body",
        "_chunked",
        "_close_delimited",
        "_closed",
        "_content_type",
        "_encoding",
        "_finished",
        "_head",
        "_in_chunk",
        "_interim",
        "_keep_alive",
        "_now_s",
        "_owner",
        "_parser",
        "_reader",
        "_request",
        "_sent",
        "_status",
        "_stream",
        "_watched",
        "_wrong",
        "answer",
        "connected",
        "fd",
        "idle_since_s",
        "sock",
        "template",
    )

    def __init__(self, template: RequestTemplate, owner: ConnectionOwner) -> None:
        """Begin to connect.

        Raises:
            OSError: if no socket can be had, or the connection is refused at once.
        """
        self.template, self._owner, self._reader = template, owner, owner.reader
        family, address = template.address
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
        self._parser = httptools.HttpResponseParser(self)
        self._stream = EventStream()
        self._reset_answer_state()
        self._watched = 0
        self._watch(READABLE if self.connected else WRITABLE)

    def _reset_answer_state(self) -> None:
        self._status = 0
        self._content_type = self._encoding = b""
        self._chunked = self._finished = self._in_chunk = self._interim = self._keep_alive = False
        self._close_delimited = True
        self._body, self._head = bytearray(), b""
        self._bodiless = 0
        self._wrong = ""
        """What is wrong with the head; its body then holds the server's reason, and no events."""
        self._now_s = 0.0

    def send(self, answer: Answer, request: bytes, now_s: float) -> None:
        """Send a request; its answer is reported to the owner."""
        self.answer, self._request, self._sent = answer, request, 0
        if self.connected:
            self._write(now_s)

    def _write(self, now_s: float) -> None:
        answer, request = self.answer, self._request
        if answer is None:
            return
        if not self._sent:
            self._reader.add(self.fd, answer.stream)
        try:
            self._sent += self.sock.send(memoryview(request)[self._sent :] if self._sent else request)
        except OSError as error:
            if error.errno not in _BUSY:
                self._broken(f"sending failed: {error.strerror}")
                return
        if self._sent >= len(request):
            streams, stream = answer.streams, answer.stream
            if streams.sent_s[stream] != streams.sent_s[stream]:  # NaN: not one sent again
                streams.sent_s[stream] = now_s
            if self._watched != READABLE:
                self._watch(READABLE)
        else:
            self._watch(READABLE | WRITABLE)

    def _watch(self, events: int) -> None:
        if events != self._watched:
            self._owner.watch(self, events, known=self._watched != 0)
            self._watched = events

    def on_ready(self) -> None:
        """Epoll has an event that is not the fast reader's."""
        if not self.connected:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(Status.CONNECT, f"connection failed: {errno.errorcode.get(code, code)}")
                return
            self.connected = True
        if self.answer is not None:
            self._write(time.monotonic())
        else:
            self.close()  # Nothing was asked: the server closes the connection, or sends what nobody asked for.

    def on_whole_answer(self, time_s: float) -> None:
        """The fast reader has read the answer to its end."""
        answer, self.answer = self.answer, None
        if answer is not None:
            self.idle_since_s = time_s
            self._owner.ended(self, answer, time_s, reusable=True)

    def on_unusual(self, found: int, time_s: float) -> None:
        """The fast reader has come to something that it does not know."""
        reader, answer = self._reader, self.answer
        if answer is None:
            return
        if found == EVENT:
            answer.event(reader.data(), time_s)
            if reader.at_end:
                answer.recorder.add_shared(answer.events - reader.events_before)
            if answer.status is not None:
                self._end(answer, time_s, reusable=False)
        else:
            read_state = answer.streams.read_state[answer.stream]
            if read_state == ReadState.BODY:
                self._status, self._chunked, self._close_delimited = HTTP_OK, True, False
            if found == REST:
                self._parse(answer, reader.data(), time_s, read_state)
            elif reader.error:
                self._broken(f"the connection broke: {os.strerror(reader.error)}")
            else:
                self._end_of_file(time_s)

    def _parse(self, answer: Answer, data: bytes, time_s: float, read_state: int) -> None:
        self._now_s = time_s
        self._bodiless += len(data)
        if read_state == ReadState.BODY:
            data = MINIMAL_HEAD + data
        elif read_state == ReadState.HEAD and HEAD_END in data:
            self._head = data[: data.index(HEAD_END) + len(HEAD_END)]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            text = str(cause) if isinstance(cause, EventStreamError) else f"not HTTP: {error}"
            self._fail(Status.PROTOCOL, text)
            return
        if self._closed or self.answer is not answer:
            return
        if self._bodiless > MAX_BODILESS:
            self._fail(Status.PROTOCOL, f"over {MAX_BODILESS} bytes of an answer came without a body")
            return
        answer.recorder.add_shared(answer.events - self._reader.events_before)
        chunks = self._status == HTTP_OK and self._chunked
        ordinary = chunks and not answer.whole and not self._in_chunk and self._stream.empty and data.endswith(b"\r\n")
        answer.streams.read_state[answer.stream] = ReadState.PARSED if ordinary else ReadState.RAW
        most = MOST_BYTES if answer.whole and not self._wrong else MAX_ERROR_BODY
        if answer.whole and len(self._body) >= MOST_BYTES:
            answer.fail(Status.PROTOCOL, f"an answer of more than {MOST_BYTES} bytes")
        bad = answer.status in (Status.STREAM_ERROR, Status.PROTOCOL) or len(self._body) >= most
        if bad or self._finished:
            self._over(time_s)

    # -- httptools callbacks ------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a response header."""
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
        """Check the head: its status and headers are known."""
        self._status = self._parser.get_status_code()
        self._interim = 100 <= self._status < 200  # noqa: PLR2004 - the class of interim answers
        head, self._head = self._head, b""
        answer = self.answer
        if answer is None or self._interim:
            return
        content_type, encoding = self._content_type.decode("latin-1"), self._encoding.decode("latin-1")
        self._wrong = answer.check_headers(self._status, content_type, encoding)
        plain = not self._wrong and self._chunked and not answer.whole
        if plain and head and self._parser.should_keep_alive():
            self._reader.learn_head(head)

    def on_chunk_header(self) -> None:
        """Note that a chunk begins."""
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        """Note that a chunk is whole."""
        self._in_chunk = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._bodiless = 0
        answer = self.answer
        if answer is None:
            return
        if self._wrong:
            self._body += body[: MAX_ERROR_BODY - len(self._body)]
        elif answer.whole:
            self._body += body[: MOST_BYTES - len(self._body)]
        elif answer.status is None:
            for data in self._stream.feed(body):
                answer.event(data, self._now_s)
            if self._stream.error is not None:
                answer.error_event(self._stream.error)

    def on_message_complete(self) -> None:
        """Note that the answer is whole, unless it was an interim one."""
        if self._interim:
            self._content_type = self._encoding = b""
            self._close_delimited, self._chunked = True, False
        else:
            self._finished = True
            # Asked here, because between two messages the parser no longer knows.
            self._keep_alive = not self._close_delimited and self._parser.should_keep_alive()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _over(self, time_s: float) -> None:
        """End an answer that has ended, or can no longer be one."""
        answer = self.answer
        if answer is None:
            return
        if self._wrong:
            answer.check_body(self._status, self._wrong, bytes(self._body))
        elif self._finished and answer.whole:
            answer.take_whole(bytes(self._body), time_s)
        elif self._finished:
            answer.body_ended(self._stream, time_s)
        reusable = self._finished and self._keep_alive
        if reusable:
            self._stream = EventStream()
            self._reset_answer_state()
        self._end(answer, time_s, reusable=reusable)

    def _end(self, answer: Answer, time_s: float, *, reusable: bool) -> None:
        self.answer = None
        if reusable:
            self._reader.remove(self.fd)
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
            if self._close_delimited and not self._wrong and answer.whole:
                self._finished = True
            elif self._close_delimited and not self._wrong and answer.body_ended(self._stream, time_s):
                self._finished = True  # HTTP/1.0: the end of the connection is the end of the answer.
                self._stream = EventStream()
            elif not answer.done and not self._wrong:
                answer.fail(Status.RESET, "the server closed the connection within the answer")
            self._over(time_s)

    def _broken(self, error: str) -> None:
        """Handle a lost connection. A kept one may have closed before the server saw the request: try a new one."""
        answer = self.answer
        unseen = answer is not None and answer.streams.read_state[answer.stream] == ReadState.HEAD and not self._status
        if answer is not None and unseen and self.idle_since_s:
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
            if self._wrong:
                answer.check_body(self._status, self._wrong, bytes(self._body))
            answer.fail(status, error)
            self._owner.ended(self, answer, time.monotonic(), reusable=False)

    def abandon(self, status: Status, error: str) -> None:
        """Give up the request under way (a timeout, a cancellation)."""
        self._fail(status, error)

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._reader.remove(self.fd)
            self._owner.forget(self)
            self.sock.close()
            # It holds this connection's methods: the collector, which runs seldom, would have to find the circle.
            del self._parser


def is_local_limit(error: OSError) -> bool:
    """Whether no socket could be had because of a limit on the client's own side."""
    return error.errno in _LOCAL_LIMITS
