"""Sessions as a load: how turns are drawn and follow each other, on a schedule and over HTTP."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from pytest_gpucap.load import sessions
from pytest_gpucap.load.protocol import ClosedLoop, Journal, LoadError, OpenLoop, SessionColumns, Status, Turns
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.session_rows import owners
from pytest_gpucap.load.worker_pool import WorkerPool
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, Length, Workload
from pytest_gpucap.workloads.sessions import with_sessions
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S, UNTIL_STOPPED_S, until

MADE = Workload(
    Length.parse("uniform:30-60", "input_tokens"),
    Length.parse("uniform:2-12", "output_tokens"),
    endpoint=ApiKind.COMPLETIONS,
)
CHAT = with_sessions(MADE, "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=5s,cv=1")


def turns_of(phase: OpenLoop | ClosedLoop) -> Turns:
    assert phase.turns is not None
    return phase.turns


def check_chains(phase: OpenLoop | ClosedLoop) -> None:
    """Every turn that follows one stands behind it, is of its session, and begins with what was sent before."""
    turns = turns_of(phase)
    later = np.flatnonzero(turns.after >= 0)
    before = turns.after[later]
    assert later.size > 0
    assert (before < later).all()
    assert np.unique(before).size == before.size
    np.testing.assert_array_equal(turns.session[later], turns.session[before])
    np.testing.assert_array_equal(turns.left[later], turns.left[before] - 1)
    np.testing.assert_array_equal(turns.cached[later], phase.prompt_tokens[before])
    added = phase.prompt_tokens[later] - phase.prompt_tokens[before] - phase.output_tokens[before]
    assert ((added >= 30) & (added <= 60)).all()
    assert (turns.cached < phase.prompt_tokens).all()


@pytest.mark.parametrize("kind", [ArrivalKind.POISSON, ArrivalKind.CONSTANT])
def test_an_open_loop_has_the_declared_requests_a_second_from_its_beginning(kind: ArrivalKind) -> None:
    workload = with_sessions(
        Workload(MADE.input_tokens, MADE.output_tokens, Arrivals(kind)),
        "turns=uniform:1-7 think=lognormal:mean=9s,cv=1",
    )
    phase = open_loop(
        workload, 200.0, 60.0, 3, 0, 100, sessions.UnderWay(np.zeros(0, np.int64), np.zeros(0, np.int32), 2.0)
    )
    check_chains(phase)
    # The first seconds have as many as the last: sessions that began before the phase are in it.
    per_s = np.histogram(phase.due_s, np.arange(0.0, 61.0, 10.0))[0] / 10.0
    assert per_s == pytest.approx(200.0, rel=0.12)
    assert phase.rate_rps == pytest.approx(200.0, rel=0.05)
    turns = turns_of(phase)
    assert (turns.after < 0).sum() <= phase.prompts == turns.count
    assert turns.session.min() >= 100
    assert turns.session.max() < 100 + phase.prompts
    # The mix of turns is that of all turns, from the first second on.
    assert phase.prompt_tokens.mean() == pytest.approx(sessions.typical_turns(workload).prompt.mean(), rel=0.1)


def test_a_turn_that_may_come_sooner_than_expected_is_in_the_phase_and_not_in_its_rate() -> None:
    slow = sessions.UnderWay(np.zeros(0, np.int64), np.zeros(0, np.int32), 20.0)
    phase = open_loop(CHAT, 50.0, 20.0, 3, 0, 0, slow)
    expected = phase.due_s >= phase.duration_s
    assert expected.any()
    assert phase.rate_rps == (~expected).sum() / phase.duration_s


@pytest.mark.parametrize("hot", [True, False])
def test_a_closed_loop_begins_in_the_middle_of_sessions(hot: bool) -> None:
    phase = closed_loop(CHAT, 400, 10.0, 100.0, 3, 0, hot=hot)
    if not hot:
        check_chains(phase)
    turns = turns_of(phase)
    assert phase.hot == (400 if hot else 0)
    assert (turns.after[:400] < 0).all()
    # In the middle of a session: most have said something, and were never heard.
    assert phase.prompt_tokens[:400].mean() > 1.5 * MADE.input_tokens.mean
    assert (turns.cached[:400] == 0).all()
    assert phase.prompt_tokens.size > 10 * 100


def test_the_same_seed_gives_the_same_sessions() -> None:
    one, two, other = (open_loop(CHAT, 30.0, 20.0, seed, 0) for seed in (5, 5, 6))
    for column in ("due_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
    assert one.due_s.size != other.due_s.size or (one.due_s != other.due_s).any()


def test_sessions_that_last_for_ever_are_refused() -> None:
    with pytest.raises(LoadError, match="too many are under way at once"):
        open_loop(with_sessions(MADE, "turns=1000 think=1h"), 50.0, 20.0, 1, 0)


def test_a_session_ends_before_a_turn_that_does_not_fit() -> None:
    held = with_sessions(MADE, "turns=12 think=1s context=200")
    turns = sessions.typical_turns(held)
    assert (turns.prompt + turns.output <= 200).all()
    assert 1.0 < sessions.mean_turns(held) < 12.0
    ends = np.append(np.diff(turns.session) != 0, True)
    assert ((turns.left == 0) == ends).all()
    assert sum(sessions.longest_turn(held)) == 200
    described = sessions.with_session_lengths(held).input_tokens
    assert (described.low, described.high) == (turns.prompt.min(), turns.prompt.max())
    assert described.mean == pytest.approx(float(turns.prompt.mean()))


def journal(status: list[Status], first_s: list[float], end_s: list[float], left: list[int]) -> Journal:
    """Four requests of the sessions 7, 7, 8 and 9."""
    n = len(status)
    prompts = np.array([40, 90, 50, 60], np.int32)
    zeros, times = np.zeros(n, np.int32), np.arange(n, dtype=np.float64)
    return Journal(
        *(times, times, np.array(first_s), np.array(end_s), np.array(end_s), prompts, zeros, zeros, zeros),
        *(np.array(status, np.uint8), np.zeros(n, np.bool_), 0.1, 0.0, np.zeros(1, np.int64)),
        sessions=SessionColumns(np.array([7, 7, 8, 9]), zeros, np.array(left, np.int32)),
    )


def test_sessions_with_turns_left_are_carried_on_those_under_way_first() -> None:
    nan = float("nan")
    found = sessions.under_way(
        journal([Status.OK, Status.OK, Status.IN_FLIGHT, Status.OK], [1, 2, 3, 4], [2, 3, nan, 5], [5, 4, 1, 0])
    )
    # The last prompt of 7 counts; 9 has no turn left.
    assert found.number.tolist() == [8, 7]
    assert found.prompt.tolist() == [50, 90]
    assert found.e2e_s == 2.0
    # A prompt without a first token is not in the cache, and a failed one has lost its session.
    lost = sessions.under_way(
        journal([Status.OK, Status.HTTP_5XX, Status.IN_FLIGHT, Status.OK], [1, 2, nan, 4], [2, 3, nan, 5], [5, 4, 1, 1])
    )
    assert lost.number.tolist() == [9]
    phase = open_loop(CHAT, 20.0, 30.0, 1, 0, 1000, found)
    turns = turns_of(phase)
    for number, prompt in ((7, 90), (8, 50)):
        (first,) = np.flatnonzero((turns.session == number) & (turns.after < 0))
        assert turns.cached[first] == min(prompt, phase.prompt_tokens[first] - 1)


def test_one_worker_has_all_turns_of_a_session() -> None:
    for phase in (open_loop(CHAT, 40.0, 20.0, 1, 0), closed_loop(CHAT, 30, 5.0, 50.0, 1, 0)):
        session = turns_of(phase).session
        mine = owners(session, 3)
        assert all(np.unique(mine[session == each]).size == 1 for each in np.unique(session)[:50])
        assert np.bincount(mine[:30]).min() >= 5


@pytest.mark.parametrize("workers", [1, 2])
def test_turns_wait_for_answers_and_repeat_what_was_said(workers: int) -> None:
    workload = with_sessions(MADE, "turns=uniform:2-4 think=lognormal:mean=50ms,cv=0.5")
    with TokenServer(gap_s=0.002) as server:
        with HttpLoadRunner(server.url, "m", None, workload, 1, workers=workers) as runner:
            one = open_loop(workload, 60.0, 1.0, 1, 0)
            first = runner.run(one)
            two = closed_loop(workload, 6, 0.7, 500.0, 1, 1, first_prompt=one.prompts)
            second = runner.run(two)
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        bodies = server.seen.bodies
    assert (journal.status == Status.OK).all(), runner.error_texts()
    assert (np.diff(journal.due_s) >= 0).all()
    columns = journal.sessions
    assert columns is not None
    followed = {ClosedLoop: 0, OpenLoop: 0}
    for span, phase in ((first, one), (second, two)):
        turns = turns_of(phase)
        think_s = {(int(s), int(k)): float(t) for s, k, t in zip(turns.session, turns.left, turns.think_s, strict=True)}
        by_session = defaultdict(list)
        for row in range(span.first_row, span.end_row):
            by_session[int(columns.session[row])].append(row)
        for session, rows in by_session.items():
            for before, after in itertools.pairwise(rows):
                wait_s = journal.due_s[after] - journal.end_s[before]
                assert columns.left[after] == columns.left[before] - 1
                if isinstance(phase, OpenLoop):
                    assert wait_s == pytest.approx(think_s[session, int(columns.left[after])], abs=1e-6)
                else:  # requests of the phase before may still hold its place
                    assert wait_s > -1e-6
                followed[type(phase)] += 1
    assert min(followed.values()) > 5
    # Every prompt of a session is the beginning of the longer ones.
    prompts = sorted((body["prompt"] for body in bodies), key=len)
    starts = defaultdict(list)
    for prompt in prompts:
        starts[tuple(prompt[:20])].append(prompt)
    assert max(len(each) for each in starts.values()) > 1
    for each in starts.values():
        assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(each))


class Gated(TokenServer):
    """Answers each request once its gate is open."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.asked, self._gates = 0, [asyncio.Event() for _ in range(gates)]

    def open(self, number: int) -> None:
        """Open one gate."""
        self._loop.call_soon_threadsafe(self._gates[number].set)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if (await request.json()).get("stream"):
            self.asked += 1
            await self._gates[self.asked - 1].wait()
        return await super()._answer(request)


