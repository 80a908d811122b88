"""Sessions from a file as a load: which turns a phase sends, and what a server gets of them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.load import sessions
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.prompt_counts import counted
from pytest_gpucap.load.prompts import PromptRecipe
from pytest_gpucap.load.protocol import ClosedLoop, Journal, LoadError, OpenLoop, SessionColumns, Status
from pytest_gpucap.load.recorded_sessions import repeated
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.session_bodies import BlockBodies, session_file_of, shared_sessions
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, RecordedSessions, Workload
from pytest_gpucap.workloads.session_file import read_sessions
from pytest_gpucap.workloads.sessions import file_of_sessions, with_sessions_of_file
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S


def of_file(folder: Path, rows: list[dict[str, Any]], words: str = "", **workload: Any) -> Workload:
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return with_sessions_of_file(Workload(**workload), file_of_sessions(f"own.jsonl {words}", folder), None)


def recorded(workload: Workload) -> RecordedSessions:
    assert workload.recorded is not None
    return workload.recorded


def talks(count: int, turns: int = 3) -> list[dict[str, Any]]:
    """So many sessions of AIPerf, whose texts and answers all differ in length."""
    return [
        {
            "session_id": f"{number}",
            "turns": [
                {"text": f"turn {turn} of {number} " + "x" * number, "delay": 400 * turn, "output_length": 2 + turn}
                for turn in range(turns)
            ],
        }
        for number in range(count)
    ]


def chats(count: int) -> list[dict[str, Any]]:
    """A trace of Bailian's: sessions of one to three requests, each 100 ms after the one before."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        for turn in range(1 + number % 3):
            chat = 10 * number + turn
            rows.append(
                {
                    "chat_id": chat,
                    "parent_chat_id": chat - 1 if turn else -1,
                    "turn": turn + 1,
                    "type": "text",
                    "timestamp": float(number + 5 * turn),
                    "output_length": 3,
                    "hash_ids": [7, 100 + number, *range(1000 * number, 1000 * number + turn)],
                    "input_length": 16 * (2 + turn) - 3,
                }
            )
    return sorted(rows, key=lambda row: row["timestamp"])


def check_turns(workload: Workload, phase: OpenLoop | ClosedLoop) -> None:
    """Every row is a turn of the file, and follows the one before it."""
    turns, known = phase.turns, recorded(workload)
    assert turns is not None
    place = turns.session % known.count
    row = known.begin[place] + known.turns[place] - 1 - turns.left
    np.testing.assert_array_equal(phase.prompt_tokens, known.prompt[row])
    later = np.flatnonzero(turns.after >= 0)
    np.testing.assert_array_equal(turns.session[later], turns.session[turns.after[later]])
    np.testing.assert_array_equal(turns.left[later], turns.left[turns.after[later]] - 1)
    assert (turns.cached < phase.prompt_tokens).all()


