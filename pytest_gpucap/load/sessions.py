"""Sessions as a load: which requests belong together, which waits for which, and what a cache may hold of each.

The prompts of one session are beginnings of one and the same text: `prompts` makes a text from a number, and all turns
of a session have the number of the session. So what one turn sends is the beginning of what the next one sends. What
the server answered is not known when the text is made: as many tokens of the text stand in for an answer.

A phase begins in the stationary state. In an open loop, sessions that began before it have turns left whose times are
drawn as if earlier turns had been answered as fast as usual. In a closed loop, each place begins in the middle of a
session. What such sessions said before was never sent. So where sessions of earlier phases have turns left, they are
carried on: the next phase takes their numbers, so that the server finds what they said before in its cache.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Floats, Int32s, Ints
from pytest_gpucap.load.draws import Purpose, draw_lengths, random_generator, uniform
from pytest_gpucap.load.protocol import ClosedLoop, OpenLoop
from pytest_gpucap.load.recorded_sessions import all_turns, closed_recorded, open_recorded
from pytest_gpucap.load.session_turns import (
    NONE,
    SessionTurns,
    UnderWay,
    begun_before,
    found_within,
    in_sessions,
    int32,
    planned,
    planned_closed,
    ramps,
    turns_ahead,
    under_way,
)
from pytest_gpucap.requirement import Length, Sessions, Workload
from pytest_gpucap.workloads.lengths import described

__all__ = ["NONE", "UnderWay", "under_way"]

_SEED: Final = 20_260_102
_MANY, _LEAST, _MANY_TURNS = 8192, 512, 1 << 18
"""Sessions of which means and distributions are taken; fewer where they have very many turns together."""
_FEW: Final = 512
"""Sessions whose longest tells how far back sessions under way may have begun."""


def draw_sessions(workload: Workload, n: int, seed: int, stream: int, part: int = 0) -> SessionTurns:
    """All turns of `n` sessions.

    Args:
        workload: with sessions.
        n: how many.
        seed: of the whole measurement.
        stream: of the phase.
        part: sessions of other parts are independent.
    """
    sessions = _sessions(workload)
    random = {
        purpose: random_generator(seed, stream, purpose + len(Purpose) * part)
        for purpose in (Purpose.INPUT, Purpose.OUTPUT, Purpose.TURNS, Purpose.THINK)
    }
    turns = draw_lengths(sessions.turns, random[Purpose.TURNS], n)
    total = int(turns.sum())
    session = np.repeat(np.arange(n, dtype=np.int64), turns)
    starts = np.cumsum(turns, dtype=np.int64) - turns
    added = draw_lengths(sessions.new, random[Purpose.INPUT], total).astype(np.int64)
    if sessions.first is not None:
        added[starts] = draw_lengths(sessions.first, random[Purpose.INPUT], n)
    output = draw_lengths(workload.output_tokens, random[Purpose.OUTPUT], total)
    think_s = _think_s(sessions, random[Purpose.THINK], total)
    think_s[starts] = 0.0
    answered = np.zeros(total, np.int64)
    answered[1:] = output[:-1]
    answered[starts] = 0
    grown = np.cumsum(added + answered)
    prompt = workload.shared_prefix_tokens + grown - np.repeat(grown[starts] - added[starts], turns)
    before = np.zeros(total, np.int64)
    before[1:] = prompt[:-1]
    before[starts] = np.minimum(workload.shared_prefix_tokens, prompt[starts] - 1)
    left = np.repeat(turns, turns) - 1 - (np.arange(total) - np.repeat(starts, turns))
    found = SessionTurns(session, int32(prompt), output, int32(before), int32(left), think_s, np.zeros(total, np.int64))
    return found if sessions.context is None else _held_to(found, sessions.context)


def _held_to(turns: SessionTurns, context: int) -> SessionTurns:
    """Without the first turn of each session that does not fit, and all after it. The first of all fits."""
    order = np.arange(turns.session.size)
    beyond = np.flatnonzero(turns.prompt.astype(np.int64) + turns.output > context)
    count = int(turns.session[-1]) + 1 if turns.session.size else 0
    cut = np.full(count, turns.session.size)
    np.minimum.at(cut, turns.session[beyond], beyond)
    kept = turns.of(np.flatnonzero(order < cut[turns.session]))
    ends = np.searchsorted(kept.session, np.arange(count), side="right") - 1
    return replace(kept, left=int32(ends[kept.session] - np.arange(kept.session.size)))


@lru_cache(maxsize=8)
def typical(sessions: Sessions, outputs: Length, shared: int) -> SessionTurns:
    """The turns of many sessions, the same for every measurement: means and distributions come from them.

    Of sessions from a file they are all turns that are sent.
    """
    if sessions.recorded is not None:
        return all_turns(sessions.recorded)
    workload = Workload(output_tokens=outputs, shared_prefix_tokens=shared, sessions=sessions)
    return draw_sessions(workload, max(_LEAST, min(_MANY, int(_MANY_TURNS / sessions.turns.mean))), _SEED, 0)


def typical_turns(workload: Workload) -> SessionTurns:
    """`typical` of a workload with sessions."""
    return typical(_sessions(workload), workload.output_tokens, workload.shared_prefix_tokens)


def mean_turns(workload: Workload) -> float:
    """Requests of a session on average, after sessions were cut to their context."""
    turns = typical_turns(workload)
    return turns.session.size / (int(turns.session[-1]) + 1)


def with_session_lengths(workload: Workload) -> Workload:
    """The workload with `input_tokens` that have the mean, spread and bounds of whole prompts.

    A workload without sessions stays as it is. The load itself uses the sessions.
    """
    if workload.sessions is None:
        return workload
    turns = typical_turns(workload)
    recorded = workload.sessions.recorded is not None
    outputs = described(turns.output) if recorded else workload.output_tokens
    return replace(workload, input_tokens=described(turns.prompt), output_tokens=outputs)


def longest_turn(workload: Workload) -> tuple[int, int]:
    """Input and output tokens of the longest request that a session may send."""
    sessions, answer = _sessions(workload), workload.output_tokens.high
    if sessions.recorded is not None:
        turns = all_turns(sessions.recorded)
        longest = int((turns.prompt.astype(np.int64) + turns.output).argmax())
        return int(turns.prompt[longest]), int(turns.output[longest])
    grown = workload.shared_prefix_tokens + sessions.opening.high
    grown += (sessions.turns.high - 1) * (sessions.new.high + answer)
    return grown if sessions.context is None else min(grown, sessions.context - answer), answer


def session_decode_context(workload: Workload) -> float:
    """See `load.trace.decode_context`."""
    turns = typical_turns(workload)
    read, written = turns.prompt.astype(np.float64), turns.output.astype(np.float64)
    return float(np.sum(written * (read + written / 2)) / np.sum(written))


def open_sessions(
    workload: Workload,
    session_due_s: Floats,
    rate_rps: float,
    duration_s: float,
    key: tuple[int, int],
    first_prompt: int,
    before: UnderWay,
) -> OpenLoop:
    """An open loop of sessions.

    Args:
        workload: with sessions.
        session_due_s: shape (s,), when the first turns of sessions are due.
        rate_rps: mean requests per second.
        duration_s: how long the phase lasts.
        key: seed and stream of the phase.
        first_prompt: number of the first session's text.
        before: sessions of earlier phases.

    Raises:
        LoadError: if more sessions would be under way than can be made.
    """
    recorded = _sessions(workload).recorded
    if recorded is not None:
        return open_recorded(recorded, session_due_s, rate_rps, duration_s, key, first_prompt, before)
    fresh = draw_sessions(workload, session_due_s.size, *key)
    past, past_due_s = _past(workload, rate_rps / mean_turns(workload), key, before.e2e_s)
    n = session_due_s.size
    turns = SessionTurns(
        *(
            np.concatenate([getattr(fresh, name), getattr(past, name) + (n if name == "session" else 0)])
            for name in SessionTurns.__slots__
        )
    )
    start_s = np.concatenate([session_due_s, past_due_s])
    first, _ = in_sessions(turns.session, turns.think_s)
    number = first_prompt + np.arange(start_s.size, dtype=np.int64)
    cached = turns.before.astype(np.int64)
    # A session that is under way has sent nothing yet, unless an earlier phase sent it.
    under = first[n:]
    cached[under] = np.minimum(workload.shared_prefix_tokens, turns.prompt[under] - 1)
    carried = _carried_on(turns.prompt[under], before, key)
    number[n + carried[0]], cached[under[carried[0]]] = carried[1], carried[2]
    return planned(turns, start_s, duration_s, before.e2e_s, number, cached, first_prompt)


def closed_sessions(
    workload: Workload,
    concurrency: int,
    duration_s: float,
    rows: int,
    key: tuple[int, int],
    first_prompt: int,
    before: UnderWay,
    *,
    hot: bool,
) -> ClosedLoop:
    """A closed loop with `concurrency` sessions under way; the next turn follows at once.

    The first `concurrency` rows are turns somewhere within a session, each in proportion to its answer. With `hot` they
    are in mid-life as well (see `schedule.closed_loop`). The rest of their sessions follows, then whole sessions.

    Args:
        workload: with sessions.
        concurrency: sessions under way.
        duration_s: how long the phase lasts.
        rows: turns of whole sessions at least.
        key: seed and stream of the phase.
        first_prompt: number of the first session's text.
        before: sessions of earlier phases.
        hot: see above.
    """
    recorded = _sessions(workload).recorded
    if recorded is not None:
        return closed_recorded(recorded, concurrency, duration_s, rows, key, first_prompt, before, hot=hot)
    pool = draw_sessions(workload, max(1024, 4 * concurrency), *key, part=1)
    whole = draw_sessions(workload, max(16, math.ceil(1.2 * rows / mean_turns(workload))), *key)
    at, answered = found_within(pool, concurrency, key)
    age = answered.astype(np.int32) if hot else np.zeros(concurrency, np.int32)
    rest = pool.left[at].astype(np.int64)
    follow = np.repeat(at + 1, rest) + ramps(rest)
    owner = np.repeat(np.arange(concurrency, dtype=np.int64), rest)
    start, later = pool.of(at), pool.of(follow)
    starts = np.cumsum(rest) - rest
    prompt = start.prompt + age
    cached = np.minimum(workload.shared_prefix_tokens, prompt - 1).astype(np.int64)
    number = first_prompt + np.arange(concurrency, dtype=np.int64)
    carried = _carried_on(start.prompt, before, key)
    number[carried[0]], cached[carried[0]] = carried[1], carried[2]
    # The turn after one in mid-life finds the longer prompt that was sent for it.
    later_before = later.before.astype(np.int64)
    firsts = starts[rest > 0]
    later_before[firsts] = prompt[rest > 0]
    started = int(whole.session[-1]) + 1
    return planned_closed(
        duration_s,
        replace(start, prompt=prompt, output=start.output - age),
        replace(later, session=owner, before=int32(later_before)),
        whole,
        cached,
        number,
        first_prompt + concurrency + np.arange(started, dtype=np.int64),
        first_prompt,
        concurrency + started,
        hot=hot,
    )


def _past(workload: Workload, sessions_per_s: float, key: tuple[int, int], e2e_s: float) -> tuple[SessionTurns, Floats]:
    """The turns that sessions begun before time 0 have left, and when the first of each session's is due."""
    few = draw_sessions(workload, _FEW, *key, part=2)
    begun_s = begun_before(
        few,
        sessions_per_s,
        sessions_per_s * _sessions(workload).turns.mean,
        e2e_s,
        random_generator(*key, Purpose.PAST),
        whose="sessions",
        fix="declare fewer turns or a shorter think time",
    )
    turns = draw_sessions(workload, begun_s.size, *key, part=3)
    ahead, due_s = turns_ahead(turns, begun_s, e2e_s)
    sessions, session = np.unique(turns.session[ahead], return_inverse=True)
    found = replace(turns.of(ahead), session=session.astype(np.int64))
    first, _ = in_sessions(found.session, found.think_s)
    start_s = due_s[ahead][first] if sessions.size else np.zeros(0)
    think_s = found.think_s.copy()
    think_s[first] = 0.0
    return replace(found, think_s=think_s), start_s


