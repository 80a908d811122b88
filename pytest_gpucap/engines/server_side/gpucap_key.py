"""Asks for the key on every path of a vLLM server. The server's own Python imports this file; it needs nothing of ours.

vLLM's own check of the key leaves out whatever is not below ``/v1``: pauses, remote calls, the server's configuration,
``/invocations``, metrics. On a machine with other users, these are open to all of them.

The server never has the key, only its SHA-256 digest. The key is random and long, so its digest opens nothing, and
wherever vLLM writes its environment to, no secret goes with it. vLLM itself asks for no key, because it would have to
know it: versions up to 0.26 make its variable a part of the key of their compile cache, and would compile anew for each
random key and keep it in a file.
"""

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

VARIABLE = "GPUCAP_KEY_SHA256"
"""Environment variable that holds the digest of the key, in hexadecimal. vLLM does not know it."""
OPEN_HEALTH = "GPUCAP_OPEN_HEALTH"
"""Environment variable: ``1`` answers health checks without the key, because vLLM's router sends none with them."""
_SCHEME = b"Bearer "
_BODY = b'{"error":"Unauthorized"}'
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_BODY)).encode()),
    (b"www-authenticate", b"Bearer"),
]
_POLICY = 1008
"""The code of a WebSocket that is closed for a broken rule (RFC 6455, section 7.4.1)."""
_REQUESTS = frozenset({"http", "websocket"})


class RequireKey:
    """An ASGI middleware. It adds one hash and a comparison to a request, and nothing to what the answer sends.

    Raises:
        RuntimeError: if the environment holds no digest. The server then does not start.
    """

    def __init__(self, app: Application) -> None:
        digest = os.environ.get(VARIABLE, "")
        if not digest:
            raise RuntimeError(f"{VARIABLE} is not set, so no request could be let in")
        self._app, self._expected = app, digest.encode()
        self._open = {"/health"} if os.environ.get(OPEN_HEALTH) == "1" else set()

    def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        """Let the request pass with the key, answer it with 401 without. A WebSocket is closed."""
        if scope["type"] not in _REQUESTS or self._has_key(scope["headers"]) or scope["path"] in self._open:
            return self._app(scope, receive, send)
        return _close(receive, send) if scope["type"] == "websocket" else _refuse(send)

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not given[0].startswith(_SCHEME):
            return False
        digest = hashlib.sha256(given[0].removeprefix(_SCHEME)).hexdigest()
        return hmac.compare_digest(digest.encode(), self._expected)


async def _refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


async def _close(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": _POLICY})
