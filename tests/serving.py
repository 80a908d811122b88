"""How servers of tests begin and end: each in a thread, on a port of loopback that the kernel chooses."""

from __future__ import annotations

import asyncio
import ssl
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class _Quiet:
    """Keeps a handler from writing a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class ThreadedServer:
    """A server of the standard library. It listens from when it is made, and answers within its ``with`` block.

    Args:
        handler: of its requests, each in a thread of its own.
        tls: None for plain HTTP.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> None:
        quiet = type(handler.__name__, (_Quiet, handler), {})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), quiet)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self.root = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}"
        """Its URL, without a path."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class LoopServer(ABC):
    """A server in an event loop of its own. It answers within its ``with`` block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @abstractmethod
    async def _open(self) -> None:
        """Begin to answer."""

    @abstractmethod
    async def _close(self) -> None:
        """Let go of all connections."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._opened.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._open())
        except BaseException as error:  # noqa: BLE001 - the thread that waits for it raises it
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