def _carried_on(prompts: Int32s, before: UnderWay, key: tuple[int, int]) -> tuple[Ints, Ints, Ints]:
    """Which of the sessions under way carry on one of an earlier phase: their places, its number, tokens it has sent.

    Those with most to say carry on those that have said most, so that they share as much as they would.
    """
    k = min(prompts.size, before.number.size)
    if k == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    recent = np.arange(k)
    chosen = np.argsort(uniform(random_generator(*key, Purpose.CARRIED), prompts.size))[:k]
    places = chosen[np.argsort(prompts[chosen], kind="stable")]
    theirs = recent[np.argsort(before.prompt[recent], kind="stable")]
    return places, before.number[theirs], np.minimum(before.prompt[theirs], prompts[places] - 1).astype(np.int64)


def _think_s(sessions: Sessions, random: np.random.Generator, n: int) -> Floats:
    if not sessions.think_cv:
        return np.full(n, sessions.think_s)
    from scipy.special import ndtri  # imported late: only this kind needs it

    variance = math.log1p(sessions.think_cv**2)
    drawn: Floats = sessions.think_s * np.exp(math.sqrt(variance) * ndtri(uniform(random, n)) - variance / 2)
    return drawn


def _sessions(workload: Workload) -> Sessions:
    if workload.sessions is None:
        raise ValueError("the workload has no sessions")
    return workload.sessions