@pytest.mark.parametrize("text", [True, False])
def test_phases_send_turns_of_the_file_at_the_rate_that_is_asked_for(tmp_path: Path, text: bool) -> None:
    workload = of_file(tmp_path, talks(40) if text else chats(40), "think=5s")
    known = recorded(workload)
    first = open_loop(workload, 60.0, 20.0, 3, 0)
    second = closed_loop(workload, 12, 10.0, 20.0, 3, 1, first_prompt=first.prompts)
    for phase in (first, second):
        check_turns(workload, phase)
    per_s = np.histogram(first.due_s, np.arange(0.0, 21.0, 5.0))[0] / 5.0
    assert per_s == pytest.approx(60.0, rel=0.25)
    assert second.hot == 12
    assert first.turns is not None
    assert first.turns.fresh is not None
    # Each round through the file has every session once, in its own order where the file has none.
    rounds = first.turns.fresh[: 2 * known.count].reshape(2, -1)
    assert (np.sort(rounds % known.count, axis=1) == np.arange(known.count)).all()
    assert (rounds == np.arange(2 * known.count).reshape(2, -1)).all() != text
    np.testing.assert_array_equal(rounds // known.count, [[0] * known.count, [1] * known.count])


def test_sessions_begin_when_the_trace_says(tmp_path: Path) -> None:
    rows = chats(30)
    workload = of_file(tmp_path, rows, arrivals=Arrivals(ArrivalKind.TRACE))
    phase = open_loop(workload, 4.0, 60.0, 3, 0, first_prompt=10)
    assert phase.turns is not None
    begins = phase.due_s[(phase.turns.after < 0) & (phase.turns.session < 1000)]
    # Two requests a session: a session each half second, as each second there, and over again without a gap.
    np.testing.assert_allclose(np.diff(begins), 0.5, atol=1e-6)
    assert (phase.turns.session[phase.turns.session < 1000].min(), begins[0]) == (10, 0.0)


def answered(phase: ClosedLoop | OpenLoop, count: int) -> Journal:
    """As if the first rows of a phase had been answered."""
    assert phase.turns is not None
    n, second = np.zeros(count), np.arange(count, dtype=np.float64)
    columns = SessionColumns(*(getattr(phase.turns, name)[:count] for name in ("session", "cached", "left")))
    tokens = phase.prompt_tokens[:count], phase.output_tokens[:count]
    status, hot = np.full(count, Status.OK, np.uint8), np.zeros(count, np.bool_)
    return Journal(
        n, n, second, second, second, *tokens, *tokens, status, hot, 0.1, 0.0, np.zeros(0, np.int64), sessions=columns
    )


@pytest.mark.parametrize("closed", [True, False])
def test_a_session_goes_on_in_the_next_phase_where_it_stood(tmp_path: Path, closed: bool) -> None:
    workload = of_file(tmp_path, talks(60), "think=2s")
    known = recorded(workload)
    first = open_loop(workload, 60.0, 20.0, 3, 0)
    before = sessions.under_way(answered(first, 100))
    assert before.number.size > 5
    if closed:
        phase: ClosedLoop | OpenLoop = closed_loop(workload, 200, 10.0, 1.0, 3, 1, False, first.prompts, before)
    else:
        phase = open_loop(workload, 120.0, 20.0, 3, 1, first.prompts, before)
    check_turns(workload, phase)
    turns = phase.turns
    assert turns is not None
    assert before.left is not None
    left = dict(zip(before.number.tolist(), before.left.tolist(), strict=True))
    carried = [at for at in np.flatnonzero(turns.after < 0).tolist() if int(turns.session[at]) in left]
    assert len(carried) == len(left) if closed else len(carried) > 5  # as many as are under way in the phase
    for at in carried:
        number = int(turns.session[at])
        assert turns.left[at] == left[number] - 1
        row = known.begin[number % known.count] + known.turns[number % known.count] - 1 - turns.left[at]
        assert turns.cached[at] == known.own[row] > 0


def test_sessions_that_were_not_begun_are_left_for_later(tmp_path: Path) -> None:
    phase = open_loop(of_file(tmp_path, talks(40)), 60.0, 20.0, 3, 0)
    turns = phase.turns
    assert turns is not None
    assert turns.fresh is not None
    assert turns.not_begun(turns.fresh[[3, 7]]) == turns.fresh.size - 8
    assert turns.not_begun(np.zeros(0, np.int64)) == turns.fresh.size


def test_repeats_of_texts_are_told(tmp_path: Path) -> None:
    known = recorded(of_file(tmp_path, talks(4)))
    assert repeated(known, np.array([0, 0, 1, 2])) == ""
    assert "8 sessions began, and own.jsonl has 4: each began 2 times" in repeated(known, np.arange(8))
    assert repeated(recorded(of_file(tmp_path, chats(4))), np.arange(8)) == ""


def test_a_file_that_changed_meanwhile_is_not_sent(tmp_path: Path) -> None:
    workload = of_file(tmp_path, talks(3))
    of_file(tmp_path, talks(4))
    with pytest.raises(LoadError, match=r"own\.jsonl: the sessions have changed since the session began"):
        session_file_of(recorded(workload))


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("tokenize", [True, False])
def test_the_server_gets_each_turn_after_all_that_was_said(tmp_path: Path, tokenize: bool) -> None:
    with TokenServer(words, template=lambda text: f" {text} ", tokenize=tokenize, ttft_s=0.02) as server:
        declared = of_file(tmp_path, talks(30), "think=0", sampling={"temperature": 0.6})
        workload = counted(ServerAddress.parse(server.url, None), "m", declared)
        probed = len(server.seen.bodies)
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
            phase = closed_loop(workload, 3, 600.0, 1.0, 1, 0, hot=False)
            runner.run(phase, lambda progress: progress.completed > 20)
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        bodies = server.seen.bodies[probed:]
    file, known = read_sessions(tmp_path / "own.jsonl"), recorded(workload)
    wanted = [json.loads(b"[%b]" % file.text[begin:end]) for begin, end in file.span.tolist()]
    assert (journal.status == Status.OK).all(), runner.error_texts()
    np.testing.assert_array_equal(journal.prompt_tokens, journal.counted_prompt_tokens)
    assert known.estimated == (0 if tokenize else 90)
    assert len(bodies) == journal.status.size > 20
    assert all(body["messages"] in wanted and body["temperature"] == 0.6 for body in bodies)
    assert all(body["max_tokens"] == file.output[wanted.index(body["messages"])] for body in bodies)
    assert sum(len(body["messages"]) > 1 for body in bodies) > 5
    assert sorted(journal.prompt_tokens.tolist()) == sorted(map(server.prompt_tokens, bodies))


@pytest.mark.parametrize("as_ids", [True, False])
def test_equal_blocks_become_equal_pieces_of_prompts_within_a_round(tmp_path: Path, as_ids: bool) -> None:
    workload = of_file(tmp_path, chats(6), endpoint=ApiKind.COMPLETIONS)
    known = recorded(workload)
    units = tuple(str(1000 + each) for each in range(64)) if as_ids else tuple(f" u{each}" for each in range(64))
    recipe = PromptRecipe("m", ApiKind.COMPLETIONS.value, units, as_ids=as_ids, overhead=2, nonce=5)
    fd, about = shared_sessions(workload, "m")
    bodies = BlockBodies.attach(recipe, fd, about)

    def prompt(number: int, turn: int) -> list[Any]:
        left = int(known.turns[number % known.count]) - 1 - turn
        row = int(known.begin[number % known.count]) + turn
        body = json.loads(bodies.body(number, int(known.prompt[row]), 3, left))
        assert body["max_tokens"] == 3
        found = body["prompt"] if as_ids else body["prompt"].split()
        assert len(found) == known.prompt[row] - recipe.overhead
        return list(found)

    # Session 2 has three turns with blocks of its own behind block 7, which all sessions have.
    first, second, third = (prompt(2, turn) for turn in range(3))
    assert first == second[: len(first)]
    assert second[:32] == third[:32]
    other = prompt(5, 2)
    assert other[:16] == third[:16]
    assert all(one != two for one, two in zip(other[16:20], third[16:20], strict=True)) or other[16:] != third[16:]
    # Another round shares nothing, not even a first block.
    assert prompt(2 + known.count, 2)[:7] != third[:7]
    with pytest.raises(LoadError, match="a prompt of 1 tokens cannot be made"):
        bodies.body(0, 1, 1, 0)


def test_a_prompt_with_fewer_blocks_than_tokens_ends_with_units_of_its_own(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 100, "output_length": 3, "hash_ids": [1]}
    workload = of_file(tmp_path, [row, row], "block=16", endpoint=ApiKind.COMPLETIONS)
    recipe = PromptRecipe("m", ApiKind.COMPLETIONS.value, tuple(f" u{each}" for each in range(64)))
    bodies = BlockBodies.attach(recipe, *shared_sessions(workload, "m"))
    one, other = (json.loads(bodies.body(number, 100, 3, 0))["prompt"].split() for number in (0, 1))
    assert len(one) == len(other) == 100
    assert one[:16] == other[:16]
    assert one[16:30] != other[16:30]


def test_a_trace_over_http_shares_as_much_as_it_says(tmp_path: Path) -> None:
    workload = of_file(tmp_path, chats(30), "think=0", endpoint=ApiKind.COMPLETIONS)
    with TokenServer(words, template=lambda text: text, ttft_s=0.02) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
            runner.prepare()
            probed = len(server.seen.bodies)
            runner.run(closed_loop(workload, 1, 600.0, 1.0, 1, 0, hot=False), lambda progress: progress.completed > 20)
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        bodies = server.seen.bodies[probed:]
    assert (journal.status == Status.OK).all(), runner.error_texts()
    prompts = [tuple(each) if isinstance(each := body["prompt"], list) else tuple(each.split()) for body in bodies]
    seen: defaultdict[tuple[Any, ...], int] = defaultdict(int)
    shared = []
    for prompt in prompts:
        known = [end for end in range(16, len(prompt) + 1, 16) if seen[prompt[:end]]]
        shared.append(max(known, default=0))
        for end in range(16, len(prompt) + 1, 16):
            seen[prompt[:end]] += 1
    # One at a time, so requests arrived in the order of the journal; the last block of a prompt is not whole.
    assert shared == (journal.cached_tokens // 16 * 16).tolist()
    assert sum(shared) > 0
