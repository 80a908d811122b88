"""Servers that answer a plain request with whatever bytes: a listener, a thread per connection, and no HTTP library."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

Behaviour = Callable[[socket.socket], None]
"""What is done with a connection whose request has come. It is closed afterwards."""

JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class HostileServer:
    """Behaves so towards everybody who connects."""

    def __init__(self, behaviour: Behaviour, *, silent: bool = False) -> None:
        self._behaviour, self._reads = behaviour, not silent
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._reads:
                sock.recv(65536)
            self._behaviour(sock)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):  # a close with unread bytes would be a reset
                pass
        sock.close()


def sends(*pieces: bytes) -> Behaviour:
    """Send this and close the connection."""

    def behave(sock: socket.socket) -> None:
        for piece in pieces:
            sock.sendall(piece)

    return behave


def floods(first: bytes, again: bytes) -> Behaviour:
    """Send `again` for as long as somebody reads it."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(first)
        block = again * max(1, 65536 // len(again))
        while True:
            sock.sendall(block)

    return behave


def drips(first: bytes, drop: bytes) -> Behaviour:
    """Send a drop from time to time, so that no single read ever waits long."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(first)
        pause = threading.Event()
        while not pause.wait(0.02):
            sock.sendall(drop)

    return behave


def hangs(first: bytes = b"") -> Behaviour:
    """Send this and then nothing, with the connection open."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(first)
        sock.settimeout(None)
        while sock.recv(65536):
            pass

    return behave


def resets(first: bytes = b"") -> Behaviour:
    """Send this and reset the connection."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(first)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    return behave


def body(content: bytes, *headers: bytes) -> Behaviour:
    """A whole answer with this body."""
    return sends(
        b"".join([JSON_HEAD, *(header + b"\r\n" for header in headers)])
        + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    )


def told(content: Any) -> Behaviour:
    """A whole answer with this JSON."""
    return body(json.dumps(content).encode())


def _bomb() -> bytes:
    return gzip.compress(bytes(1 << 26))


def _chunked(data: bytes) -> Behaviour:
    return sends(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + data)


NO_ANSWER: Final[dict[str, Behaviour]] = {
    "closes at once": sends(),
    "silence": hangs(),
    "reset": resets(),
    "reset within the head": resets(b"HTTP/1.1 200 OK\r\nContent-"),
    "reset within the body": resets(JSON_HEAD + b"Content-Length: 99\r\n\r\n{"),
    "half close within the head": sends(b"HTTP/1.1 200 OK\r\nContent-Type: app"),
    "half close within the body": sends(JSON_HEAD + b"Content-Length: 99\r\n\r\n{}"),
    "half close within a chunk": _chunked(b"9\r\n{}"),
    "half close before the last chunk": _chunked(b"2\r\n{}\r\n"),
    "no status line": sends(b"hello there\r\n\r\n"),
    "HTTP/0.9": sends(b"<html>welcome</html>"),
    "another protocol": sends(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a ZMQ greeting": hangs(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(40)),
    "TLS on a plain port": sends(b"\x15\x03\x01\x00\x02\x02\x46"),
    "binary": sends(bytes(range(256)) * 64),
    "zeros": floods(b"", b"\0"),
    "a status of words": sends(b"HTTP/1.1 OK fine\r\n\r\n{}"),
    "a version of words": sends(b"HTTP/x 200 OK\r\n\r\n{}"),
    "a status line without an end": floods(b"HTTP/1.1 200 ", b"O"),
    "headers without an end": floods(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
    "a header without an end": floods(b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
    "a header without a colon": sends(b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n{}"),
    "a control character in a header": sends(b"HTTP/1.1 200 OK\r\nX: \x00\x01\r\n\r\n{}"),
    "slow loris in the head": drips(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
    "slow loris in a header": drips(b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "slow loris in the body": drips(JSON_HEAD + b"Content-Length: 99999\r\n\r\n{", b" "),
    "slow loris in chunks": drips(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "slow loris until the end of the connection": drips(JSON_HEAD + b"\r\n{", b" "),
    "a head and then silence": hangs(JSON_HEAD + b"Content-Length: 2\r\n\r\n"),
    "interim answers without an end": floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "slow interim answers": drips(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
    "another protocol is switched to": sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
    "a body without an end": floods(JSON_HEAD + b"\r\n[", b"0,"),
    "chunks without an end": floods(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\n0,\r\n"),
    "a trailer without an end": floods(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: 1\r\n"),
    "a chunk extension without an end": floods(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
    "a length beyond all bounds": sends(JSON_HEAD + b"Content-Length: 999999999999\r\n\r\n{}"),
    "a length of 30 digits": sends(JSON_HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}"),
    "a negative length": sends(JSON_HEAD + b"Content-Length: -1\r\n\r\n{}"),
    "a length of words": sends(JSON_HEAD + b"Content-Length: two\r\n\r\n{}"),
    "two lengths": sends(JSON_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
    "a length and chunks": sends(JSON_HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunk sizes of words": _chunked(b"zz\r\n{}\r\n0\r\n\r\n"),
    "a chunk size beyond all bounds": _chunked(b"f" * 40 + b"\r\n{}"),
    "a chunk longer than its size": _chunked(b"1\r\n{}{}{}\r\n0\r\n\r\n"),
    "a gzip bomb": body(_bomb(), b"Content-Encoding: gzip"),
    "another compression": body(b"{}", b"Content-Encoding: zstd"),
}
"""Servers that give no whole HTTP answer."""

PAGES: Final[dict[str, Behaviour]] = {
    "an empty body": body(b""),
    "no body": sends(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a page": body(b"<!doctype html><title>Welcome</title>"),
    "half of JSON": body(b'{"data": [{"id": "m"'),
    "deep JSON": body(b"[" * 200_000),
    "deep objects": body(b'{"data":' * 100_000),
    "a number of 5,000 digits": body(b'{"data": ' + b"9" * 5_000 + b"}"),
    "NaN": body(b'{"data": NaN, "version": NaN, "count": NaN, "usage": {"prompt_tokens": NaN}}'),
    "infinities": body(b'{"data": [{"id": 1e999}], "usage": {"prompt_tokens": 1e999}}'),
    "no UTF-8": body(b'{"data": [{"id": "\xff\xfe"}]}'),
    "a lone surrogate": body(b'{"data": [{"id": "\\ud800", "root": "\\udfff"}], "version": "\\ud800"}'),
    "null": told(None),
    "a text": told("data"),
    "a list": told([1, 2]),
    "true": told(True),
    "data of words": told({"data": "m"}),
    "data of numbers": told({"data": [1, 2]}),
    "data of lists": told({"data": [["id", "m"]]}),
    "models without names": told({"data": [{}, {"object": "model"}]}),
    "names of another type": told({"data": [{"id": None, "root": []}]}),
    "lengths of another type": told({"data": [{"id": "m", "max_model_len": "many"}], "version": {"a": 1}}),
    "lengths beyond all bounds": body(b'{"data": [{"id": "m", "max_model_len": 1' + b"0" * 400 + b"}]}"),
    "a version of a megabyte": told({"version": "v" * 1_000_000}),
    "a configuration of another type": told({"vllm_config": {"parallel_config": {"tensor_parallel_size": "all"}}}),
    "an answer and more": sends(JSON_HEAD + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\nmore"),
    "a redirect to itself": sends(b"HTTP/1.1 302 Found\r\nLocation: /v1/models\r\nContent-Length: 0\r\n\r\n"),
    "a redirect elsewhere": sends(b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n"),
    "a redirect to a file": sends(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"),
    "a redirect without a target": sends(b"HTTP/1.1 308 Go\r\nContent-Length: 0\r\n\r\n"),
    "an unknown status": sends(b"HTTP/1.1 799 Who Knows\r\nContent-Length: 0\r\n\r\n"),
    "an error of binary": sends(b"HTTP/1.1 500 Oh\r\nContent-Length: 512\r\n\r\n" + bytes(range(256)) * 2),
    "an error of deep JSON": sends(b"HTTP/1.1 400 Bad\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000),
}
"""Servers whose answers are HTTP, and not what was asked for."""


@contextlib.contextmanager
def plain_and_loading(behaviour: Behaviour) -> Iterator[str]:
    """The URL of such a server."""
    with HostileServer(behaviour) as server:
        yield server.url
