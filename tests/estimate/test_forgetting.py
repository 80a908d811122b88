"""Sessions through a cache that forgets: what is found, and what that costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate import forgetting as module
from pytest_gpucap.estimate.forgetting import FORGOTTEN, could_forget, forgetting
from pytest_gpucap.estimate.queue_model import ServerModel, server_of
from pytest_gpucap.estimate.queue_simulation import GAP_BINS
from pytest_gpucap.estimate.session_simulation import SessionLatencies, SessionRequests, Stops, simulate_sessions
from pytest_gpucap.load.sessions import with_session_lengths
from pytest_gpucap.requirement import Length, Slo, Workload, declared_limits
from pytest_gpucap.workloads.sessions import with_sessions

STEP_S = 0.01
CHAT = with_session_lengths(
    with_sessions(
        Workload(Length.parse("150", "input_tokens"), Length.parse("200", "output_tokens")),
        "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=5s,cv=1",
    )
)
LIMITS = Slo(declared_limits({"ttft_p95": "2s"})).limits
SLOW = ServerModel(
    0.0325 + 0.00026 * np.arange(257, dtype=np.float64), 8e-5, max_seqs=256, kv_tokens=60_000.0, step_tokens=2048.0
)


def run(requests: SessionRequests, room: float, *, shared: int = 0, **server: float) -> tuple[SessionLatencies, Floats]:
    """One run on a server whose steps all take 10 ms, and where prompts cost nothing but their steps."""
    n = requests.prompt.size
    seen = SessionLatencies(np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), np.full(n, -1, np.int64))
    gaps, nothing = np.zeros(GAP_BINS), np.zeros(0)
    model = server_of(ServerModel(np.full(4, STEP_S), 0.0, **server))  # type: ignore[arg-type]
    simulate_sessions(model, requests, room, shared, Stops(nothing, nothing), 1000.0, 2000.0, seen, gaps)
    return seen, gaps


def session(*turns: tuple[int, int], think_s: float = 2.0, begin_s: float = 0.0) -> list[tuple[float, ...]]:
    """Rows of a session: due, prompt, output, sent before, whether it goes on, seconds since, whether it begins."""
    rows: list[tuple[float, ...]] = []
    for at, (prompt, output) in enumerate(turns):
        sent = turns[at - 1][0] if at else 0
        rows.append((begin_s, prompt, output, sent, at + 1 < len(turns), think_s if at else 0.0, not at))
    return rows


def requests_of(*sessions: list[tuple[float, ...]]) -> SessionRequests:
    due, prompt, output, sent, goes_on, think, first = (
        np.array(column, np.float64) for column in zip(*(row for each in sessions for row in each), strict=True)
    )
    tokens, made, before = (each.astype(np.int64) for each in (prompt, output, sent))
    follows = np.where(goes_on > 0, np.arange(due.size) + 1, -1).astype(np.int64)
    return SessionRequests(due, tokens, made, before, follows, think, first.astype(np.int64))


def test_a_turn_waits_for_the_answer_before_it_and_finds_what_was_said() -> None:
    seen, gaps = run(requests_of(session((100, 11), (150, 5))), math.inf)
    assert seen.due_s.tolist() == pytest.approx([0.0, 0.11 + 2.0])
    assert seen.ttft_s.tolist() == pytest.approx([STEP_S, STEP_S])
    assert seen.e2e_s.tolist() == pytest.approx([0.11, 0.05])
    assert seen.found.tolist() == [0, 100]
    assert gaps.sum() == 10 + 4


def test_what_was_released_first_is_evicted_first() -> None:
    """A cache of 1000 tokens is free when the first turn ends, and then another session writes."""
    talk = session((100, 11), (150, 5))
    for other, found in ((500, 100), (1000, 60), (1200, 0)):
        seen, _ = run(requests_of(talk, session((other, 41), begin_s=0.5)), 1000.0)
        assert seen.found[1] == found, other
    assert run(requests_of(talk, session((1200, 41), begin_s=0.5)), 1000.0, shared=30)[0].found[1] == 30
    assert run(requests_of(talk, session((1200, 41), begin_s=0.5)), math.inf)[0].found[1] == 100
    assert run(requests_of(talk), -math.inf, shared=30)[0].found[1] == 0


def test_requests_wait_and_are_preempted_where_the_kv_cache_is_full() -> None:
    two = requests_of(session((60, 31)), session((60, 31), begin_s=0.001))
    alone, _ = run(two, math.inf, kv_tokens=100.0)
    assert alone.ttft_s[1] == pytest.approx(alone.e2e_s[0] + STEP_S, abs=2 * STEP_S)
    both, _ = run(requests_of(session((40, 31)), session((40, 31), begin_s=0.001)), math.inf, kv_tokens=100.0)
    # The second gives way when the first needs the room, and begins again behind it.
    assert both.ttft_s[1] == pytest.approx(2 * STEP_S, abs=STEP_S)
    assert both.e2e_s[0] < 0.35 < both.e2e_s[1]
    assert run(two, math.inf, max_seqs=1)[0].ttft_s[1] > 0.3


def test_a_cache_that_forgets_costs_rate_and_none_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNS", 6)
    monkeypatch.setattr(module, "RUN_S", 1500.0)
    monkeypatch.setattr(module, "CLOSE_LN", 0.01)
    small, none = (forgetting(SLOW, CHAT, LIMITS, 4.3, room, told=True) for room in (60_000.0, 0.0))
    assert small.lost > 0.3
    assert none.lost == 1.0
    assert -0.35 < none.log_cost < small.log_cost - 0.02 < -0.05
    assert small.share == pytest.approx(1.0 - math.exp(small.log_cost))
    unsure = forgetting(SLOW, CHAT, LIMITS, 4.3, 60_000.0, told=False)
    assert unsure.error > 2 * small.error
    assert unsure.log_cost == small.log_cost


def test_a_cache_with_room_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNS", 2)
    roomy = replace(SLOW, kv_tokens=400_000.0)
    found = forgetting(roomy, CHAT, LIMITS, 3.0, 400_000.0, told=True)
    assert (found.log_cost, found.error, found.share) == (0.0, 0.0, 0.0)
    assert found.lost < FORGOTTEN
    assert could_forget(roomy, CHAT, 3.0, 60_000.0)
    assert not could_forget(roomy, CHAT, 3.0, 10_000_000.0)
    assert not could_forget(roomy, CHAT, 3.0, math.inf)
