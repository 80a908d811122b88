"""Prompts of the user's own: their order, their lengths, and that a server gets the very requests of the file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from pytest_gpucap.load import prompt_counts
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.event_loop import NOT_KEPT
from pytest_gpucap.load.own_bodies import OwnBodies, file_of, shared_bodies
from pytest_gpucap.load.prompt_counts import counted
from pytest_gpucap.load.prompt_lengths import repeats, rows_of, with_estimates
from pytest_gpucap.load.protocol import LoadError, OpenLoop, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.trace import longest_request
from pytest_gpucap.requirement import ApiKind, Length, LengthKind, OwnPrompts, Wording, Workload, too_long
from pytest_gpucap.workloads.prompt_file import read_prompts
from tests.load.test_load_prompts import bpe, counter
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S

CANARY = "canary-6b1f"


def of_file(folder: Path, rows: list[dict[str, Any]], **declared: Any) -> Workload:
    """The workload of a file with these lines, with estimated lengths."""
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = read_prompts(path)
    output = declared.pop("output_tokens", None)
    workload = Workload(
        endpoint=file.endpoint(declared.pop("endpoint", None)),
        prompts=OwnPrompts(path, file.sha256, len(rows), declared=output),
        **declared,
    )
    return with_estimates(workload, file)


def chats(count: int, *, said: str = "word ") -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{number}: {said * number}"}], "max_tokens": 1 + number % 5}
        for number in range(1, count + 1)
    ]


# -- order and lengths ------------------------------------------------------------------------------------------------


def test_each_round_has_every_prompt_once_in_an_order_of_its_own() -> None:
    rows = rows_of(0, 70, 7, order=3).reshape(10, 7)
    assert all(sorted(each) == list(range(7)) for each in rows.tolist())
    assert len({tuple(each) for each in rows.tolist()}) > 7
    np.testing.assert_array_equal(rows_of(17, 30, 7, order=3), rows.ravel()[17:47])
    assert rows_of(0, 70, 7, order=4).tolist() != rows.ravel().tolist()
    assert rows_of(5, 0, 7, order=3).size == 0
    assert rows_of(0, 3, 1, order=2**80).tolist() == [0, 0, 0]


def test_the_first_place_is_any_prompts() -> None:
    first = Counter(int(rows_of(0, 1, 10, order=seed)[0]) for seed in range(2_000))
    assert all(120 < first[row] < 290 for row in range(10))  # 200 each; 13 is one standard deviation


def test_answers_are_as_long_as_the_line_says_else_the_workload_else_what_was_recorded(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a" * 80}, {"from": "gpt", "value": "b" * 40}]
    rows: list[dict[str, Any]] = [{"prompt": "c" * 8, "max_tokens": 3}, {"conversations": turns}, {"prompt": "d" * 9}]
    chat = {"endpoint": ApiKind.CHAT}
    recorded = of_file(tmp_path, rows, **chat).prompts
    assert recorded is not None
    assert (recorded.input_tokens, recorded.output_tokens) == ((2, 20, 3), (3, 10, 0))
    declared = of_file(tmp_path, rows, output_tokens=Length.parse("uniform:50-60", "o"), **chat)
    assert declared.prompts is not None
    assert declared.prompts.output_tokens == (3, 0, 0)
    loop = open_loop(declared, 100.0, 3.0, seed=1, stream=0)
    own = loop.output_tokens[loop.prompt_tokens == 2]
    assert set(own.tolist()) == {3}
    assert {50, 60} <= set(loop.output_tokens[loop.prompt_tokens != 2].tolist()) <= set(range(50, 61))
    assert longest_request(declared) == (20, 60)
    assert declared.output_tokens.kind is LengthKind.LOGNORMAL
    assert (declared.output_tokens.low, declared.output_tokens.high) == (3, 60)
    assert declared.output_tokens.mean == pytest.approx((3 + 55 + 55) / 3)
    every = np.concatenate([[3] * 11, *[np.arange(50, 61)] * 2])
    assert declared.output_tokens.cv == pytest.approx(every.std() / every.mean())


def test_phases_go_on_through_the_file_where_the_last_one_ended(tmp_path: Path) -> None:
    workload = of_file(tmp_path, chats(300))
    assert workload.prompts is not None
    first = open_loop(workload, 20.0, 5.0, seed=1, stream=0)
    n = first.due_s.size
    second = closed_loop(workload, 8, 1.0, 10.0, seed=1, stream=1, first_prompt=n)
    taken = rows_of(0, n + second.prompt_tokens.size, 300, workload.prompts.order)
    lengths = np.array(workload.prompts.input_tokens)
    np.testing.assert_array_equal(lengths[taken], np.concatenate([first.prompt_tokens, second.prompt_tokens]))
    assert np.unique(taken).size == taken.size


def test_requests_found_under_way_fit_the_context_of_the_longest(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * 4_000, "max_tokens": 2}, {"prompt": "b" * 40, "max_tokens": 500}]
    workload = of_file(tmp_path, rows)
    loop = closed_loop(workload, 64, 5.0, 10.0, seed=1, stream=0)
    assert loop.hot == 64
    assert (loop.prompt_tokens + loop.output_tokens).max() <= sum(longest_request(workload)) == 1_002
    assert loop.output_tokens[:64].max() > 400


def test_a_prompt_beyond_the_context_names_the_file() -> None:
    assert too_long((60, 40), 100, "own.jsonl") == ""
    said = "own.jsonl: a prompt of 61 and an answer of 40 tokens do not fit max_model_len=100: leave longer prompts out"
    assert too_long((61, 40), 100, "own.jsonl").startswith(said)


def test_repeats_are_told(tmp_path: Path) -> None:
    workload = of_file(tmp_path, chats(20))
    assert repeats(workload, 20) == repeats(Workload(), 10_000) == ""
    assert "50 requests were sent, and own.jsonl has 20 prompts: each was sent 2.5 times" in repeats(workload, 50)


# -- what a server gets -----------------------------------------------------------------------------------------------


def sent(server: TokenServer, workload: Workload, requests: int) -> HttpLoadRunner:
    """A closed runner that has sent so many requests."""
    with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
        loop = open_loop(workload, requests / 0.5, 0.5, seed=1, stream=0)
        every = open_loop(workload, 4 * requests / 0.5, 0.5, seed=1, stream=0)
        rows = slice(0, requests)
        due_s = np.linspace(0.0, 0.4, requests)
        runner.run(OpenLoop(loop.duration_s, due_s, every.prompt_tokens[rows], every.output_tokens[rows]))
        assert runner.settle(FOREVER_S)
    return runner


@pytest.mark.parametrize("tokenize", [True, False])
def test_the_server_gets_each_request_of_the_file_and_counts_it(tmp_path: Path, tokenize: bool) -> None:
    rows = [{**row, "stop": [f"{number}"]} for number, row in enumerate(chats(40))]
    with TokenServer(counter(bpe()), tokenize=tokenize) as server:
        declared = of_file(tmp_path, rows, sampling={"temperature": 0.6})
        workload = counted(ServerAddress.parse(server.url, None), "m", declared)
        runner = sent(server, workload, 40)
        bodies = server.seen.bodies
        journal = runner.journal()
        true = [server.prompt_tokens(row) for row in rows]
    assert workload.prompts is not None
    if tokenize:
        assert list(workload.prompts.input_tokens) == true
        assert workload.prompts.estimated == 0
    else:
        assert workload.prompts.estimated == 40
        np.testing.assert_allclose(workload.prompts.input_tokens, true, rtol=0.2, atol=6)
    assert (journal.status == Status.OK).all(), runner.error_texts()
    np.testing.assert_array_equal(journal.prompt_tokens, journal.counted_prompt_tokens)
    assert sorted(journal.prompt_tokens.tolist()) == sorted(true)
    assert any("its tokens were estimated" in text for text in runner.remarks) != tokenize
    ours = {"model": "m", "temperature": 0.6, "stream": True, "stream_options": {"include_usage": True}}
    wanted = [{**row, **ours, "ignore_eos": True} for row in rows]
    assert sorted(bodies, key=lambda body: int(body["stop"][0])) == wanted


def test_texts_get_the_wording_and_a_line_comes_before_the_workload(tmp_path: Path) -> None:
    rows = [{"prompt": "Once é", "max_tokens": 2, "temperature": 0.1}]
    declared = of_file(
        tmp_path,
        rows,
        endpoint=ApiKind.CHAT,
        wording=Wording(opening="> "),
        sampling={"temperature": 0.9, "top_p": 0.5},
    )
    fd, about = shared_bodies(declared, "m", 0)
    body = json.loads(OwnBodies.attach(fd, about).body(7, 3, 2))
    assert body["messages"] == [{"role": "user", "content": "> Once é"}]
    assert (body["temperature"], body["top_p"]) == (0.1, 0.5)


def test_recorded_answers_are_counted_too(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "what is in the beginning"}, {"from": "gpt", "value": "the word and all that"}]
    for tokenize in (True, False):
        with TokenServer(counter(bpe()), tokenize=tokenize) as server:
            workload = counted(
                ServerAddress.parse(server.url, None), "m", of_file(tmp_path, [{"conversations": turns}])
            )
            true = server.count("the word and all that")
        assert workload.prompts is not None
        (found,) = workload.prompts.output_tokens
        assert found == true if tokenize else 0.3 < found / true < 5


class Otherwise(TokenServer):
    """Counts eleven tokens more by ``/tokenize`` than by usage."""

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": self.prompt_tokens(await request.json()) + 11})


def test_a_server_that_tokenizes_otherwise_than_it_counts_is_not_believed(tmp_path: Path) -> None:
    with Otherwise(counter(bpe()), tokenize=True) as server:
        workload = counted(ServerAddress.parse(server.url, None), "m", of_file(tmp_path, chats(5)))
        true = [server.prompt_tokens(row) for row in chats(5)]
    assert workload.prompts is not None
    assert workload.prompts.estimated == 5
    np.testing.assert_allclose(workload.prompts.input_tokens, true, atol=4)


def test_of_many_prompts_the_first_ones_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_counts, "MOST_COUNTED", 30)
    rows = chats(50)
    with TokenServer(counter(bpe()), tokenize=True) as server:
        workload = counted(ServerAddress.parse(server.url, None), "m", of_file(tmp_path, rows))
        true = np.array([server.prompt_tokens(row) for row in rows])
    assert workload.prompts is not None
    assert workload.prompts.estimated == 20
    found, order = np.array(workload.prompts.input_tokens), rows_of(0, 50, 50, workload.prompts.order)
    np.testing.assert_array_equal(found[order[:30]], true[order[:30]])
    np.testing.assert_allclose(found[order[30:]], true[order[30:]], rtol=0.2, atol=4)


def test_a_file_that_changed_meanwhile_is_not_sent(tmp_path: Path) -> None:
    workload = of_file(tmp_path, chats(2))
    (tmp_path / "own.jsonl").write_text(json.dumps(chats(3)[2]) + "\n")
    with pytest.raises(LoadError, match=r"own\.jsonl: the prompts have changed since the session began"):
        file_of(workload)


# -- what is said of them ---------------------------------------------------------------------------------------------


async def _echo(request: web.Request) -> web.Response:
    """Refuses, and repeats what it refuses, but for short prompts without the field `odd`."""
    text = await request.text()
    if len(text) > 150 or "odd" in text:
        return web.json_response({"error": {"message": f"cannot parse {text}"}}, status=400)
    return web.json_response({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})


def test_of_failed_requests_our_own_words_are_kept_and_the_servers_are_not(tmp_path: Path) -> None:
    """It may repeat a prompt in its refusal."""
    workload = of_file(tmp_path, chats(4, said=f"{CANARY} " * 9))
    one = OpenLoop(0.2, np.array([0.0]), np.array([5], np.int32), np.array([1], np.int32))
    with TokenServer(handler=_echo) as server:
        runner = HttpLoadRunner(server.url, "m", None, workload, 1, workers=1)
        runner.run(one)
        assert runner.settle(FOREVER_S)
        with pytest.raises(LoadError, match=r"own\.jsonl:\d: http://\S+ answered a probe with HTTP 400") as caught:
            counted(ServerAddress.parse(server.url, None), "m", workload)
        with pytest.raises(LoadError, match=r"HTTP 400: .*cannot parse .*odd"):  # a prompt of ours, and the workload
            counted(ServerAddress.parse(server.url, None), "m", replace(workload, extra_body={"odd": 1}))
        server.drop_connections()
    assert CANARY not in str(caught.value)
    with runner:
        runner.run(one)
        assert runner.settle(FOREVER_S)
        told = {(each.status, each.code): each.text for each in runner.error_texts()}
    assert told.pop((Status.HTTP_4XX, 400)) == NOT_KEPT
    assert told == {(Status.CONNECT, 0): "connection failed: ECONNREFUSED"}
