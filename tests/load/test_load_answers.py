"""Every way a server can answer, well or badly, over real sockets: the status, the counts, and that nothing is lost."""

from __future__ import annotations

import gzip
import itertools
import socket
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_gpucap.load.protocol import ClosedLoop, ErrorText, Journal, OpenLoop, PhaseSpan, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.requirement import ApiKind, Length, Workload
from tests.load.rawserver import HEAD, RawServer, Script, chunk, events, good, token, usage
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S

TOKENS = 4
WORKLOAD = Workload(Length.fixed(32), Length.fixed(TOKENS), endpoint=ApiKind.COMPLETIONS)


@dataclass
class Result:
    journal: Journal
    span: PhaseSpan
    errors: list[ErrorText]

    @property
    def statuses(self) -> list[Status]:
        return [Status(code) for code in self.journal.status.tolist()]


def drive(server: RawServer, requests: int = 1) -> Result:
    """Requests at a steady pace; more than one connection where an answer takes longer than that."""
    with HttpLoadRunner(server.url, "m", "secret", WORKLOAD, 1, workers=1) as runner:
        phase = OpenLoop(
            requests * 0.03,
            np.arange(requests, dtype=np.float64) * 0.03,
            np.full(requests, 32, np.int32),
            np.full(requests, TOKENS, np.int32),
        )
        span = runner.run(phase)
        assert runner.settle(FOREVER_S)
        return Result(runner.journal(), span, runner.error_texts())


def drive_in_turn(server: RawServer, requests: int) -> Result:
    """Requests strictly one after the other; the server holds its answer to the one after the last of them."""
    rows = requests + 1
    with HttpLoadRunner(server.url, "m", "secret", WORKLOAD, 1, workers=1) as runner:
        phase = ClosedLoop(UNTIL_STOPPED_S, 1, np.full(rows, 32, np.int32), np.full(rows, TOKENS, np.int32))
        span = runner.run(phase, lambda _: len(server.requests) == rows)
        server.release()
        assert runner.settle(FOREVER_S)
        return Result(runner.journal(), span, runner.error_texts())


def assert_good(result: Result) -> None:
    assert result.statuses == [Status.OK] * len(result.statuses), result.errors
    journal = result.journal
    assert (journal.counted_output_tokens == TOKENS).all()
    assert (journal.counted_prompt_tokens == 32).all()
    assert journal.tokens.sum() == TOKENS * journal.status.size
    assert (journal.due_s <= journal.sent_s).all()
    assert (journal.sent_s <= journal.first_s).all()
    assert (journal.first_s <= journal.last_s).all()
    assert (journal.last_s <= journal.end_s).all()


def test_a_good_answer_and_the_request_that_was_sent() -> None:
    with RawServer(good(), hold_from=3) as server:
        result = drive_in_turn(server, 3)
        assert len(set(server.carriers)) == 1  # kept alive
    assert_good(result)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"Accept-Encoding: identity" in head
    assert b"Authorization: Bearer secret" in head
    assert b'"include_usage":true' in body
    assert b'"ignore_eos":true' in body
    assert b'"max_tokens":4}' in body


def stream_body() -> bytes:
    return b"".join(b"data: %b\n\n" % data for data in events())


