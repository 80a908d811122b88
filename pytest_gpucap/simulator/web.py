"""The simulated server over HTTP: the parts of vLLM's OpenAI-compatible server that measuring needs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import httptools

from pytest_gpucap.accuracy.grading import exact_number
from pytest_gpucap.accuracy.questions import SHIPPED, questions_file, read_questions
from pytest_gpucap.simulator.endpoints import POOLED, ResponseEvents, pooled_answer, pooled_tokens
from pytest_gpucap.simulator.live import LiveEngine, Refused
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.prompt_tokens import BadRequest, count_tokens, prompt_tokens, tokens_of

VERSION = "SIMULATED"
STARTED_S = time.time()
"""When this process started."""
TOKEN_TEXT = " a"  # noqa: S105 - no secret
MAX_BODY = 64 * 2**20
DEFAULT_OUTPUT = 16
_COUNTED = {
    "prefix_queries": "prefix_cache_queries_total",
    "prefix_hits": "prefix_cache_hits_total",
    "draft_tokens": "spec_decode_num_draft_tokens_total",
    "accepted_tokens": "spec_decode_num_accepted_tokens_total",
}


class Answers:
    """Answers questions that come with the plugin, as reasoning models do: some thinking, then the result in a box.

    Args:
        accuracy: probability that an answer is right, independent from answer to answer.
        seed: of which answers are.
    """

    def __init__(self, accuracy: float = 1.0, seed: int = 0) -> None:
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy must lie between 0 and 1, not {accuracy}")
        self._accuracy, self._seed = accuracy, seed
        self._known = [entry for name in SHIPPED for entry in read_questions(questions_file(name, Path()))]

    def reply(self, body: Mapping[str, Any]) -> str | None:
        """The answer to a chat request; None where it asks nothing that is known."""
        said = str(body["messages"][-1].get("content", ""))
        entry = next((entry for entry in self._known if entry.text in said), None)
        if entry is None:
            return None
        draw = random.Random(f"{self._seed} {body.get('seed')} {entry.text}").random()  # noqa: S311 - a simulation
        right = exact_number(entry.answer) or Fraction(0)
        result = right if draw < self._accuracy else right + 1
        return f"<think>\nLet me work this out step by step.\n</think>\nThe result is \\boxed{{{result}}}."


class ClientConnection(asyncio.Protocol):
    """One client's connection. It answers one request after the other."""

    def __init__(
        self, profile: Profile, engine: LiveEngine, model: str, answers: Answers, adapters: Sequence[str] = ()
    ) -> None:
        self._profile, self._engine, self._model, self._answers = profile, engine, model, answers
        self._adapters = tuple(adapters)
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._row: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports do not derive from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._send(400, b'{"object":"error","message":"not HTTP"}')
            if self._transport is not None:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """See `asyncio.Protocol`. If a client disconnects, its request ends, as with vLLM."""
        if self._row is not None:
            self._engine.cancel(self._row)
        self._transport = None

    def on_message_begin(self) -> None:
        """See `httptools`."""
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        """See `httptools`."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """See `httptools`."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """See `httptools`: answer."""
        path = self._url.split(b"?")[0].decode("latin-1")
        method = self._parser.get_method().decode()
        route = self._routes().get((method, path))
        if route is None:
            self._error(404, f"no {method} {path} here")
            return
        try:
            body = json.loads(b"".join(self._body)) if self._body else {}
            route(body)
        except (BadRequest, json.JSONDecodeError) as error:
            self._error(400, str(error))
        except Refused:
            self._error(503, "too many requests in flight")

    def _routes(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], None]]:
        return {
            ("GET", "/health"): lambda _: self._send(200, b""),
            ("GET", "/version"): lambda _: self._json({"version": f"{VERSION} {self._profile.name}"}),
            ("GET", "/v1/models"): lambda _: self._json({"object": "list", "data": self._cards()}),
            ("GET", "/metrics"): lambda _: self._send(200, self._metrics().encode(), "text/plain; version=0.0.4"),
            ("POST", "/reset_prefix_cache"): self._reset,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/completions"): lambda body: self._generate(body, chat=False),
            ("POST", "/v1/chat/completions"): lambda body: self._generate(body, chat=True),
            ("POST", "/v1/responses"): self._respond,
            **{("POST", path): functools.partial(self._pool, path) for path in POOLED},
        }

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": VERSION,
            "max_model_len": self._profile.engine.kv_tokens,
        }

    def _cards(self) -> list[dict[str, Any]]:
        model = self._card()
        return [model, *({**model, "id": name, "parent": self._model} for name in self._adapters)]

    def _reset(self, body: dict[str, Any]) -> None:
        del body
        self._engine.reset_prefix_cache()
        self._send(200, b"")

    def _tokenize(self, body: dict[str, Any]) -> None:
        count = prompt_tokens(body, chat="messages" in body)
        self._json({"count": count, "max_model_len": self._profile.engine.kv_tokens, "tokens": list(range(count))})

    def _asked(self, prompt: int, asked: object) -> int:
        """Output tokens of a request, which fit the context behind its prompt."""
        if not isinstance(asked, int) or asked < 1:
            raise BadRequest("max_tokens must be a whole number of at least 1")
        if prompt + asked > self._profile.engine.kv_tokens:
            raise BadRequest(f"maximum context length is {self._profile.engine.kv_tokens} tokens, not {prompt + asked}")
        return asked

    def _pool(self, path: str, body: dict[str, Any]) -> None:
        """Answer without a token: the request ends with the step that prefills the last of its prompt."""
        prompt = pooled_tokens(path, body, lambda text: max(1, count_tokens(text)))
        if prompt is None:
            raise BadRequest("the request holds no input")
        self._asked(prompt, 1)

        def deliver(final: bool) -> None:
            if final:
                self._row = None
                self._json(pooled_answer(path, body, self._model, prompt))

        self._row = self._engine.submit(prompt, 1, deliver)

    def _respond(self, body: dict[str, Any]) -> None:
        """Answer a request of the responses API, streamed or not."""
        given = body.get("input")
        messages = given if isinstance(given, list) else [{"role": "user", "content": given}]
        content = tokens_of({"messages": messages if given else []}, chat=True)
        asked = self._asked(len(content), body.get("max_output_tokens") or DEFAULT_OUTPUT)
        events = ResponseEvents(self._model, len(content), asked, TOKEN_TEXT)
        streamed, begun, transport = bool(body.get("stream")), False, self._transport

        def deliver(final: bool) -> None:
            nonlocal begun
            if final:
                self._row, events.cached = None, self._engine.found(row)
            if transport is None or transport.is_closing():
                return
            if not streamed:
                if final:
                    self._json(events.answer())
                return
            text = b"" if begun else _STREAM_HEAD + _chunk(events.opening())
            begun = True
            text += _chunk(events.token())
            transport.write(text + (_chunk(events.closing()) + b"0\r\n\r\n" if final else b""))

        row = self._row = self._engine.submit(len(content), asked, deliver, content)

    def _generate(self, body: dict[str, Any], *, chat: bool) -> None:
        content = tokens_of(body, chat=chat)
        asked = self._asked(len(content), body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_OUTPUT)
        # Answers to known questions end by themselves; all others have exactly the requested tokens.
        reply = self._answers.reply(body) if chat and not body.get("stream") else None
        said = None if reply is None or count_tokens(reply) > asked else reply
        asked = asked if said is None else count_tokens(said)
        kind = "chat.completion" if chat else "text_completion"
        head = {
            "id": f"sim-{time.monotonic_ns():x}",
            "object": kind + (".chunk" if chat and body.get("stream") else ""),
            "created": int(time.time()),
            "model": self._model,
        }
        if body.get("stream"):
            wanted = bool((body.get("stream_options") or {}).get("include_usage"))
            self._stream(head, content, asked, chat=chat, usage=wanted)
        else:
            self._whole(head, content, asked, said, chat=chat)

    def _usage(self, row: int, prompt: int, answered: int) -> dict[str, Any]:
        """What a request used, told at its last token."""
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + answered,
            "completion_tokens": answered,
            "prompt_tokens_details": {"cached_tokens": self._engine.found(row)},
        }

    def _stream(
        self, head: Mapping[str, Any], content: Sequence[Hashable], asked: int, *, chat: bool, usage: bool
    ) -> None:
        def event(choice: Mapping[str, Any] | None, extra: Mapping[str, Any] | None = None) -> bytes:
            data = {**head, "choices": [] if choice is None else [choice], **(extra or {})}
            return _chunk(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")

        def token(finish: str | None) -> bytes:
            text = {"delta": {"content": TOKEN_TEXT}} if chat else {"text": TOKEN_TEXT}
            return event({"index": 0, **text, "logprobs": None, "finish_reason": finish})

        # Every token but the last has the same bytes, so a stream costs one write per token.
        ordinary = token(None)
        last, end = token("length"), _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        opening = _STREAM_HEAD
        if chat:
            opening += event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        transport = self._transport
        sent_head = False

        def deliver(final: bool) -> None:
            nonlocal sent_head
            if transport is None or transport.is_closing():
                return
            text = last if final else ordinary
            if not sent_head:
                text, sent_head = opening + text, True
            if final:
                self._row = None
                used = event(None, {"usage": self._usage(row, len(content), asked)}) if usage else b""
                text += used + end
            transport.write(text)

        row = self._row = self._engine.submit(len(content), asked, deliver, content)

    def _whole(
        self, head: Mapping[str, Any], content: Sequence[Hashable], asked: int, said: str | None, *, chat: bool
    ) -> None:
        text = TOKEN_TEXT * asked if said is None else said
        ending = "length" if said is None else "stop"
        answer = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}

        def deliver(final: bool) -> None:
            if final:
                self._row = None
                usage = self._usage(row, len(content), asked)
                self._json({**head, "choices": [{"index": 0, **answer, "finish_reason": ending}], "usage": usage})

        row = self._row = self._engine.submit(len(content), asked, deliver, content)

    def _metrics(self) -> str:
        engine, totals = self._engine, self._engine.totals
        label = f'{{model_name="{self._model}"}}'
        blocks = self._profile.engine.kv_tokens // 16
        lines = [f"# {VERSION}: no real server answers here"]
        gauges = {
            "num_requests_running": engine.running,
            "num_requests_waiting": engine.waiting,
            "kv_cache_usage_perc": engine.kv_use,
        }
        counters = {
            "num_preemptions_total": engine.preemptions,
            "prompt_tokens_total": totals.prompt_tokens,
            "generation_tokens_total": totals.generated_tokens,
            "request_success_total": totals.finished,
            **{_COUNTED[name]: count for name, count in engine.counted.items()},
        }
        for kind, values in (("gauge", gauges), ("counter", counters)):
            for name, value in values.items():
                lines += [f"# TYPE vllm:{name} {kind}", f"vllm:{name}{label} {value}"]
        for name, (total, count) in {
            "time_to_first_token_seconds": totals.ttft,
            "e2e_request_latency_seconds": totals.e2e,
        }.items():
            inf = label.replace("}", ',le="+Inf"}')
            lines += [f"# TYPE vllm:{name} histogram", f"vllm:{name}_bucket{inf} {count}"]
            lines += [f"vllm:{name}_sum{label} {total}", f"vllm:{name}_count{label} {count}"]
        lines += ["# TYPE vllm:cache_config_info gauge"]
        lines += [f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1.0']
        lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {STARTED_S!r}"]
        lines += ["# TYPE gpucap_simulator:late_steps_total counter"]
        lines += [f"gpucap_simulator:late_steps_total {totals.late_steps}"]
        return "\n".join(lines) + "\n"

    def _json(self, data: Mapping[str, Any]) -> None:
        self._send(200, json.dumps(data).encode())

    def _error(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"object": "error", "message": message, "code": status}).encode())

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = f"HTTP/1.1 {status} \r\nserver: gpucap-simulator\r\ncontent-type: {kind}\r\n"
        self._transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: gpucap-simulator\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(
    profile: Profile,
    host: str,
    port: int,
    seed: int,
    started: Callable[[int], None],
    until: Callable[[], Any] | None = None,
    *,
    accuracy: float = 1.0,
    adapters: Sequence[str] = (),
) -> None:
    """Serve until cancelled, or until the awaitable from `until` is done. `started` is called with the port.

    `accuracy` is the share of right answers to the plugin's own questions. `adapters` are listed beside the model.
    """
    live, answers = LiveEngine(profile.engine, seed), Answers(accuracy, seed)
    live.compile()  # before anybody connects, and waits for it until a time limit of theirs
    loop = asyncio.get_running_loop()
    model = f"simulated-{profile.name}"
    server = await loop.create_server(
        lambda: ClientConnection(profile, live, model, answers, adapters), host, port, backlog=1024
    )
    steps = asyncio.create_task(live.serve())
    ends: set[asyncio.Future[Any]] = {steps}
    if until is not None:
        ends.add(asyncio.ensure_future(until()))
    started(server.sockets[0].getsockname()[1])
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        steps.cancel()
        server.close()
        with contextlib.suppress(asyncio.CancelledError):
            await steps
