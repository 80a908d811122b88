"""One plain request and its whole answer, bounded in time and in bytes: for everything that is not load.

Readiness, calibration, questions, metrics and facts about a server are asked for here. Whatever a server answers, or
whether it answers at all, the call returns by its deadline with an answer or `NoAnswer`. It holds no more than a page
in memory.

HTTP/1.1 over a socket of our own is all that most servers need. Only those that speak nothing but HTTP/2 are asked
through the HTTP library.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import importlib.util
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import httptools

from pytest_gpucap.access import tls_context
from pytest_gpucap.foreign_text import printable
from pytest_gpucap.load.address import ServerAddress, http_library
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.proxies import library_options, through

MOST_BYTES: Final = 1 << 23
"""Of an answer's body. No page that is asked for here has a tenth of this. A stream without an end does."""
MOST_HEAD_BYTES: Final = 1 << 18
"""Before an answer's body begins, interim answers included."""
_MOST_REASON: Final = 100
"""Characters that are kept of the words behind a status. No server's are longer, but a head may be full of them."""
_READ_BYTES: Final = 1 << 16
_DAY_S: Final = 86_400.0
"""No socket takes an endless time limit."""
_STOP_S: Final = 0.2
"""Between two looks at whether the caller still wants the answer."""
_LOADING_ERRNO: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
_OK: Final = 200
_INTERIM: Final = range(100, 200)
_CONNECTED: Final = range(200, 300)


class NoAnswer(LoadError):  # noqa: N818 - it states what there is
    """A request got no HTTP answer, or none that ends within its bounds; the message is one line.

    Attributes:
        loading: the server may still be loading: nobody listens yet, or it closed the connection.
        untrusted: its TLS certificate is not trusted.
        late: the time for it was over, and nothing says that none would have come.
    """

    needs_traceback = False

    def __init__(self, message: str, *, loading: bool = False, untrusted: bool = False, late: bool = False) -> None:
        super().__init__(printable(message))
        self.loading, self.untrusted, self.late = loading, untrusted, late


@dataclass(slots=True)
class Reply:
    """A whole HTTP answer.

    Attributes:
        status: of HTTP.
        reason: the words behind it, shortened.
        headers: by their names in lower case; the last one of a name.
        body: as it was sent.
    """

    status: int = 0
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether it is a success with a body."""
        return self.status == _OK

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8", errors="replace")

    def json(self) -> Any:
        """The body as JSON; None for anything else."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


def ask(
    server: ServerAddress,
    path: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    timeout_s: float,
    most_bytes: int = MOST_BYTES,
    stop: Callable[[], bool] | None = None,
) -> Reply:
    """The answer to one request under the server's root. No redirect is followed.

    Args:
        server: where to, and what requests must carry.
        path: from the root.
        method: of HTTP.
        body: JSON.
        timeout_s: for all of it, from the resolution of the name to the answer's last byte.
        most_bytes: that the answer's body may have.
        stop: asked now and then whether to give up.

    Raises:
        NoAnswer: if there is no whole answer within these bounds.
    """
    what = f"{method} {server.root}{path}"
    try:
        proxy = server.proxy
    except LoadError as error:
        raise NoAnswer(f"{what} failed: {error}") from None
    exchange = _Exchange(server, proxy, method, body, time.monotonic() + timeout_s, timeout_s, most_bytes, stop)
    try:
        return exchange.answer(urlsplit(server.root + path))
    except NoAnswer as error:
        raise NoAnswer(
            f"{what} failed: {error}{through(proxy)}",
            loading=error.loading,
            untrusted=error.untrusted,
            late=error.late,
        ) from None
    except (OSError, ValueError) as error:
        raise _unanswered(what, error, through(proxy)) from None


