"""Situations that servers, gateways and machines bring about, each with its right outcome and its cause.

To add one, add a row: a behaviour made of the parts in `server.py`, what is asked, what is right. All rows are tried
together, several at a time, when the first one's result is wanted.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from pytest_gpucap.results.failures import FailureKind
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.telemetry.host_watch import HostWatch
from tests.situations.server import (
    CLOSE,
    DONE,
    GAP_S,
    LAST,
    SSE_HEAD,
    Behaviour,
    Reply,
    Request,
    always,
    beyond,
    chunk,
    counts,
    events,
    every,
    good,
    http,
    once,
    one_after_the_other,
    opening,
    packed,
    sent,
    spread,
    streams,
    token,
    tokens,
    usage,
    whole,
)
from tests.situations.table import KEY, STRANGER, Found, Machine, Situation, measured, on, tried
from tests.telemetry.recorded_host import PYTEST, SERVER, RecordedHost

pytestmark = pytest.mark.one_process

PASS, FAIL, INVALID = Outcome.PASS, Outcome.FAIL, Outcome.INVALID

# -- behaviours of more than one line ---------------------------------------------------------------------------------


def error(message: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


def reasoned(key: str) -> Behaviour:
    """Half of the answer is reasoning."""
    return streams(
        lambda r: [
            opening(r),
            *(token(r, delta={key if i < r.asked // 2 else "content": "t"}) for i in range(r.asked)),
            token(r, "", "stop", delta={}),
            usage(r),
            DONE,
        ]
    )


def called(request: Request) -> Reply:
    """A tool call, whose arguments come piece by piece."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    part = {"index": 0, "function": {"arguments": '"'}}
    deltas = [{"tool_calls": [each]} for each in [call, *[part] * (request.asked - 1)]]
    said = [opening(request), *(token(request, delta=delta) for delta in deltas)]
    return sent([*said, token(request, "", "tool_calls", delta={}), usage(request), DONE])


def growing(request: Request) -> Reply:
    """A usage in every event, and none after them."""
    last = request.asked - 1
    said = [token(request, "t", "length" if i == last else None, usage=counts(request, i + 1)) for i in range(last + 1)]
    return sent([*said, DONE])


def several(request: Request, *, counted: bool = True) -> Reply:
    """Two tokens in an event."""
    half = (request.asked + 1) // 2
    said = [token(request, "t t", "length" if i == half - 1 else None) for i in range(half)]
    return sent([*said, *([usage(request)] if counted else []), DONE])


def closed_at_the_end(request: Request) -> Reply:
    """HTTP/1.0: the end of the connection is the end of the answer."""
    yield b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    for data in whole(request):
        yield events([data])
        yield GAP_S
    yield CLOSE


def kept_alive(request: Request) -> Reply:
    """Comments before and between events."""
    yield SSE_HEAD
    for data in whole(request):
        yield chunk(b": keep-alive\n\n")
        yield chunk(events([data]))
        yield GAP_S
    yield LAST


def buffered(request: Request) -> Reply:
    """What a proxy makes of a stream that it buffers."""
    yield 8 * GAP_S
    yield http(200, events(whole(request)), "text/event-stream")


def reset(request: Request) -> Reply:
    """The connection closes after two tokens."""
    yield SSE_HEAD
    for data in tokens(request)[:2]:
        yield chunk(events([data]))
        yield GAP_S
    yield CLOSE


def after_two(*pieces: bytes) -> Behaviour:
    """Two tokens, and then something else."""
    return lambda r: [SSE_HEAD, *(chunk(events([data])) for data in tokens(r)[:2]), GAP_S, *pieces]


def echoing(request: Request) -> Reply:
    """A refusal that repeats the key."""
    return [http(401, error(f"Incorrect API key provided: {request.key}. See https://example.com"))]


