"""A small HTTP server on loopback that behaves as a situation says: well, badly, or like a gateway.

A behaviour is a function from a `Request` to the pieces of a reply: bytes to send, seconds to wait, None to close the
connection. Probes (requests that are not streamed) are answered well, unless the situation answers them itself.
The functions below make pieces, and behaviours out of other behaviours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.serving import LoopServer

GAP_S = 0.008
"""Between two tokens: the pace of all servers here."""
CLOSE = None


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        number: of the situation's streamed requests, from 0.
        in_flight: streamed requests of the situation that are not answered yet, this one included.
        body: as it was sent.
        key: the bearer token that came with it.
        prompt, asked: tokens of the prompt, and tokens that are asked for.
    """

    number: int
    in_flight: int
    body: dict[str, Any]
    key: str
    prompt: int
    asked: int

    @property
    def chat(self) -> bool:
        return "messages" in self.body


Reply = Iterable[bytes | float | None]
Behaviour = Callable[[Request], Reply]


@dataclass
class _Served:
    """What is served under one name, and the streamed requests to it so far and in flight."""

    behaviour: Behaviour
    probes: Behaviour
    requests: int = 0
    in_flight: int = 0


class SituationServer(LoopServer):
    """Serves each situation under a path: ``/NAME/v1/...``."""

    def __init__(self) -> None:
        super().__init__()
        self._served: dict[str, _Served] = {}
        self.port = 0

    def url(self, name: str, behaviour: Behaviour, probes: Behaviour | None = None) -> str:
        """Where a behaviour is served from now on."""
        self._served[name] = _Served(behaviour, probes or answer_probe)
        return f"http://127.0.0.1:{self.port}/{name}/v1"

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._answered(reader, writer):
                pass
        writer.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        text = await reader.readexactly(int(fields.get("content-length", 0)))
        _, path, _ = head.split(" ", 2)
        _, name, api = path.split("/", 2)
        served = self._served[name]
        if "completions" not in api:
            writer.write(http(404, b""))
            return True
        body = json.loads(text)
        streamed = bool(body.get("stream"))
        if streamed:
            served.in_flight += 1
        try:
            request = Request(
                served.requests,
                served.in_flight,
                body,
                fields.get("authorization", "").removeprefix("bearer "),
                _prompt_tokens(body),
                body.get("max_tokens", 1),
            )
            served.requests += streamed
            for piece in (served.behaviour if streamed else served.probes)(request):
                if piece is None:
                    return False
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
        finally:
            served.in_flight -= streamed
        return True


def _prompt_tokens(body: dict[str, Any]) -> int:
    """A token for each id or character, and four for the template of a chat."""
    if "messages" in body:
        return 4 + sum(len(message["content"]) for message in body["messages"])
    return len(body["prompt"])


def answer_probe(request: Request) -> Reply:
    """The usage of one token."""
    counts = {"prompt_tokens": request.prompt, "completion_tokens": 1}
    return [http(200, json.dumps({"choices": [], "usage": counts}).encode(), "application/json")]


# -- pieces -----------------------------------------------------------------------------------------------------------

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def http(status: int, body: bytes, content_type: str = "application/json", extra: str = "") -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def packed(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


def token(
    request: Request, text: str = "t", finish: str | None = None, *, delta: dict[str, Any] | None = None, **more: Any
) -> bytes:
    """The data of an event, with `delta` in place of the text where it is given; `more` goes beside the choices."""
    part = {"delta": {"content": text} if delta is None else delta} if request.chat else {"text": text}
    choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish}
    return packed({**_common(request), "choices": [choice], **more})


def opening(request: Request, **more: Any) -> bytes:
    """The data of the event that opens a chat."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, **({"finish_reason": None} | more)}
    return packed({**_common(request), "choices": [choice]})


def counts(request: Request, output: int | None = None) -> dict[str, int]:
    """A usage object."""
    made = request.asked if output is None else output
    return {"prompt_tokens": request.prompt, "total_tokens": request.prompt + made, "completion_tokens": made}


def usage(request: Request, output: int | None = None) -> bytes:
    """The data of an event that only holds a usage."""
    return packed({**_common(request), "choices": [], "usage": counts(request, output)})


def _common(request: Request) -> dict[str, Any]:
    kind = "chat.completion.chunk" if request.chat else "text_completion"
    return {"id": "cmpl-42", "object": kind, "created": 1, "model": "m"}


DONE = b"[DONE]"


def tokens(request: Request, made: int | None = None, finish: str | None = "length", **more: Any) -> list[bytes]:
    """The data of so many token events (None: as many as are asked for); the last says why the answer ends."""
    number = request.asked if made is None else made
    first = [opening(request)] if request.chat else []
    return [*first, *(token(request, "t", finish if i == number - 1 else None, **more) for i in range(number))]


def whole(request: Request) -> list[bytes]:
    """The data of a good answer, as vLLM sends it."""
    return [*tokens(request), usage(request), DONE]


def sent(said: Sequence[bytes], form: bytes = b"data: %b\n\n", *, head: bytes = SSE_HEAD, last: bytes = LAST) -> Reply:
    """Events at the usual pace, a chunk each."""
    yield head
    for data in said:
        yield chunk(form % data)
        if b'"finish_reason":null' in data or b'"text"' in data:
            yield GAP_S
    yield last


def spread(body: bytes, size: int, head: bytes = SSE_HEAD) -> Iterator[bytes | float]:
    """A body in chunks of `size` bytes, at about the usual pace."""
    yield head
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    for part in parts:
        yield chunk(part)
        yield 8 * GAP_S / len(parts)
    yield LAST


def events(said: Iterable[bytes]) -> bytes:
    """Events as one body."""
    return b"".join(b"data: %b\n\n" % data for data in said)


# -- behaviours -------------------------------------------------------------------------------------------------------


def good(request: Request) -> Reply:
    """A good answer."""
    return sent(whole(request))


def streams(said: Callable[[Request], Sequence[bytes]], form: bytes = b"data: %b\n\n") -> Behaviour:
    """The events that `said` makes."""
    return lambda request: sent(said(request), form)


def always(*pieces: bytes | float | None) -> Behaviour:
    """The same pieces for every request."""
    return lambda _: pieces


def every(number: int, bad: Behaviour, rest: Behaviour = good) -> Behaviour:
    """Every `number`-th request meets `bad`, the others `rest`."""
    return lambda request: (bad if request.number % number == number // 2 else rest)(request)


def once(bad: Behaviour, rest: Behaviour = good) -> Behaviour:
    """One request, of hundreds, meets `bad`."""
    return lambda request: (bad if request.number == 30 else rest)(request)


def one_after_the_other(rate_rps: float, answer: Behaviour = good) -> Behaviour:
    """A server that begins so many answers a second and no more, however fast the machine is."""
    free_s = 0.0

    def behave(request: Request) -> Reply:
        nonlocal free_s
        now_s = time.monotonic()
        free_s = max(now_s, free_s) + 1 / rate_rps
        yield free_s - now_s
        yield from answer(request)

    return behave


def beyond(most: int, bad: Behaviour, rest: Behaviour = good) -> Behaviour:
    """Requests beyond so many in flight meet `bad`."""
    return lambda request: (bad if request.in_flight > most else rest)(request)
