"""A real HTTP server that answers what a test tells it, and remembers every request."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.serving import ThreadedServer


@dataclass(frozen=True)
class Asked:
    """One request. Names of headers are in lower case."""

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Told:
    """One answer; a body that is no text is sent as JSON."""

    status: int = 200
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)


NOT_FOUND = Told(404, {"detail": "Not Found"})
MODELS = Told(200, {"object": "list", "data": [{"id": "m"}]})
CHAT = Told(200, {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}})


def openai_like(asked: Asked) -> Told:
    """A server with one model, ``m``, and chats alone."""
    return {"/v1/models": MODELS, "/v1/chat/completions": CHAT}.get(asked.path, NOT_FOUND)


class ScriptedServer(ThreadedServer):
    """Answers every request with what `respond` says; None: the connection closes without an answer."""

    def __init__(
        self, respond: Callable[[Asked], Told | None] = openai_like, tls: ssl.SSLContext | None = None
    ) -> None:
        self.asked: list[Asked] = []
        asked, lock = self.asked, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with lock:
                    request = Asked(len(asked), self.command, self.path, headers, body)
                    asked.append(request)
                told = respond(request)
                if told is None:
                    self.close_connection = True
                    return
                content = told.body.encode() if isinstance(told.body, str) else json.dumps(told.body).encode()
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _answer  # noqa: N815 - names that the library looks for

        super().__init__(Handler, tls)
        self.url = self.root