empty = streams(lambda r: [*([opening(r)] if r.chat else []), token(r, "", "stop"), usage(r, 0), DONE])
aborted = streams(lambda r: [*([opening(r)] if r.chat else []), token(r, "", "abort"), usage(r, 0), DONE])
cut_short = streams(lambda r: [*tokens(r, r.asked // 2), usage(r, r.asked // 2), DONE])
too_many = always(http(429, error("rate limit", code="rate_limit_exceeded"), extra="Retry-After: 1\r\n"))
internal = always(http(500, error("engine is dead", type="InternalServerError", code=500)))
PAGE = b"<!doctype html><html><head><title>Sign in &amp; go on</title><style>p {}</style></head><p>Please</p></html>"

# -- the table --------------------------------------------------------------------------------------------------------

HEALTHY = [
    Situation("completions, as vLLM sends them", good, PASS),
    Situation("a chat, as vLLM sends it", good, PASS, chat=True),
    Situation("a chat whose first chunk only names the role", streams(
        lambda r: [token(r, delta={"role": "assistant"}), *whole(r)[1:]]), PASS, chat=True),
    Situation("a chat without a chunk for the role", streams(lambda r: whole(r)[1:]), PASS, chat=True),
    Situation("reasoning_content deltas", reasoned("reasoning_content"), PASS, chat=True),
    Situation("reasoning deltas", reasoned("reasoning"), PASS, chat=True),
    Situation("tool calls", called, PASS, chat=True),
    Situation("comments that keep alive", kept_alive, PASS),
    Situation("events named ping that are no JSON", lambda r: [
        SSE_HEAD, chunk(b"event: ping\ndata: now\n\n"), *list(good(r))[1:]], PASS),
    Situation("events without data", lambda r: [SSE_HEAD, chunk(b"data:\n\n"), *list(good(r))[1:]], PASS),
    Situation("named events with ids", streams(whole, b"event: message\nid: 7\ndata: %b\n\n"), PASS),
    Situation("CRLF", streams(whole, b"data: %b\r\n\r\n"), PASS),
    Situation("chunks that end anywhere", lambda r: spread(events(whole(r)), 41), PASS),
    Situation("a body to the end of the connection", closed_at_the_end, PASS),
    Situation("a connection for each answer", lambda r: [*sent(
        whole(r), head=SSE_HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")), CLOSE], PASS),
    Situation("spaces in the JSON", streams(lambda r: [each.replace(b'":', b'": ') for each in whole(r)]), PASS),
    Situation("usage null in every chunk", streams(lambda r: [*tokens(r, usage=None), usage(r), DONE]), PASS),
    Situation("a usage in every chunk that grows, none at the end", growing, PASS),
    Situation("the same in a chat", growing, PASS, chat=True),
    Situation("a usage of 0 first, the right one last", streams(lambda r: [usage(r, 0), *whole(r)]), PASS),
    Situation("several tokens in an event", several, PASS),
    Situation("no usage, one event for each token", streams(lambda r: [*tokens(r), DONE]), PASS),
    Situation("no usage, and an event only to finish", streams(
        lambda r: [*tokens(r, finish=None), token(r, "", "length"), DONE]), PASS),
    Situation("an event only to finish", streams(
        lambda r: [*tokens(r, finish=None), token(r, "", "length"), usage(r), DONE]), PASS),
    Situation("an empty delta to finish", streams(
        lambda r: [*tokens(r, finish=None), token(r, "", "length", delta={}), usage(r), DONE]), PASS, chat=True),
    Situation("a last token without text", streams(
        lambda r: [*tokens(r, r.asked - 1, None), token(r, "", "length"), usage(r), DONE]), PASS),
    Situation("no DONE after the reason to finish", streams(tokens), PASS),
    Situation("no reason to finish but DONE", streams(lambda r: [*tokens(r, finish=None), usage(r), DONE]), PASS),
    Situation("log probabilities", streams(
        lambda r: [each.replace(b'"logprobs":null', b'"logprobs":{"tokens":["t"]}') for each in whole(r)]), PASS),
    Situation("an unknown reason to finish, all tokens", streams(
        lambda r: [*tokens(r, finish="eos_reached"), usage(r), DONE]), PASS),
    Situation("answers of their own length, as ignore_eos=False allows", streams(
        lambda r: [*tokens(r, 1 + r.number % r.asked, "stop"), usage(r, 1 + r.number % r.asked), DONE]),
        PASS, ignore_eos=False),
    Situation("a proxy that buffers", buffered, PASS, words="all tokens of an answer arrive at once", qps=25),
    Situation("one empty answer of many", once(empty), PASS, FailureKind.EMPTY),
    Situation("one error of many", once(internal), PASS, FailureKind.HTTP_5XX),
    Situation("a tenth of errors where a fifth is allowed", every(10, internal), PASS, FailureKind.HTTP_5XX,
              max_error_rate=0.2),
]  # fmt: skip

FAILING = [
    # Four times too slow: where the machine halts it for a second now and then, nobody knows how often it will.
    Situation("too slow", one_after_the_other(15), FAIL, qps=60),
    Situation("every answer is empty", empty, FAIL, FailureKind.EMPTY, "x empty answer 'an answer without a token"),
    Situation("every other answer is empty", every(2, empty), FAIL, FailureKind.EMPTY),
    Situation("every other answer of a chat is empty", every(2, empty), FAIL, FailureKind.EMPTY, chat=True),
    Situation("one answer in twenty is empty", every(20, empty), FAIL, FailureKind.EMPTY, "at most 1.00% may fail"),
    Situation("nothing but DONE", streams(lambda _: [DONE]), FAIL, FailureKind.EMPTY),
    Situation("nothing at all", streams(lambda _: []), FAIL, FailureKind.EMPTY),
    Situation("tokens that the usage does not count", streams(lambda r: [*tokens(r), usage(r, 0), DONE]), FAIL,
              FailureKind.EMPTY),
    Situation("the engine aborts every answer", aborted, FAIL, FailureKind.ABORTED, "'finish_reason 'abort''"),
    Situation("the engine aborts every other answer", every(2, aborted), FAIL, FailureKind.ABORTED),
    Situation("the engine aborts every other answer of a chat", every(2, aborted), FAIL, FailureKind.ABORTED,
              chat=True),
    Situation("aborted by the chunk that opens a chat", every(2, streams(
        lambda r: [opening(r, finish_reason="abort"), usage(r, 0), DONE])), FAIL, FailureKind.ABORTED, chat=True),
    Situation("aborted half-way", every(3, streams(
        lambda r: [*tokens(r, r.asked // 2, "abort"), usage(r, r.asked // 2), DONE])), FAIL, FailureKind.ABORTED),
    Situation("aborted half-way, no usage", every(3, streams(
        lambda r: [*tokens(r, r.asked // 2, "abort"), DONE])), FAIL, FailureKind.ABORTED),
    Situation("the engine's error ends the answer", every(3, streams(
        lambda r: [*tokens(r, 2, "error"), usage(r, 2), DONE])), FAIL, FailureKind.ENGINE_ERROR),
    Situation("an unknown reason to finish, some tokens", every(3, streams(
        lambda r: [*tokens(r, 2, "budget"), usage(r, 2), DONE])), FAIL, FailureKind.ABORTED, "budget"),
    Situation("an error object in the stream", every(3, after_two(
        chunk(events([error("EngineCore encountered an issue", code=500)])), LAST)),
        FAIL, FailureKind.STREAM_ERROR, "EngineCore encountered an issue"),
    Situation("an event named error", every(3, after_two(
        chunk(b"event: error\ndata: worker 3 is lost\n\n"), LAST)), FAIL, FailureKind.STREAM_ERROR, "worker 3 is lost"),
    Situation("a field named error", every(3, after_two(
        chunk(b'error: {"message": "out of blocks"}\n\n'), LAST)), FAIL, FailureKind.STREAM_ERROR, "out of blocks"),
    Situation("an error beside the choices", every(3, streams(
        lambda r: [*tokens(r, 2, None), token(r, "", "error", error={"message": "provider gone"})])),
        FAIL, FailureKind.STREAM_ERROR, "provider gone"),
    Situation("200 with an error object", always(http(200, error("no worker left"))), FAIL, FailureKind.STREAM_ERROR,
              "'no worker left'"),
    Situation("HTTP 500 for everything", internal, FAIL, FailureKind.HTTP_5XX, "x HTTP 500 'engine is dead'"),
    Situation("HTTP 500 for one in ten", every(10, internal), FAIL, FailureKind.HTTP_5XX, "x HTTP 500"),
    Situation("HTTP 502 with a page", every(3, always(http(502, PAGE, "text/html"))), FAIL, FailureKind.HTTP_5XX,
              "x HTTP 502 'Sign in & go on'"),
    Situation("HTTP 503 under load", beyond(4, always(0.01, http(503, error("overloaded")))), FAIL,
              FailureKind.HTTP_5XX, "x HTTP 503 'overloaded'"),
    Situation("HTTP 504", every(5, always(http(504, b"upstream request timeout", "text/plain"))), FAIL,
              FailureKind.HTTP_5XX, "'upstream request timeout'"),
    Situation("HTTP 408", every(5, always(http(408, b""))), FAIL, FailureKind.HTTP_4XX, "x HTTP 408"),
    Situation("connections that close within answers", every(3, reset), FAIL, FailureKind.RESET,
              "closed the connection within the answer"),
    Situation("connections that close without an answer", always(CLOSE), FAIL, FailureKind.RESET),
    Situation("answers that end before DONE", every(3, streams(lambda r: tokens(r, 3, None))), FAIL,
              FailureKind.RESET, "before [DONE]"),
    Situation("no answer in time", always(60.0), FAIL, FailureKind.TIMEOUT, "no whole answer within 0.3 s",
              timeout_s=0.3),
    Situation("mostly errors of the server, some refusals", every(3, internal, every(8, too_many)), FAIL,
              FailureKind.HTTP_5XX),
]  # fmt: skip

REFUSED = ProblemKind.REFUSED
INVALID_ONES = [
    Situation("HTTP 429 for everything", too_many, INVALID, REFUSED, "x HTTP 429 'rate limit'"),
    Situation("HTTP 429 beyond some in flight", beyond(3, too_many), INVALID, REFUSED, "raise the rate limit"),
    Situation("HTTP 429 for one in ten", every(10, too_many), INVALID, REFUSED, "x HTTP 429 'rate limit'"),
    Situation("a key that is repeated", echoing, INVALID, REFUSED, "'Incorrect API key provided: ***."),
    Situation("HTTP 403 of a gateway", always(http(403, PAGE, "text/html")), INVALID, REFUSED, "HTTP 403"),
    Situation("HTTP 404", always(http(404, error("The model `m` does not exist."))), INVALID, REFUSED,
              "'The model `m` does not exist.'; refused, not slow: check the URL and the model's name"),
    Situation("HTTP 400: prompt and answer beyond the context", always(http(400, json.dumps({
        "object": "error", "message": "maximum context length is 64 tokens", "code": 400}).encode())), INVALID,
        REFUSED, "maximum context length is 64 tokens"),
    Situation("HTTP 422: a field that is not taken", always(http(422, json.dumps({
        "detail": [{"loc": ["body", "ignore_eos"], "msg": "extra fields not permitted"}]}).encode())), INVALID,
        REFUSED, "extra fields not permitted"),
    Situation("HTTP 413", always(http(413, b"Request Entity Too Large", "text/plain")), INVALID, REFUSED, "HTTP 413"),
    Situation("a redirect", always(http(307, b"", extra="Location: /elsewhere\r\n")), INVALID, REFUSED, "HTTP 307"),
    Situation("a page to sign in", always(http(200, PAGE, "text/html")), INVALID, REFUSED,
              "text/html instead of text/event-stream: Sign in & go on"),
    Situation("a page that says it is an event stream", always(SSE_HEAD, chunk(PAGE), LAST), INVALID, REFUSED,
              "no event stream: Sign in & go on"),
    Situation("JSON in place of a stream", lambda r: [http(200, packed({
        "object": "text_completion", "choices": [{"text": "t"}], "usage": counts(r)}))], INVALID, REFUSED,
        "application/json instead of text/event-stream"),
    Situation("a rate limit inside a 200", always(http(200, error("slow down", type="rate_limit_error"))), INVALID,
              REFUSED, "'slow down'"),
    Situation("a rate limit inside a stream", every(3, after_two(
        chunk(events([error("slow down", code=429)])), LAST)), INVALID, REFUSED, "429 'slow down'"),
    Situation("an error object that says it is an event stream", always(
        SSE_HEAD, chunk(error("quota used up", code="insufficient_quota")), LAST), INVALID, REFUSED, "quota used up"),
    Situation("gzip though refused", lambda r: [http(
        200, gzip.compress(events(whole(r))), "text/event-stream", "Content-Encoding: gzip\r\n")], INVALID, REFUSED,
        "compressed (gzip) though refused"),
    Situation("no HTTP", always(b"SSH-2.0-OpenSSH_9.6\r\n"), INVALID, REFUSED, "not HTTP"),
    Situation("events that are no JSON", streams(lambda _: [b"hello"]), INVALID, REFUSED, "no JSON: hello"),
    Situation("a filter", every(3, streams(lambda r: [*tokens(r, 2, "content_filter"), usage(r, 2), DONE])), INVALID,
              REFUSED, "measure without the filter"),
    Situation("short answers", cut_short, INVALID, ProblemKind.LENGTHS, "tokens instead of"),
    Situation("every other answer is short", every(2, cut_short), INVALID, ProblemKind.LENGTHS, "ignore_eos"),
    Situation("no usage and short answers", streams(lambda r: [*tokens(r, r.asked // 2), DONE]), INVALID,
              ProblemKind.LENGTHS, "cannot be verified"),
    Situation("no usage and short answers that stop", streams(lambda r: [*tokens(r, 3, "stop"), DONE]), INVALID,
              ProblemKind.LENGTHS, "cannot be verified", chat=True),
    Situation("no usage and several tokens in an event", lambda r: several(r, counted=False), INVALID,
              ProblemKind.LENGTHS, "cannot be verified"),
    Situation("mostly refusals, some errors of the server", every(3, too_many, every(8, internal)), INVALID, REFUSED),
    Situation("measure: every other answer is empty", every(2, empty), INVALID, FailureKind.EMPTY, ask=measured),
    # One in three: on a busy machine so few are sent that one in ten could be chance.
    Situation("measure: HTTP 429 for one in three", every(3, too_many), INVALID, REFUSED, ask=measured),
    Situation("the probes before the load are refused", good, INVALID, ProblemKind.NO_LOAD, "HTTP 401",
              probes=always(http(401, error("no key")))),
]  # fmt: skip

# -- machines: the server is well in all of them ---------------------------------------------------------------------


def processes(seen: bool = True, **shown: Any) -> Machine:
    """`seen`: all processes of the machine are listed, as they are not in a container. `shown`: see `RecordedHost`."""

    def happens(host: RecordedHost, watch: HostWatch) -> tuple[float, float]:
        if seen:
            host.whole()
            watch.sample()
        return host.run(watch, **shown)

    return happens


OTHERS, STEAL, MEMORY = ProblemKind.OTHERS, ProblemKind.STEAL, ProblemKind.MEMORY
MACHINES = [
    Situation("the machine does nothing else", good, PASS, ask=on(processes(cores={SERVER: 0.9, PYTEST: 0.2}))),
    Situation("another process takes the last core", good, INVALID, OTHERS, "pid 123 stranger 1.1",
              ask=on(processes(cores={SERVER: 0.7, PYTEST: 0.2, STRANGER: 1.1}))),
    Situation("another process uses what the server leaves", good, PASS,
              ask=on(processes(cores={SERVER: 0.4, STRANGER: 1.0}, waiting=0.02))),
    Situation("another process makes the server wait", good, INVALID, OTHERS, "stranger",
              ask=on(processes(cores={SERVER: 0.4, STRANGER: 1.0}, waiting=0.4))),
    Situation("another process on a machine of 96 cores", good, PASS,
              ask=on(processes(cores={SERVER: 3.0, STRANGER: 1.0}, waiting=0.6), cores=96)),
    Situation("others that a container does not list", good, INVALID, OTHERS,
              ask=on(processes(seen=False, cores={SERVER: 0.9, STRANGER: 0.3}, unseen=0.8))),
    Situation("the hypervisor takes a core", good, INVALID, STEAL, ask=on(processes(cores={SERVER: 1.2}, stolen=0.8))),
    Situation("the hypervisor takes hardly anything", good, PASS,
              ask=on(processes(cores={SERVER: 1.2}, stolen=0.01))),
    Situation("the machine is short of memory", good, INVALID, MEMORY,
              ask=on(processes(cores={SERVER: 0.5}, stalled=0.12))),
    Situation("memory is waited for now and then", good, PASS, ask=on(processes(cores={SERVER: 0.5}, stalled=0.01))),
]  # fmt: skip

SITUATIONS = [*HEALTHY, *FAILING, *INVALID_ONES, *MACHINES]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, patience: None) -> dict[str, Found | BaseException]:
    """All situations that this run asks for."""
    wanted = {item.callspec.params["situation"].name for item in request.session.items if _asks_here(item)}  # type: ignore[attr-defined]
    return tried([each for each in SITUATIONS if each.name in wanted])


def _asks_here(item: pytest.Item) -> bool:
    return item.path.samefile(__file__) and "situation" in getattr(getattr(item, "callspec", None), "params", {})


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_a_situation_has_its_right_outcome_and_cause(
    situation: Situation, found: dict[str, Found | BaseException]
) -> None:
    result = found[situation.name]
    if isinstance(result, BaseException):
        raise result
    assert result.outcome is situation.outcome, result.text
    assert situation.words in result.text
    if situation.cause is None:
        assert not result.causes, result.text
    else:
        assert situation.cause in result.causes, result.text
    assert KEY not in result.text


def test_there_are_enough_situations_and_no_two_of_a_name() -> None:
    names = {situation.name for situation in SITUATIONS}
    assert len(names) == len(SITUATIONS) >= 60
