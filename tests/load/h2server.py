"""A real HTTP/2 server (hypercorn) that streams answers like `tokenserver`, in a thread, on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from tests.load.tokenserver import Seen, stream
from tests.serving import LoopServer

Message = MutableMapping[str, Any]


class H2Server(LoopServer):
    """Counts a token a character. `tls`: a folder with cert.pem and key.pem, offering HTTP/2 and nothing else."""

    def __init__(self, tls: Path | None = None) -> None:
        super().__init__()
        self._tls = tls
        self.seen = Seen()
        self.versions: set[str] = set()
        """Of HTTP, that streams were asked for over."""
        self._stop = asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._fd = listener.detach()  # hypercorn's from here on

    async def _open(self) -> None:
        config = Config()
        config.bind = [f"fd://{self._fd}"]
        config.alpn_protocols = ["h2"]
        config.graceful_timeout = 0.1
        if self._tls is not None:
            config.certfile, config.keyfile = str(self._tls / "cert.pem"), str(self._tls / "key.pem")
        app: Any = self._app  # hypercorn's own type names every kind of message
        self._serving = asyncio.ensure_future(serve(app, config, shutdown_trigger=self._stop.wait))

    async def _close(self) -> None:
        self._stop.set()
        await self._serving

    async def _app(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        text, more = b"", True
        while more:
            message = await receive()
            text, more = text + message.get("body", b""), message.get("more_body", False)
        if not scope["path"].endswith("completions"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        body = json.loads(text)
        prompt = body.get("prompt") or body["messages"][0]["content"]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": body["max_tokens"]}
        streamed = body.get("stream")
        kind = b"text/event-stream" if streamed else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if streamed:
            self.seen.bodies.append(body)
            self.versions.add(scope["http_version"])
            for event in stream(body, usage, chat="messages" in body):
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            answer = json.dumps({"choices": [], "usage": usage}).encode()
            await send({"type": "http.response.body", "body": answer})
