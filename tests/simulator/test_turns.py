"""Sessions on a simulated server: turns wait for answers, and the cache keeps what it has room for."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from pytest_gpucap.load.protocol import ClosedLoop, Journal, LoadError, LoadPhase, OpenLoop, PhaseSpan, Status
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.load.sessions import under_way
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.fleet import FleetSimRunner
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.workloads.sessions import with_sessions

FAST = profile.load("fast").engine
CHAT = with_sessions(
    Workload(Length.parse("uniform:50-250", "input_tokens"), Length.parse("uniform:20-120", "output_tokens")),
    "turns=lognormal:mean=4,cv=0.5,high=12 think=lognormal:mean=3s,cv=1",
)


def driven(model: EngineModel, rate_rps: float = 10.0) -> tuple[SimRunner, list[tuple[LoadPhase, PhaseSpan]]]:
    """A closed loop and two open ones, each carrying on what the one before began."""
    runner, phases, first = SimRunner(model, seed=1), [], 0
    for stream in range(3):
        before = under_way(runner.journal())
        phase: LoadPhase = (
            open_loop(CHAT, rate_rps, 60.0, 7, stream, first, before)
            if stream
            else closed_loop(CHAT, 30, 20.0, 500.0, 7, stream, first_prompt=first, before=before)
        )
        first += phase.prompts
        phases.append((phase, runner.run(phase)))
    return runner, phases


def hit_rate(runner: SimRunner, span: PhaseSpan) -> float:
    seen = runner.readings()
    hits, queries = (
        np.interp([span.start_s, span.end_s], seen["time_s"], seen[name]) for name in ("prefix_hits", "prefix_queries")
    )
    return float(np.diff(hits)[0] / np.diff(queries)[0])


def usual_ttft_s(runner: SimRunner, span: PhaseSpan) -> float:
    ttft_s = runner.journal().ttft_s[span.first_row : span.end_row]
    return float(np.nanmean(ttft_s))


def expected(journal: Journal, span: PhaseSpan) -> float:
    """The share of the prompt tokens that sessions sent before."""
    rows = slice(span.first_row, span.end_row)
    return float(journal.cached_tokens[rows].sum() / journal.prompt_tokens[rows].sum())


@pytest.mark.parametrize("front_s", [0.0, 0.0001])
def test_a_turn_follows_the_end_of_the_answer_before(front_s: float) -> None:
    runner, phases = driven(replace(FAST, front_token_s=front_s))
    assert runner.settle(600.0)
    journal = runner.journal()
    columns = journal.sessions
    assert columns is not None
    assert (journal.status == Status.OK).all()
    assert (np.diff(journal.due_s) >= 0).all()
    followed = {OpenLoop: 0, ClosedLoop: 0}
    for phase, span in phases:
        turns = phase.turns
        assert turns is not None
        think_s = dict(zip(zip(turns.session.tolist(), turns.left.tolist(), strict=True), turns.think_s, strict=True))
        rows_of = defaultdict(list)
        for row in range(span.first_row, span.end_row):
            rows_of[int(columns.session[row])].append(row)
        for session, rows in rows_of.items():
            for before, after in itertools.pairwise(rows):
                wait_s = journal.due_s[after] - journal.end_s[before]
                if isinstance(phase, OpenLoop):
                    assert wait_s == pytest.approx(think_s[session, int(columns.left[after])], abs=1e-9)
                else:  # a request is replaced when the step under way ends
                    assert wait_s >= -1e-9
                followed[type(phase)] += 1
    assert min(followed.values()) > 20


def test_an_open_loop_keeps_its_rate_from_phase_to_phase() -> None:
    _, phases = driven(FAST)
    for _, span in phases[1:]:
        assert (span.end_row - span.first_row) / 60.0 == pytest.approx(10.0, rel=0.2)
        assert span.taken is None


def test_a_cache_with_room_has_all_that_was_sent_before_and_a_small_one_less() -> None:
    roomy, phases = driven(replace(FAST, kv_tokens=2_000_000))
    journal, span = roomy.journal(), phases[-1][1]
    assert hit_rate(roomy, span) == pytest.approx(expected(journal, span), abs=0.02)
    assert expected(journal, span) > 0.45
    small, phases = driven(replace(FAST, kv_tokens=8_000))
    assert hit_rate(small, phases[-1][1]) < expected(small.journal(), phases[-1][1]) - 0.3
    # What is not found is computed, and first tokens come later.
    assert usual_ttft_s(small, phases[-1][1]) > 1.1 * usual_ttft_s(roomy, span)


def test_sessions_of_an_earlier_phase_are_carried_on_with_what_the_cache_has_of_them() -> None:
    runner, phases = driven(replace(FAST, kv_tokens=2_000_000))
    columns = runner.journal().sessions
    assert columns is not None
    parts = [columns.session[span.first_row : span.end_row] for _, span in phases]
    carried = np.intersect1d(parts[1], parts[2])
    assert carried.size > 8
    # No number means two sessions: those that are new in a phase have numbers of their own.
    fresh = np.setdiff1d(parts[2], parts[1])
    assert np.intersect1d(fresh[fresh > parts[1].max()], parts[0]).size == 0


def test_the_same_seed_gives_the_same_run() -> None:
    one, two = driven(FAST)[0].journal(), driven(FAST)[0].journal()
    for name in ("due_s", "first_s", "end_s", "prompt_tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_what_a_simulation_cannot_do_with_sessions_is_refused() -> None:
    phase = open_loop(CHAT, 5.0, 10.0, 1, 0)
    with pytest.raises(LoadError, match="a simulated fleet has no sessions"):
        FleetSimRunner([FAST] * 2).run(phase)
    with pytest.raises(LoadError, match="fails requests has no sessions"):
        SimRunner(FAST, error_rate=0.1).run(phase)
    with pytest.raises(LoadError, match="ran out of rows"):
        SimRunner(FAST).run(closed_loop(CHAT, 2, 600.0, 0.1, 1, 0))


def test_a_turn_carried_over_in_flight_is_forgotten_once_it_ended() -> None:
    """What holds its KV when a phase begins is in the cache for as long as it is in flight, and then as all others."""
    runner, phases = driven(replace(profile.load("slow").engine, kv_tokens=16_000))
    span = phases[-1][1]
    journal = runner.journal()
    rows = np.arange(span.first_row, span.end_row)
    assert journal.sessions is not None
    _, first = np.unique(journal.sessions.session[rows], return_index=True)
    carried = rows[first][np.isin(journal.sessions.session[rows[first]], journal.sessions.session[: span.first_row])]
    before = np.array(
        [np.flatnonzero(journal.sessions.session[:r] == journal.sessions.session[r])[-1] for r in carried]
    )
    ended_within = (journal.end_s[before] > span.start_s) & (journal.due_s[carried] > journal.end_s[before] + 2.0)
    late = carried[ended_within & np.isfinite(journal.first_s[carried])]
    assert late.size
    found = runner._columns["found"][late].astype(np.int64)
    assert found.sum() < 0.5 * journal.cached_tokens[late].sum()