WAYS: dict[str, list[bytes | None]] = {
    "all in one packet": [b"".join(good())],
    "every event in a chunk and all chunks in one packet": [HEAD, b"".join(good()[1:])],
    "one chunk of everything": [HEAD, chunk(stream_body()), b"0\r\n\r\n"],
    "chunks that end anywhere": [
        HEAD,
        *(chunk(stream_body()[i : i + 7]) for i in range(0, len(stream_body()), 7)),
        b"0\r\n\r\n",
    ],
    "a plain body with its length": [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(stream_body()),
        *(b"data: %b\n\n" % data for data in events()),
    ],
    "a plain body up to the end of the connection": [
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        *(b"data: %b\n\n" % data for data in events()),
        None,
    ],
    "CRLF": [HEAD, *(chunk(b"data: %b\r\n\r\n" % data) for data in events()), b"0\r\n\r\n"],
    "CR alone": [HEAD, *(chunk(b"data: %b\r\r" % data) for data in events()), b"0\r\n\r\n"],
    "no space after the colon": [HEAD, *(chunk(b"data:%b\n\n" % data) for data in events()), b"0\r\n\r\n"],
    "comments, names and ids": [
        HEAD,
        chunk(b": ping\n\n"),
        *(chunk(b": keep\nevent: message\nid: 7\nretry: 10\ndata: %b\n\n" % data) for data in events()),
        b"0\r\n\r\n",
    ],
    "data in several lines": [
        HEAD,
        *(chunk(b"data: %b\n\n" % data.replace(b',"', b',\ndata: "')) for data in events()),
        b"0\r\n\r\n",
    ],
    "spaces in the JSON": [
        HEAD,
        *(chunk(b"data: %b\n\n" % data.replace(b'":', b'": ')) for data in events()),
        b"0\r\n\r\n",
    ],
    "usage in the last token's event": [
        HEAD,
        *(chunk(b"data: %b\n\n" % token()) for _ in range(TOKENS - 1)),
        chunk(
            b'data: %b,"usage":{"prompt_tokens":32,"completion_tokens":4}}\n\n'
            % token("t", finish="length").removesuffix(b"}")
        ),
        chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    ],
    "a last event without a token": [
        HEAD,
        *(chunk(b"data: %b\n\n" % token()) for _ in range(TOKENS)),
        chunk(b"data: %b\n\n" % token("", finish="length")),
        chunk(b"data: %b\n\n" % usage()),
        chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    ],
    "two tokens in an event": [
        HEAD,
        *(chunk(b"data: %b\n\n" % token("t t")) for _ in range(TOKENS // 2)),
        chunk(b"data: %b\n\n" % usage()),
        chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    ],
    "usage in the last token's event and all in one packet": [
        HEAD
        + b"".join(chunk(b"data: %b\n\n" % token()) for _ in range(TOKENS - 1))
        + chunk(
            b'data: %b,"usage":{"prompt_tokens":32,"completion_tokens":4}}\n\n'
            % token("t", finish="length").removesuffix(b"}")
        )
        + chunk(b"data: [DONE]\n\n")
        + b"0\r\n\r\n"
    ],
    "sizes of chunks in upper case": [
        HEAD,
        *(b"%X\r\n%b\r\n" % (len(data) + 8, b"data: %b\n\n" % data) for data in events()),
        b"0\r\n\r\n",
    ],
    "the head in pieces": [HEAD[:3], HEAD[3:20], HEAD[20:], *good()[1:]],
    "the end of the head with a part of an event": [HEAD + good()[1][:9], good()[1][9:], *good()[2:]],
    "an interim answer first": [b"HTTP/1.1 100 Continue\r\n\r\n", *good()],
    "trailers after the last chunk": [*good()[:-1], b"0\r\nServer-Timing: x\r\n\r\n"],
    "chunk extensions": [HEAD, *(part.replace(b"\r\n", b";a=b\r\n", 1) for part in good()[1:-1]), b"0\r\n\r\n"],
    "a usage in every event, and none after them": [
        HEAD,
        *(
            chunk(
                b'data: %b,"usage":{"prompt_tokens":32,"completion_tokens":%d}}\n\n' % (data.removesuffix(b"}"), made)
            )
            for made, data in enumerate(events()[:TOKENS], 1)
        ),
        chunk(b"data: [DONE]\n\n"),
        b"0\r\n\r\n",
    ],
    "a usage at the beginning, and another at the end": [
        HEAD,
        chunk(b"data: %b\n\n" % usage(completion=0)),
        *good()[1:],
    ],
    "no DONE after the reason to finish": [*good()[: TOKENS + 1], chunk(b"data: %b\n\n" % usage()), b"0\r\n\r\n"],
    "no blank line after DONE": [*good()[:-2], chunk(b"data: [DONE]\n"), b"0\r\n\r\n"],
    "no line end after DONE": [
        b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        b"".join(b"data: %b\n\n" % data for data in events()).rstrip(b"\n"),
        None,
    ],
    "events that keep the connection open": [
        HEAD,
        chunk(b"event: ping\ndata: now\n\n"),
        chunk(b"data:\n\n"),
        *(chunk(b"event: message\ndata: %b\n\n" % data) for data in events()),
        b"0\r\n\r\n",
    ],
    "log probabilities": [
        HEAD,
        *(
            chunk(b"data: %b\n\n" % data.replace(b'"logprobs":null', b'"logprobs":{"tokens":["t"],"top":[{"t":-1}]}'))
            for data in events()
        ),
        b"0\r\n\r\n",
    ],
    "an unknown reason to finish an answer of the right length": [
        HEAD,
        *(chunk(b"data: %b\n\n" % data.replace(b'"length"', b'"full"')) for data in events()),
        b"0\r\n\r\n",
    ],
    "closing after the answer": [
        HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        *good()[1:],
        None,
    ],
}


def one_by_one(scripts: list[Script]) -> Result:
    """One request for each script, strictly one after the other, and a good answer at the end."""
    with RawServer(*scripts, good(), hold_from=len(scripts)) as server:
        return drive_in_turn(server, len(scripts))


@pytest.fixture(scope="module")
def ways() -> Result:
    """All of `WAYS` twice, in one run."""
    return one_by_one([script for script in WAYS.values() for _ in range(2)])


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_send_a_good_answer(way: str, ways: Result) -> None:
    row = 2 * list(WAYS).index(way)
    for column, expected in (
        (ways.journal.status, Status.OK),
        (ways.journal.counted_prompt_tokens, 32),
        (ways.journal.counted_output_tokens, TOKENS),
    ):
        assert column[row : row + 2].tolist() == [expected] * 2, ways.errors


def test_all_ways_together_lose_no_token(ways: Result) -> None:
    assert_good(ways)


def test_a_gap_of_an_event_with_two_tokens_is_one_gap_and_one_of_nothing() -> None:
    result = one_by_one([WAYS["two tokens in an event"]])  # the phase ends when that answer has ended
    assert result.span.gaps.total == TOKENS - 1
    # Where the worker read both events at once, they share their time, and the gap between them is nothing as well.
    shared = result.span.check.shared_packet_share > 0
    assert result.span.gaps.counts[0] == TOKENS // 2 + shared


@pytest.mark.slow
def test_every_split_point() -> None:
    """The answer cut in two at each byte: the same records, whatever the packets."""
    whole = b"".join(good())
    cuts = range(1, len(whole))
    with RawServer(*([whole[:cut], whole[cut:]] for cut in cuts), good(), hold_from=len(cuts)) as server:
        result = drive_in_turn(server, len(cuts))
    assert_good(result)
    assert len(server.requests) == len(cuts) + 1


@settings(max_examples=2)
@given(st.lists(st.lists(st.integers(1, 1200), max_size=12), min_size=20, max_size=20))
def test_any_number_of_cuts(answers: list[list[int]]) -> None:
    whole = b"".join(good())
    scripts: list[Script] = []
    for cuts in answers:
        ends = [*sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
        scripts.append([whole[start:end] for start, end in itertools.pairwise([0, *ends])])
    assert_good(one_by_one(scripts))


def plain(status: str, body: bytes, content_type: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def said(*data: bytes) -> list[bytes]:
    """Events, one chunk each, and the end of the answer."""
    return [*(chunk(b"data: %b\n\n" % each) for each in data), b"0\r\n\r\n"]


ZIPPED = gzip.compress(stream_body())
BROKEN: dict[str, tuple[Script, Status, str]] = {
    "a JSON error of the client": (
        [plain("400 Bad Request", b'{"error":{"message":"max_tokens too large"}}')],
        Status.HTTP_4XX,
        "max_tokens too large",
    ),
    "an HTML error of a gateway": (
        [plain("502 Bad Gateway", b"<html><h1>Bad  Gateway</h1></html>", "text/html")],
        Status.HTTP_5XX,
        "Bad Gateway",
    ),
    "an error without a body": ([plain("503 Service Unavailable", b"")], Status.HTTP_5XX, ""),
    "a redirect": (
        [plain("307 Temporary Redirect", b"", extra="Location: /elsewhere\r\n")],
        Status.REDIRECT,
        "",
    ),
    "gzip though refused": (
        [plain("200 OK", ZIPPED, "text/event-stream", "Content-Encoding: gzip\r\n")],
        Status.PROTOCOL,
        "compressed (gzip) though refused",
    ),
    "JSON instead of a stream": (
        [plain("200 OK", b'{"choices":[]}')],
        Status.PROTOCOL,
        "application/json instead of text/event-stream",
    ),
    "closing after the headers": ([HEAD, None], Status.RESET, "closed the connection"),
    "closing within the answer": ([*good()[:3], None], Status.RESET, "closed the connection within the answer"),
    "closing within a chunk": ([*good()[:3], good()[3][:20], None], Status.RESET, "within the answer"),
    "closing without an answer": ([None], Status.RESET, "without an answer"),
    "an end without DONE": ([*good()[:3], b"0\r\n\r\n"], Status.RESET, "before [DONE]"),
    "an error in the stream": (
        [*good()[:3], chunk(b'data: {"error":{"message":"engine died","code":500}}\n\n')],
        Status.STREAM_ERROR,
        "engine died",
    ),
    "an error object in the stream": (
        [*good()[:3], chunk(b'data: {"object":"error","message":"out of blocks"}\n\n')],
        Status.STREAM_ERROR,
        "out of blocks",
    ),
    "no JSON": ([HEAD, chunk(b"data: <html>\n\n"), b"0\r\n\r\n"], Status.PROTOCOL, "no JSON"),
    "no object": ([HEAD, chunk(b"data: 7\n\n"), b"0\r\n\r\n"], Status.PROTOCOL, "no JSON object"),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.6\r\n"], Status.PROTOCOL, "not HTTP"),
    "a bad chunk": ([HEAD, b"zz\r\nhello\r\n"], Status.PROTOCOL, "not HTTP"),
    "HTTP/2 only": ([b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18)], Status.PROTOCOL, "not HTTP"),
    "no token at all": ([HEAD, chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"], Status.EMPTY, "without a token"),
    "a usage beyond all measure": (
        [*good()[:3], chunk(b"data: %b\n\n" % usage(completion=10**12)), b"0\r\n\r\n"],
        Status.RESET,
        "before [DONE]",
    ),
    "a reason to finish, and no token": (
        [HEAD, *said(token("", finish="stop"), usage(completion=0), b"[DONE]")],
        Status.EMPTY,
        "an answer without a token (finish_reason 'stop')",
    ),
    "no token by the usage": (
        [HEAD, *said(*events()[:-2], usage(completion=0), b"[DONE]")],
        Status.EMPTY,
        "an answer without a token",
    ),
    "nothing at all": ([HEAD, b"0\r\n\r\n"], Status.EMPTY, "an answer without a token"),
    "an abort before the first token": (
        [HEAD, *said(token("", finish="abort"), usage(completion=0), b"[DONE]")],
        Status.ABORTED,
        "finish_reason 'abort'",
    ),
    "an abort after some tokens": (
        [HEAD, *said(token(), token("t", finish="abort"), usage(completion=2), b"[DONE]")],
        Status.ABORTED,
        "finish_reason 'abort'",
    ),
    "an abort after all tokens": (
        [HEAD, *said(*(token() for _ in range(TOKENS)), token("", finish="abort"), usage(), b"[DONE]")],
        Status.ABORTED,
        "finish_reason 'abort'",
    ),
    "an engine's error": (
        [HEAD, *said(token(), token("", finish="error"), usage(completion=1), b"[DONE]")],
        Status.ENGINE_ERROR,
        "finish_reason 'error'",
    ),
    "a filter": (
        [HEAD, *said(token(), token("", finish="content_filter"), usage(completion=1), b"[DONE]")],
        Status.CONTENT_FILTER,
        "finish_reason 'content_filter'",
    ),
    "an unknown reason to finish too early": (
        [HEAD, *said(token(), token("", finish="budget"), usage(completion=1), b"[DONE]")],
        Status.ABORTED,
        "finish_reason 'budget'",
    ),
    "an event named error": (
        [*good()[:3], chunk(b'event: error\ndata: {"error":{"message":"worker lost"}}\n\n')],
        Status.STREAM_ERROR,
        "worker lost",
    ),
    "an event named error with plain text": (
        [HEAD, chunk(b"event: error\ndata: out of memory\n\n"), b"0\r\n\r\n"],
        Status.STREAM_ERROR,
        "out of memory",
    ),
    "a field named error": (
        [HEAD, chunk(b'error: {"code":429,"message":"slow down"}\n\n'), b"0\r\n\r\n"],
        Status.STREAM_ERROR,
        "slow down",
    ),
    "an error after the choices": (
        [*good()[:3], *said(token().removesuffix(b"}") + b',"error":{"message":"provider gone"}}')],
        Status.STREAM_ERROR,
        "provider gone",
    ),
    "a detail in place of a chunk": (
        [HEAD, *said(b'{"detail":"no such model"}')],
        Status.STREAM_ERROR,
        "no such model",
    ),
    "an error object in place of an event stream": (
        [plain("200 OK", b'{"error":{"message":"quota used up","code":"insufficient_quota"}}')],
        Status.STREAM_ERROR,
        "quota used up",
    ),
    "an error object that says it is an event stream": (
        [HEAD, chunk(b'{"error":{"message":"no capacity left"}}'), b"0\r\n\r\n"],
        Status.STREAM_ERROR,
        "no capacity left",
    ),
    "a page that says it is an event stream": (
        [HEAD, chunk(b"<html><head><title>Sign in</title></head>\n<p>Please</p></html>\n"), b"0\r\n\r\n"],
        Status.PROTOCOL,
        "no event stream: Sign in",
    ),
    "a page in place of an event stream": (
        [plain("200 OK", b"<html><title>Welcome &amp; log in</title></html>", "text/html")],
        Status.PROTOCOL,
        "answered with text/html instead of text/event-stream: Welcome & log in",
    ),
    "a page without an end": (
        [b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<title>Sign in</title>", None],
        Status.PROTOCOL,
        "Sign in",
    ),
    "a key in the server's words": (
        [plain("401 Unauthorized", b'{"error":{"message":"Incorrect API key provided: secret."}}')],
        Status.HTTP_4XX,
        "Incorrect API key provided: ***.",
    ),
    "control characters in the server's words": (
        [plain("400 Bad Request", b'{"message":"\\u001b[31mred\\nline \\u202eend"}')],
        Status.HTTP_4XX,
        "\\x1b[31mred line \\u202eend",
    ),
    "fewer tokens than asked for": (good(TOKENS - 1), Status.SHORT, "3 tokens instead of 4"),
}


@pytest.fixture(scope="module")
def broken() -> Result:
    """All of `BROKEN` in one run, a good answer on a connection of its own after each."""
    return one_by_one([script for bad, _, _ in BROKEN.values() for script in (bad, WAYS["closing after the answer"])])


@pytest.mark.parametrize("way", BROKEN)
def test_a_bad_answer_is_counted_by_its_kind_and_the_next_request_is_well(way: str, broken: Result) -> None:
    _, status, text = BROKEN[way]
    row = 2 * list(BROKEN).index(way)
    assert broken.statuses[row : row + 2] == [status, Status.OK], broken.errors
    assert any(error.status is status and text in error.text for error in broken.errors), broken.errors
    assert np.isfinite(broken.journal.end_s[row])


def test_a_kept_connection_that_the_server_has_closed_costs_no_request() -> None:
    """The server closes after each answer without saying so; what was sent into the closed connection is sent again."""
    with RawServer([*good(), None]) as server:
        result = drive(server, 10)
    assert_good(result)


def test_a_silent_server_runs_into_the_time_limit() -> None:
    one = np.ones(1, np.int32)
    with (
        RawServer([HEAD, good()[1]]) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1, request_timeout_s=0.3) as runner,
    ):
        journal = runner.journal()
        # A busy machine may take longer for the first token; then there is another request.
        while not np.isfinite(journal.first_s).any():
            runner.run(OpenLoop(0.1, np.zeros(1), 32 * one, TOKENS * one))
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        assert (journal.status == Status.TIMEOUT).all()
        assert {(each.status, each.text) for each in runner.error_texts()} == {
            (Status.TIMEOUT, "no whole answer within 0.3 s")
        }
    # Not from when it was sent: the time limit holds for connecting as well.
    assert (journal.end_s - journal.due_s >= 0.3).all()


def test_a_refused_connection_is_counted() -> None:
    with socket.socket() as holder:
        with RawServer(good(), share_port=True) as server:
            runner = HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1)
            runner.prepare()
            # Not listening: after the server's end connections are refused, and nobody else can take the port.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("127.0.0.1", server.port))
        with runner:
            two = np.ones(2, np.int32)
            span = runner.run(OpenLoop(0.2, np.array([0.0, 0.1]), 32 * two, TOKENS * two))
            assert runner.settle(FOREVER_S)
            assert runner.journal().status.tolist() == [Status.CONNECT, Status.CONNECT]
            assert span.end_row == 2
