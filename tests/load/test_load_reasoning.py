"""Answers that reason before they answer: when the answer began, and how many tokens the reasoning took."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.protocol import OpenLoop, Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.shared_memory import PhaseTable
from pytest_gpucap.requirement import ApiKind, Length, Workload
from tests.load.rawserver import HEAD, RawServer, chunk
from tests.load.test_load_fastpath import in_this_process
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S


class HoldingServer(RawServer):
    """Answers are held in their middle until `release_when` is set."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.release_when = threading.Event()


HEADER = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return json.dumps({**HEADER, "choices": [choice]}, separators=(",", ":")).encode()


def counts(output: int, **more: Any) -> bytes:
    usage = {"prompt_tokens": 32, "total_tokens": 32 + output, "completion_tokens": output, **more}
    return json.dumps({**HEADER, "choices": [], "usage": usage}, separators=(",", ":")).encode()


ROLE = event({"role": "assistant", "content": ""})
DONE = b"[DONE]"


def vllm(text: str) -> bytes:
    return event({"reasoning": text})


def both(text: str) -> bytes:
    """As vLLM wrote it while the field changed its name."""
    return event({"reasoning": text, "reasoning_content": text})


def sglang(text: str) -> bytes:
    return event({"role": None, "content": None, "reasoning_content": text, "tool_calls": None})


def text(content: str, finish: str | None = None) -> bytes:
    return event({"content": content}, finish)


def recorded(*events: bytes, asked: int = 5) -> tuple[Status, int, float, PhaseTable]:
    """Status, tokens of reasoning, and when the answer began, of events one second apart."""
    recorder = Recorder(np.zeros(1000, np.int64), 0.0, 0)
    table, fd = PhaseTable.create(1, 1)
    os.close(fd)
    table.prompt_tokens[:], table.output_tokens[:] = 32, asked
    recorder.begin(table)
    answer = Answer(table, 0, recorder)
    for second, data in enumerate(events):
        answer.event(data, float(second))
    status = answer.finish(float(len(events)), ignore_eos=True)
    return status, int(table.reasoning_tokens[0]), float(table.answer_s[0]), table


@pytest.mark.parametrize("spoken", [vllm, both, sglang])
def test_the_answer_begins_after_the_reasoning(spoken: Any) -> None:
    events = [ROLE, spoken("a"), spoken("b \\n"), spoken("c"), text("d"), text("e", "stop"), counts(5), DONE]
    status, reasoning, answer_s, table = recorded(*events)
    assert (status, reasoning, answer_s) == (Status.OK, 3, 4.0)
    assert (table.first_s[0], table.last_s[0]) == (1.0, 5.0)


def test_an_answer_without_reasoning_has_none() -> None:
    status, reasoning, answer_s, _ = recorded(ROLE, *[text("t")] * 4, text("t", "length"), counts(5), DONE)
    assert (status, reasoning) == (Status.OK, 0)
    assert math.isnan(answer_s)


def test_an_answer_may_end_before_it_has_begun() -> None:
    last = event({"reasoning": "c"}, "length")
    status, reasoning, answer_s, _ = recorded(ROLE, *[vllm("t")] * 4, last, counts(5), DONE)
    assert (status, reasoning) == (Status.OK, 5)
    assert math.isnan(answer_s)
    # Here the last event holds no token and only says why the answer ended.
    status, reasoning, answer_s, _ = recorded(ROLE, *[vllm("t")] * 5, text("", "length"), counts(5), DONE)
    assert (status, reasoning) == (Status.OK, 5)
    assert math.isnan(answer_s)


@pytest.mark.parametrize(
    ("told", "reasoning"),
    [
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, 4),
        ({"reasoning_tokens": 4}, 4),
        ({"completion_tokens_details": {"reasoning_tokens": 0}}, 3),  # vLLM, where the template opens the reasoning
        ({"completion_tokens_details": None}, 3),
        ({"completion_tokens_details": {"reasoning_tokens": 10**30}}, 3),
        ({"completion_tokens_details": {"reasoning_tokens": "four"}}, 3),
        ({"completion_tokens_details": {"reasoning_tokens": 9}}, 5),  # there are no more in all
    ],
)
def test_the_servers_count_comes_before_that_of_events(told: dict[str, Any], reasoning: int) -> None:
    events = [ROLE, *[vllm("a")] * 3, text("d"), text("e", "stop"), counts(5, **told), DONE]
    assert recorded(*events)[:3] == (Status.OK, reasoning, 4.0)


def test_several_tokens_in_an_event_are_shared_out() -> None:
    events = [ROLE, vllm("a b"), vllm("c d"), text("e f"), text("g h", "stop"), counts(8), DONE]
    assert recorded(*events, asked=8)[:3] == (Status.OK, 4, 3.0)