def test_what_is_sent_while_a_phase_is_being_stopped_is_of_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the server's counters have it and no row, and a session of a file that has begun would be begun again."""
    workload = with_sessions(MADE, "turns=1 think=50ms")
    tell = WorkerPool.tell

    def late(pool: WorkerPool, message: dict[str, Any], fd: int | None = None) -> None:
        if message["do"] == "end_early":  # the end is decided; until the worker hears of it, it goes on
            server.open(0)
            until(lambda: server.asked == 2)
        tell(pool, message, fd)

    monkeypatch.setattr(WorkerPool, "tell", late)
    with Gated(2) as server, HttpLoadRunner(server.url, "m", None, workload, 1, workers=1) as runner:
        phase = closed_loop(workload, 1, UNTIL_STOPPED_S, 0.00001, 1, 1, hot=False)
        span = runner.run(phase, lambda _: server.asked == 1)
        # The second has no token yet.
        assert (server.asked, span.stopped, span.end_row) == (2, True, 2)
        server.open(1)
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert (journal.status == Status.OK).all(), runner.error_texts()
    assert journal.prompt_tokens.sum() == server.seen.prompt_tokens
    assert journal.output_tokens.sum() == server.seen.output_tokens == journal.tokens.sum()
    assert span.end_s >= journal.due_s.max()
