"""A raw-socket server that answers with the exact bytes that a test gives it, piece by piece: for misbehaving servers.

Probes (bodies without ``"stream":true``) are answered well, so that calibration succeeds.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tests.load.unread import taken_in

Script = Sequence[bytes | None]
"""Pieces to send; None closes the connection."""

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def token(text: str = "t", *, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    event = {"id": "cmpl-42", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(event, separators=(",", ":")).encode()


def usage(prompt: int = 32, completion: int = 4) -> bytes:
    counts = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    event = {"id": "cmpl-42", "object": "text_completion", "created": 1, "model": "m", "choices": [], "usage": counts}
    return json.dumps(event, separators=(",", ":")).encode()


def events(tokens: int = 4, prompt: int = 32) -> list[bytes]:
    """The data of a whole good answer."""
    last = token("t", finish="length")
    return [*(token() for _ in range(tokens - 1)), last, usage(prompt, tokens), b"[DONE]"]


def good(tokens: int = 4, prompt: int = 32) -> list[bytes]:
    """A whole good answer, one chunk an event."""
    return [HEAD, *(chunk(b"data: %b\n\n" % data) for data in events(tokens, prompt)), b"0\r\n\r\n"]


class RawServer:
    """Answers the i-th streamed request with ``scripts[min(i, last)]``, or whatever `respond` says.

    A piece is sent when the client has read the one before: each comes to it alone.

    Args:
        scripts: see above.
        respond: the script for a request, by its number and its body.
        hold_from: the number of the first request that is not answered before `release`; None for none.
        share_port: others may bind the port, too; see `socket.SO_REUSEPORT`.
    """

    def __init__(
        self,
        *scripts: Script,
        respond: Callable[[int, dict[str, object]], Script] | None = None,
        hold_from: int | None = None,
        share_port: bool = False,
    ) -> None:
        self.scripts, self.respond = scripts, respond
        self._hold_from, self._go = hold_from, threading.Event()
        self.requests: list[bytes] = []
        self.carriers: list[int] = []
        """The number of the connection that each request came over."""
        self.answered = 0
        """Answers that the client has read to their end."""
        self._connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256, reuse_port=share_port)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        self._closing = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self.release()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        for sock in self._open:
            sock.close()

    def release(self) -> None:
        """Answer what is held."""
        self._go.set()

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.append(sock)
                self._connections += 1
            threading.Thread(target=self._serve, args=(sock, self._connections), daemon=True).start()

    def _serve(self, sock: socket.socket, carrier: int) -> None:
        with contextlib.suppress(OSError), sock:
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = sock.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, body = buffer.partition(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                while len(body) < length:
                    body += sock.recv(65536)
                buffer = body[length:]
                if not self._reply(sock, carrier, head, body[:length]):
                    return

    def _reply(self, sock: socket.socket, carrier: int, head: bytes, body: bytes) -> bool:
        request = json.loads(body)
        if b"/tokenize" in head.split(b"\r\n")[0]:
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        if not request.get("stream"):
            prompt = request.get("prompt") or request["messages"][0]["content"]
            counts = json.dumps(
                {"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": 1}}
            ).encode()
            sock.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(counts), counts)
            )
            return True
        with self._lock:
            number = len(self.requests)
            self.carriers.append(carrier)
            self.requests.append(head + b"\r\n\r\n" + body)
        if self._hold_from is not None and number >= self._hold_from:
            self._go.wait()
        script = self.respond(number, request) if self.respond else self.scripts[min(number, len(self.scripts) - 1)]
        try:
            for piece in script:
                if piece is None:
                    return False
                if piece:
                    sock.sendall(piece)
                    while not taken_in(sock) and not self._closing:
                        time.sleep(0.0002)
        finally:
            with self._lock:
                self.answered += 1
        return True