def test_reasoning_that_is_counted_and_not_streamed_comes_before_the_first_token() -> None:
    told = {"completion_tokens_details": {"reasoning_tokens": 30}}
    events = [ROLE, text("d"), text("e", "stop"), counts(32, **told), DONE]
    assert recorded(*events, asked=32)[:3] == (Status.OK, 30, 1.0)


def test_a_tool_call_is_an_answer_and_later_reasoning_belongs_to_it() -> None:
    call = event({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})
    status, reasoning, answer_s, _ = recorded(ROLE, vllm("a"), call, vllm("b"), text("c"), counts(4), DONE, asked=4)
    assert (status, reasoning, answer_s) == (Status.OK, 1, 2.0)


@pytest.mark.parametrize(
    "beside",
    [
        {"content": None, "refusal": None, "tool_calls": [], "function_call": {}},
        {"content": "", "provider_specific_fields": {"refusal": None}},
        {"content": "", "provider_specific_fields": {"trace": "a", "citations": [1]}},
        {"content": "", "audio": {"id": "", "data": None}, "tool_calls": [{}]},
        {"content": "", "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}},
        {"content": [{"type": "", "text": ""}]},
    ],
)
def test_an_opening_that_holds_nothing_is_no_first_token(beside: dict[str, Any]) -> None:
    opening = event({"role": "assistant", **beside})
    status, _, _, table = recorded(opening, *[text("t")] * 4, text("t", "length"), counts(5), DONE)
    assert status is Status.OK
    assert (table.first_s[0], table.last_s[0]) == (1.0, 5.0)


@pytest.mark.parametrize(
    "first",
    [
        {"content": "", "refusal": "I cannot"},
        {"content": None, "tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "", "arguments": ""}}]},
        {"content": [{"type": "text", "text": "t"}]},
        {"content": "", "reasoning_details": [{"text": "t"}]},
        {"content": "", "unknown": [[[[[None]]]]]},
    ],
)
def test_an_opening_with_any_part_of_an_answer_is_its_first_token(first: dict[str, Any]) -> None:
    opening = event({"role": "assistant", **first})
    status, _, _, table = recorded(opening, *[text("t")] * 3, text("t", "length"), counts(5), DONE)
    assert status is Status.OK
    assert (table.first_s[0], table.last_s[0]) == (0.0, 4.0)


def test_the_length_of_text_does_not_depend_on_the_name_of_its_field() -> None:
    recorder = Recorder(np.zeros(1000, np.int64), 0.0, 0)
    table, fd = PhaseTable.create(1, 1)
    os.close(fd)
    answer = Answer(table, 0, recorder)
    for second, data in enumerate([vllm("1234"), vllm("12345678"), vllm("12"), text("123"), text("12345")]):
        answer.event(data, float(second))
    assert answer.text_bytes == 8 + 2 + 3 + 5


def test_reasoning_is_read_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenServer(reasoning=6) as server:
        workload = Workload(Length.fixed(32), Length.fixed(8))
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
            recipe = runner.prepare()
        assert recipe is not None
        handed, table = in_this_process(monkeypatch, server.port, recipe, "", 200, 4)
    assert (table.status == Status.OK).all()
    assert handed.tokens == 8 * 200
    assert (table.reasoning_tokens == 6).all()
    assert ((table.first_s <= table.answer_s) & (table.answer_s <= table.last_s)).all()
    # The first event of the reasoning and that of the answer; of the other six, those that came in two pieces.
    assert handed.other - handed.new_heads < 200 * 2 + 100


def test_a_request_that_still_reasons_has_no_answer_yet() -> None:
    workload = Workload(Length.fixed(32), Length.fixed(3), endpoint=ApiKind.COMPLETIONS)

    def script(_: int, __: dict[str, object]) -> Any:
        def pieces() -> Iterator[bytes]:
            yield HEAD + chunk(b"data: %b\n\n" % vllm("a"))
            server.release_when.wait()
            for data in (text("b"), text("c", "stop"), counts(3), DONE):
                yield chunk(b"data: %b\n\n" % data)
            yield b"0\r\n\r\n"

        return pieces()

    with HoldingServer(respond=script) as server, HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as run:
        one = np.zeros(1), np.full(1, 32, np.int32), np.full(1, 3, np.int32)
        run.run(OpenLoop(600.0, *one), lambda _: bool((run.journal().first_s > 0).all()))
        journal = run.journal()
        assert journal.reasoned.all()
        assert np.isnan(journal.ttfat_s).all()
        assert (journal.ttft_s > 0).all()
        server.release_when.set()
        assert run.settle(FOREVER_S)
        journal = run.journal()
    assert (journal.status == Status.OK).all(), run.error_texts()
    assert journal.reasoning_tokens is not None
    assert journal.reasoning_tokens.tolist() == [1]
    assert (journal.ttft_s < journal.ttfat_s).all()
    assert (journal.ttfat_s < journal.e2e_s).all()