@dataclass(slots=True)
class _Exchange:
    """The bounds of a request."""

    server: ServerAddress
    proxy: str | None
    method: str
    body: bytes | None
    deadline_s: float
    timeout_s: float
    most_bytes: int
    stop: Callable[[], bool] | None

    def answer(self, url: SplitResult) -> Reply:
        """Send the request to one URL and read the answer.

        Raises:
            NoAnswer, OSError: if there is none.
        """
        if self.server.http2:
            return self._by_library(url)
        try:
            with self._connected(url) as sock:
                return self._carry(sock, self._request(url))
        except ssl.SSLError as error:
            only_http2 = "NO_APPLICATION_PROTOCOL" in (error.reason or "")
            if only_http2 and importlib.util.find_spec("h2") is not None:
                return self._by_library(url)
            raise

    def _left(self) -> float:
        """Seconds left; above zero.

        Raises:
            NoAnswer: if there are none.
        """
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise NoAnswer(f"no whole answer within {self.timeout_s:g} s", loading=True, late=True)
        return min(left_s, _DAY_S)

    # -- the way there ------------------------------------------------------------------------------------------------

    def _connected(self, url: SplitResult) -> socket.socket:
        """A socket to the server, through the proxy and TLS where there are such."""
        proxy = None if self.proxy is None else urlsplit(self.proxy)
        sock = self._dialled(url if proxy is None else proxy)
        try:
            if proxy is not None and proxy.scheme == "https":
                sock = self._encrypted(sock, proxy.hostname or "", _context(None, *_environment()))
            if url.scheme == "https":
                if proxy is not None:
                    self._tunnel(sock, url, proxy)
                sock = self._encrypted(sock, url.hostname or "", _context(self.server.access.ca_file, *_environment()))
        except BaseException:
            sock.close()
            raise
        return sock

    def _dialled(self, url: SplitResult) -> socket.socket:
        failed: OSError | None = None
        found = socket.getaddrinfo(url.hostname, url.port or _usual_port(url), type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self._left())
                sock.connect(address)
            except OSError as error:
                sock.close()
                failed = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failed or OSError(f"{url.hostname} has no address")

    def _encrypted(self, sock: socket.socket, host: str, context: ssl.SSLContext) -> ssl.SSLSocket:
        sock.settimeout(self._left())  # of the whole handshake
        return context.wrap_socket(sock, server_hostname=host)

    def _tunnel(self, sock: socket.socket, url: SplitResult, proxy: SplitResult) -> None:
        """Ask the proxy for a way to the server."""
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        target = f"{host}:{url.port or _usual_port(url)}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *_proxy_authorization(proxy), "", ""]
        reply = self._carry(sock, "\r\n".join(lines).encode("latin-1"), head_only=True)
        if reply.status not in _CONNECTED:
            raise NoAnswer(f"the proxy refuses the way to it: {reply.status} {reply.reason}".rstrip())

    def _request(self, url: SplitResult) -> bytes:
        """The request as it is sent."""
        host = url.netloc.rpartition("@")[2]
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        plain_proxy = self.proxy is not None and url.scheme == "http"
        lines = [f"{self.method} {f'http://{host}{path}' if plain_proxy else path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.server.headers.items()]
        if plain_proxy and self.proxy is not None:
            lines += _proxy_authorization(urlsplit(self.proxy))
        lines += ["Accept: */*", "Connection: close"]
        if self.body is not None:
            lines += ["Content-Type: application/json"]
        if self.body is not None or self.method != "GET":
            lines += [f"Content-Length: {len(self.body or b'')}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (self.body or b"")

    # -- the answer ---------------------------------------------------------------------------------------------------

    def _carry(self, sock: socket.socket, request: bytes, *, head_only: bool = False) -> Reply:
        """Send a request over a connection and read its answer."""
        unsent: OSError | None = None
        try:
            sock.settimeout(self._left())
            sock.sendall(request)
        except TimeoutError:
            raise
        except OSError as error:
            unsent = error  # a server may refuse a request before it has read it
        reader = _Reader(self.most_bytes)
        while not (reader.done or (head_only and reader.head_done)):
            if not (data := self._received(sock, unsent)):
                reader.end()
                break
            reader.feed(data)
        return reader.reply

    def _received(self, sock: socket.socket, unsent: OSError | None) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            NoAnswer: if the time is over, or the caller wants no more.
        """
        while True:
            left_s = self._left()
            sock.settimeout(left_s if self.stop is None else min(left_s, _STOP_S))
            try:
                return sock.recv(_READ_BYTES)
            except TimeoutError:
                if self.stop is not None and self.stop():
                    raise NoAnswer("it was given up") from None
            except OSError as error:
                raise unsent or error from None

    def _by_library(self, url: SplitResult) -> Reply:
        """The same through the HTTP library: for servers that speak HTTP/2 alone."""
        library = http_library()
        client = library.Client(
            headers=self.server.headers,
            timeout=self._left(),
            **library_options(self.server.root, self.proxy, self.server.access.tls()),
            http1=not self.server.http2,
            http2=True,
        )
        reply, failed = Reply(), list[BaseException]()

        def carry() -> None:
            headers = {} if self.body is None else {"Content-Type": "application/json"}
            try:
                with client.stream(self.method, url.geturl(), content=self.body, headers=headers) as response:
                    reply.status, reply.reason = response.status_code, response.reason_phrase[:_MOST_REASON]
                    reply.headers.update({name.lower(): value for name, value in response.headers.items()})
                    for part in response.iter_raw():
                        reply.body += part
                        if len(reply.body) > self.most_bytes:
                            raise _too_long(self.most_bytes)  # noqa: TRY301 - ends the transfer
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                failed.append(error)

        thread = threading.Thread(target=carry, name="gpucap-request", daemon=True)
        thread.start()
        while thread.is_alive() and self.deadline_s > time.monotonic() and not (self.stop is not None and self.stop()):
            thread.join(min(_STOP_S, max(self.deadline_s - time.monotonic(), 0.0)))
        late = thread.is_alive()
        with contextlib.suppress(Exception):  # it ends what the thread waits for
            client.close()
        if late:
            raise NoAnswer(f"no whole answer within {self.timeout_s:g} s", loading=True, late=True)
        if failed:
            error = failed[0]
            if isinstance(error, library.HTTPError):
                loading = isinstance(error, library.ConnectError | library.TimeoutException)
                raise NoAnswer(f"{type(error).__name__}: {error}", loading=loading) from None
            raise error if isinstance(error, NoAnswer) else NoAnswer(f"{type(error).__name__}: {error}") from None
        _check_encoding(reply)
        return reply


class _Reader:
    """Takes an answer in pieces, within bounds."""

    def __init__(self, most_bytes: int) -> None:
        self.reply = Reply()
        self.done = self.head_done = False
        self._most_bytes = most_bytes
        self._received = 0
        self._size = 0
        self._body: list[bytes] = []
        self._reason: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._close_delimited = True
        self._parser = httptools.HttpResponseParser(self)
        self._begun = b""

    def feed(self, data: bytes) -> None:
        """Take what has come.

        Raises:
            NoAnswer: if it is no HTTP, or more than may come.
        """
        self._received += len(data)
        self._begun = self._begun or data[:8]
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self.head_done:
                raise NoAnswer("it switched to another protocol") from None
        except httptools.HttpParserError as error:
            if not self.done:  # what follows a whole answer does not matter
                raise NoAnswer(self._no_http(error)) from None
        if self.head_done:
            _check_encoding(self.reply)
        elif self._received > MOST_HEAD_BYTES:
            raise NoAnswer(f"the answer's head has no end within {MOST_HEAD_BYTES} bytes")
        # Chunks may add to the body's bytes, but hardly more than it has.
        if self._size > self._most_bytes or self._received > 2 * self._most_bytes + MOST_HEAD_BYTES:
            raise _too_long(self._most_bytes)

    def _no_http(self, error: Exception) -> str:
        if self._begun[:2] in {b"\x15\x03", b"\x16\x03"}:
            return "TLS is spoken there; write https:// if that is meant"
        return f"not HTTP: {error}" if not self.head_done else f"the answer's body is broken: {error}"

    def end(self) -> None:
        """Take the end of the connection.

        Raises:
            NoAnswer: if the answer is not whole.
        """
        if not self.head_done:
            raise NoAnswer("the server closed the connection without an answer", loading=True)
        if not self._close_delimited:
            raise NoAnswer("the server closed the connection within its answer", loading=True)
        self._finish()

    def on_status(self, words: bytes) -> None:
        """See `httptools`."""
        if not self.head_done:
            self._reason.append(words)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `httptools`."""
        if not self.head_done:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        status = self._parser.get_status_code()
        if self.head_done or status in _INTERIM:
            return
        self.head_done = True
        self.reply.status, self.reply.headers = status, self._headers
        self.reply.reason = b"".join(self._reason).decode("latin-1").strip()[:_MOST_REASON]
        self._close_delimited = not self._headers.keys() & {"content-length", "transfer-encoding"}
        length = self._headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20:  # noqa: PLR2004 - digits of 64 bits
            self._size = int(length) if int(length) > self._most_bytes else 0

    def on_body(self, data: bytes) -> None:
        """See `httptools`."""
        if not self.done and self._size <= self._most_bytes:
            self._size += len(data)
            self._body.append(data)

    def on_message_complete(self) -> None:
        """See `httptools`. Interim answers have no body."""
        if self.head_done and not self.done:
            self._finish()
        self._reason, self._headers = [], {}

    def _finish(self) -> None:
        self.done = True
        self.reply.body = b"".join(self._body)


def _check_encoding(reply: Reply) -> None:
    """Refuse an answer that is compressed: nobody asked for that, and what comes out has no bound."""
    encoding = reply.headers.get("content-encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise NoAnswer(f"the answer is compressed ({encoding[:20]}), though that was refused")


def _too_long(most_bytes: int) -> NoAnswer:
    return NoAnswer(f"the answer has no end within {most_bytes} bytes")


def _usual_port(url: SplitResult) -> int:
    return 443 if url.scheme == "https" else 80


def _proxy_authorization(proxy: SplitResult) -> list[str]:
    if proxy.username is None:
        return []
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return [f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}"]


def _environment() -> tuple[str | None, str | None]:
    return os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")


@functools.lru_cache(maxsize=8)
def _context(ca_file: str | None, cert_file: str | None, cert_dir: str | None) -> ssl.SSLContext:
    """How certificates are checked. Making one loads certificates, and telemetry asks several times a second."""
    del cert_file, cert_dir  # OpenSSL reads them itself; a change makes another context
    context = ssl.create_default_context() if ca_file is None else tls_context(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _unanswered(what: str, error: OSError | ValueError, way: str) -> NoAnswer:
    """The error for a request whose connection failed; `way` tells of a proxy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return NoAnswer(f"{what} failed: its certificate is not trusted: {error.verify_message}{way}", untrusted=True)
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return NoAnswer(f"{what} failed: no TLS is spoken there; write http:// if that is meant{way}")
    loading = isinstance(error, ConnectionError | TimeoutError | ssl.SSLEOFError) or (
        error.errno == socket.EAI_AGAIN
        if isinstance(error, socket.gaierror)
        else isinstance(error, OSError) and error.errno in _LOADING_ERRNO
    )
    why = " ".join(str(error).split()) or type(error).__name__
    return NoAnswer(f"{what} failed: {why}{way}", loading=loading, late=isinstance(error, TimeoutError))
