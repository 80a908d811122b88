"""A small real HTTP server that speaks enough of the OpenAI API to be measured: in a thread, on loopback.

It counts tokens with whatever counter a test gives it, and streams as many as asked for, in a chunked event each or
several in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.serving import LoopServer


@dataclass
class Seen:
    """What the server saw."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    output_tokens: int = 0
    """Sent so far."""
    held: int = 0
    """Answers that wait for `release`."""


class TokenServer(LoopServer):
    """Serves chat and completions; `count` is the tokenizer: the tokens of a text."""

    def __init__(
        self,
        count: Callable[[str], int] = len,
        *,
        template: Callable[[str], str] = lambda text: f"<u>{text}</u><a>",
        tokenize: bool = False,
        ids: bool = True,
        ttft_s: float = 0.0,
        gap_s: float = 0.0,
        handler: Callable[[web.Request], Any] | None = None,
        tls: ssl.SSLContext | None = None,
        cancel: bool = False,
        per_event: int = 1,
        reasoning: int = 0,
        hold_after: int | None = None,
        host: str = "127.0.0.1",
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.count, self.template, self.ids, self.context = count, template, ids, context
        self.ttft_s, self.gap_s = ttft_s, gap_s
        self._tls, self._cancel, self.per_event, self.reasoning = tls, cancel, per_event, reasoning
        self.hold_after, self._go = hold_after, asyncio.Event()
        self._host = self.name = host
        self.seen = Seen()
        self.probes = 0
        self.app = web.Application()
        answer = handler or self._answer
        self.app.router.add_post("/v1/chat/completions", answer)
        self.app.router.add_post("/v1/completions", answer)
        if handler is not None:
            for path in ("/v1/responses", "/v1/embeddings"):
                self.app.router.add_post(path, answer)
        if tokenize:
            self.app.router.add_post("/tokenize", self._tokenize)
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}/v1"

    async def _open(self) -> None:
        # With `cancel` a handler ends when its client goes away.
        self._runner = web.AppRunner(self.app, shutdown_timeout=0.1, handler_cancellation=self._cancel)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, 0, ssl_context=self._tls).start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        self._go.set()
        await self._runner.cleanup()

    def release(self) -> None:
        """Let answers go on beyond `hold_after` events, where they wait until then."""
        self._loop.call_soon_threadsafe(self._go.set)

    def drop_connections(self) -> int:
        """Close what clients keep open; returns how many there were."""

        async def drop() -> int:
            server = self._runner.server
            assert server is not None
            transports = [each.transport for each in server.connections if each.transport is not None]
            for transport in transports:
                transport.close()
            return len(transports)

        return asyncio.run_coroutine_threadsafe(drop(), self._loop).result()

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        """As the server counts them."""
        if "messages" in body:
            return self.count(self.template("".join(each["content"] for each in body["messages"])))
        prompt = body["prompt"]
        return len(prompt) if isinstance(prompt, list) else self.count(prompt)

    async def _tokenize(self, request: web.Request) -> web.Response:
        self.probes += 1
        return web.json_response({"count": self.prompt_tokens(await request.json())})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if isinstance(body.get("prompt"), list) and not self.ids:
            return web.json_response({"error": {"message": "token ids are not taken"}}, status=400)
        usage = {"prompt_tokens": self.prompt_tokens(body), "completion_tokens": body["max_tokens"]}
        if self.context is not None and sum(usage.values()) > self.context:
            told = f"this model's maximum context length is {self.context} tokens, not {sum(usage.values())}"
            return web.json_response({"error": {"message": told}}, status=400)
        if not body.get("stream"):
            self.probes += 1
            return web.json_response({"choices": [], "usage": usage})
        seen = self.seen
        seen.bodies.append(body)
        seen.prompt_tokens += usage["prompt_tokens"]
        seen.in_flight += 1
        seen.most_in_flight = max(seen.most_in_flight, seen.in_flight)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            if self.ttft_s:
                await asyncio.sleep(self.ttft_s)
            left, per_event = usage["completion_tokens"], self.per_event
            events = stream(body, usage, chat="messages" in body, per_event=per_event, reasoning=self.reasoning)
            for sent, event in enumerate(events):
                if sent == self.hold_after:
                    seen.held += 1
                    await self._go.wait()
                    seen.held -= 1
                await response.write(event)
                if b'"finish_reason"' in event:
                    seen.output_tokens += min(left, per_event)
                    left -= per_event
                if self.gap_s:
                    await asyncio.sleep(self.gap_s)
            await response.write_eof()
        seen.in_flight -= 1
        return response


def stream(
    body: dict[str, Any], usage: dict[str, int], *, chat: bool, per_event: int = 1, reasoning: int = 0
) -> list[bytes]:
    """The events of an answer, shaped like vLLM's; the first repeats some of the prompt.

    The first `reasoning` tokens of a chat are reasoning.
    """
    kind = "chat.completion.chunk" if chat else "text_completion"
    common = {"id": "cmpl-0123456789abcdef", "object": kind, "created": 1, "model": body["model"]}
    events: list[dict[str, Any]] = []
    if chat:
        events.append({**common, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    total = usage["completion_tokens"]
    for start in range(0, total, per_event):
        end = min(start + per_event, total)
        finish = "length" if end == total else None
        tokens = "".join(("t", " to", ' \\"ken')[i % 3] for i in range(start, end))
        # As vLLM does with prompts of token ids that end in half a character.
        tokens = tokens if start else "the end of the prompt" * 5 + tokens
        said = "reasoning" if start < reasoning else "content"
        text = {"delta": {said: tokens}} if chat else {"text": tokens}
        events.append({**common, "choices": [{"index": 0, **text, "logprobs": None, "finish_reason": finish}]})
    prompt, output = usage["prompt_tokens"], usage["completion_tokens"]
    counts = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
    events.append({**common, "choices": [], "usage": counts})
    texts = [json.dumps(event, separators=(",", ":")) for event in events]
    return [f"data: {text}\n\n".encode() for text in [*texts, "[DONE]"]]
