"""The event loop for servers behind TLS, a proxy or HTTP/2, which `EventLoop` does not speak. Slower; the same records.

Everything but the transport is `EventLoop`'s: schedules, phases, timeouts, records. Requests go through httpx on an
asyncio loop. It brings TLS, proxies, and HTTP/2 where ``h2`` is installed. Answers are stamped in
user space when their bytes come out of the library; the self-check says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from pytest_gpucap.access import tls_context
from pytest_gpucap.load.address import http_library
from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.connection import MAX_ERROR_BODY, RequestTemplate
from pytest_gpucap.load.event_loop import KEEP_IDLE_S, EventLoop
from pytest_gpucap.load.event_stream import EventStream, EventStreamError
from pytest_gpucap.load.prompts import BodyComposer
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.proxies import library_options, through
from pytest_gpucap.load.shared_memory import Count, RunTable
from pytest_gpucap.load.timestamps import RESAMPLE_S
from pytest_gpucap.load.whole_answer import MOST_BYTES

NEAREST_S = 0.0005
"""The loop's timers are no finer than a millisecond: a nearer time is awaited by yielding to other tasks."""


class LibraryRequest:
    """One request under way; it stands in for a connection."""

    __slots__ = ("_loop", "answer", "task", "template")

    def __init__(self, loop: LibraryEventLoop, answer: Answer, template: RequestTemplate) -> None:
        self.template = template
        self._loop, self.answer = loop, answer
        self.task: asyncio.Task[None] | None = None

    def abandon(self, status: Status, error: str) -> None:
        """Give up (a timeout, a cancellation)."""
        self.answer.fail(status, error)
        if self.task is not None:
            self.task.cancel()
        self._loop.ended(self, self.answer, time.monotonic(), reusable=False)


class LibraryEventLoop(EventLoop):
    """One worker's requests to one server, through httpx and `proxy`.

    `http2`: the server speaks nothing else. `ca_file`: see `Access`.
    """

    def __init__(
        self,
        template: RequestTemplate,
        composer: BodyComposer,
        run_table: RunTable,
        worker: int,
        *,
        bins_start_s: float,
        request_timeout_s: float,
        secrets: Sequence[str] = (),
        url: str,
        headers: dict[str, str],
        http2: bool,
        ca_file: str | None,
        proxy: str | None = None,
    ) -> None:
        super().__init__(
            template,
            composer,
            run_table,
            worker,
            bins_start_s=bins_start_s,
            request_timeout_s=request_timeout_s,
            secrets=secrets,
        )
        self._url = url
        self._headers = headers | {"Content-Type": "application/json", "Accept": template.form.accept}
        self._http2, self._ca_file, self._proxy = http2, ca_file, proxy
        self._control: tuple[socket.socket, Callable[[], None]] | None = None
        self._session: Any = None
        self._wake = asyncio.Event()

    def add_handler(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        """See `EventLoop.add_handler`."""
        self._control = sock, handler

    def run(self) -> None:
        """See `EventLoop.run`."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        library = http_library()
        self._session = library.AsyncClient(
            **library_options(self._url, self._proxy, None if self._ca_file is None else tls_context(self._ca_file)),
            headers=self._headers,
            timeout=None,
            limits=library.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_IDLE_S),
            http1=not self._http2,
            http2=self._http2 or importlib.util.find_spec("h2") is not None,
        )
        if self._control is not None:
            sock, handler = self._control
            asyncio.get_running_loop().add_reader(sock, self._command, handler)
        self._next_tick_s = time.monotonic() + RESAMPLE_S
        async with self._session:
            while not self._closing:
                now_s = time.monotonic()
                if now_s >= self._next_due_s:
                    self._send_due(now_s)
                if now_s >= self._next_tick_s:
                    self._tick(now_s)
                wait_s = min(self._next_due_s, self._next_tick_s) - time.monotonic()
                if wait_s > NEAREST_S and self._compose_ahead():
                    wait_s = 0.0
                await self._pause(wait_s)
            self.settle(cancel=True)

    async def _pause(self, wait_s: float) -> None:
        if wait_s <= NEAREST_S:
            await asyncio.sleep(0)
            return
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), wait_s)

    def _command(self, handler: Callable[[], None]) -> None:
        handler()
        self._wake.set()

    def _follow(self, answer: Answer, end_s: float) -> None:
        super()._follow(answer, end_s)
        self._wake.set()

    def _refill_after_failure(self) -> None:
        super()._refill_after_failure()
        self._wake.set()

    def _send(self, answer: Answer, request: bytes, template: RequestTemplate, *, fresh: bool = False) -> float:
        del fresh
        pending = LibraryRequest(self, answer, template)
        self._begun(pending, now_s := time.monotonic())
        answer.sent_s = now_s
        pending.task = asyncio.get_running_loop().create_task(self._carry(pending, request))
        self.recorder.keep_highest(Count.OPEN_SOCKETS, len(self._busy))
        return now_s

    async def _carry(self, pending: LibraryRequest, body: bytes) -> None:
        library, answer = http_library(), pending.answer
        try:
            async with self._session.stream("POST", self._url, content=body) as response:
                await self._read_answer(response, answer)
        except (library.ConnectError, library.ConnectTimeout, library.ProxyError) as error:
            answer.fail(Status.CONNECT, f"connection failed: {error}{through(self._proxy)}")
        except (library.RemoteProtocolError, library.NetworkError) as error:
            broken = isinstance(error, library.NetworkError) or "closed" in str(error) or "disconnected" in str(error)
            if not answer.done:
                answer.fail(Status.RESET if broken else Status.PROTOCOL, f"{type(error).__name__}: {error}")
        except (library.HTTPError, EventStreamError) as error:
            answer.fail(Status.PROTOCOL, f"{type(error).__name__}: {error}")
        if pending in self._busy:  # not abandoned meanwhile
            self.ended(pending, answer, time.monotonic(), reusable=False)

    async def _read_answer(self, response: Any, answer: Answer) -> None:
        status: int = response.status_code
        headers = response.headers
        content_type, encoding = headers.get("content-type", "").lower(), headers.get("content-encoding", "").lower()
        wrong = answer.check_headers(status, content_type, encoding)
        stream, text, now_s = EventStream(), bytearray(), time.monotonic()
        try:
            async for data in response.aiter_raw():
                now_s = time.monotonic()
                self.recorder.add(Count.USER_STAMPS)
                if wrong or answer.whole:
                    most = MAX_ERROR_BODY if wrong else MOST_BYTES
                    text += data[: most - len(text)]
                    if len(text) >= most:
                        break
                    continue
                before = answer.events
                for event in stream.feed(data):
                    answer.event(event, now_s)
                self.recorder.add_shared(answer.events - before)
                if stream.error is not None:
                    answer.error_event(stream.error)
                if answer.status is not None:
                    return
        finally:
            if wrong:
                answer.check_body(status, wrong, bytes(text))
        if not wrong:
            _take_body(answer, stream, text, now_s)


def _take_body(answer: Answer, stream: EventStream, text: bytearray, last_s: float) -> None:
    """End a body that was read to its end, whose last byte came at `last_s` if the answer is whole."""
    if not answer.whole:
        answer.body_ended(stream, time.monotonic())
    elif len(text) >= MOST_BYTES:
        answer.fail(Status.PROTOCOL, f"an answer of more than {MOST_BYTES} bytes")
    else:
        answer.take_whole(bytes(text), last_s)
