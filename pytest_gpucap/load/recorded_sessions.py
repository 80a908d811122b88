"""Sessions from a file as a load: which of them a phase sends, and which turns.

Sessions are numbered through a measurement, and every `RecordedSessions.count` numbers are one round through the file.
So none begins twice before every other one has begun. The number of a session modulo that count is its place in the
file. The rest of the number tells apart what is not to share blocks of tokens: the rounds, and sessions that a phase
finds under way. Such sessions are drawn from the whole file, and begin somewhere within.

A request that a closed loop finds in mid-life has its whole prompt, and what is left of its answer.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Bools, Floats, Ints
from pytest_gpucap.load.draws import Purpose, random_generator, uniform
from pytest_gpucap.load.prompt_lengths import rows_of
from pytest_gpucap.load.protocol import ClosedLoop, OpenLoop
from pytest_gpucap.load.session_turns import (
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
)
from pytest_gpucap.requirement import RecordedSessions

_FOUND: Final = 1 << 20
"""Rounds through the file from here on are of sessions that are found under way."""
_PER_PHASE: Final = 1 << 22
"""Of such sessions, numbers of rounds that each phase may use."""


@lru_cache(maxsize=4)
def all_turns(recorded: RecordedSessions) -> SessionTurns:
    """Every turn that is sent of every session."""
    whole = np.ones(recorded.count, np.bool_)
    return turns_from(recorded, np.arange(recorded.count), np.zeros(recorded.count, np.int64), whole)


def turns_from(recorded: RecordedSessions, places: Ints, since: Ints, whole: Bools) -> SessionTurns:
    """The turns of some sessions from one on.

    Args:
        recorded: with these sessions.
        places: shape (n,), of the sessions in the file.
        since: shape (n,), the first turn of each that is meant, counted from 0.
        whole: shape (n,), other requests of the file were sent as well: what a prompt has in common with them was sent
            before. Else only what it has in common with the turn before it.
    """
    counts = recorded.turns[places] - since
    session = np.repeat(np.arange(places.size, dtype=np.int64), counts)
    within = ramps(counts)
    row = recorded.begin[places][session] + since[session] + within
    own = np.where(within > 0, recorded.own[row], 0)
    think_s = recorded.think_s[row].copy()
    think_s[within == 0] = 0.0
    return SessionTurns(
        session=session,
        prompt=recorded.prompt[row],
        output=recorded.output[row],
        before=int32(np.where(whole[session], recorded.shared[row], own)),
        left=int32(counts[session] - 1 - within),
        think_s=think_s,
        place=places[session],
    )


def numbered(recorded: RecordedSessions, first: int, n: int) -> Ints:
    """The numbers of the sessions that begin next, shape (n,); their places are these modulo the count of sessions.

    Args:
        recorded: all sessions.
        first: how many have begun.
        n: how many shall begin.
    """
    serials = first + np.arange(n, dtype=np.int64)
    if recorded.in_order:
        return serials
    return serials // recorded.count * recorded.count + rows_of(first, n, recorded.count, recorded.order)


def recorded_starts_s(recorded: RecordedSessions, sessions_per_s: float, duration_s: float, first: int) -> Floats:
    """When sessions begin as the file says, stretched to a mean rate, shape (n,); the next one begins at 0.

    After the last session the file starts over.

    Args:
        recorded: with starts, in the order of the file.
        sessions_per_s: mean rate.
        duration_s: begin before this.
        first: how many have begun.
    """
    starts_s = recorded.start_s
    assert starts_s is not None  # noqa: S101 - checked where arrivals are declared
    period_s = float(starts_s[-1] - starts_s[0]) * starts_s.size / max(1, starts_s.size - 1)
    stretch = starts_s.size / period_s / sessions_per_s
    entry = first % starts_s.size
    rounds = math.ceil(duration_s / (period_s * stretch)) + 1
    once_s = starts_s[np.newaxis, :] + period_s * np.arange(rounds)[:, np.newaxis]
    found: Floats = (once_s.ravel()[entry:] - starts_s[entry]) * stretch
    return found[found < duration_s]


def open_recorded(
    recorded: RecordedSessions,
    session_due_s: Floats,
    rate_rps: float,
    duration_s: float,
    key: tuple[int, int],
    first_prompt: int,
    before: UnderWay,
) -> OpenLoop:
    """See `sessions.open_sessions`."""
    n = session_due_s.size
    fresh = numbered(recorded, first_prompt, n)
    places, since, begun_s = _under_way(recorded, rate_rps, key, before.e2e_s)
    numbers = _found_numbers(recorded, places, key)
    chosen, theirs, from_turn = _carried_on(recorded, places.size, before, key)
    numbers[chosen], places[chosen], since[chosen] = theirs, theirs % recorded.count, from_turn
    turns = turns_from(
        recorded,
        np.concatenate([fresh % recorded.count, places]),
        np.concatenate([np.zeros(n, np.int64), since]),
        np.arange(n + places.size) < n,
    )
    cached = turns.before.astype(np.int64)
    first, _ = in_sessions(turns.session, turns.think_s)
    cached[first[n + chosen]] = recorded.own[recorded.begin[places[chosen]] + since[chosen]]
    start_s = np.concatenate([session_due_s, begun_s])
    all_numbers = np.concatenate([fresh, numbers])
    return planned(turns, start_s, duration_s, before.e2e_s, all_numbers, cached, first_prompt, fresh)


def closed_recorded(
    recorded: RecordedSessions,
    concurrency: int,
    duration_s: float,
    rows: int,
    key: tuple[int, int],
    first_prompt: int,
    before: UnderWay,
    *,
    hot: bool,
) -> ClosedLoop:
    """See `sessions.closed_sessions`."""
    pool = all_turns(recorded)
    begins = np.concatenate([[0], np.cumsum(recorded.turns)])
    at, answered = found_within(pool, concurrency, key)
    share = answered / pool.output[at]
    numbers = _found_numbers(recorded, pool.place[at], key)
    chosen, theirs, from_turn = _carried_on(recorded, concurrency, before, key)
    numbers[chosen] = theirs
    at[chosen] = begins[theirs % recorded.count] + from_turn
    start = pool.of(at)
    places = start.place
    cached = np.zeros(concurrency, np.int64)
    cached[chosen] = recorded.own[recorded.begin[places[chosen]] + from_turn]
    left = start.left.astype(np.int64)
    later = turns_from(recorded, places, recorded.turns[places] - 1 - left, np.zeros(concurrency, np.bool_))
    later = later.of(np.flatnonzero(ramps(left + 1) > 0))
    mean_turns = float(recorded.turns.mean())
    fresh = numbered(recorded, first_prompt, max(16, math.ceil(1.2 * rows / mean_turns)))
    nothing, every = np.zeros(fresh.size, np.int64), np.ones(fresh.size, np.bool_)
    whole = turns_from(recorded, fresh % recorded.count, nothing, every)
    if hot:
        rest = np.ceil(start.output * (1.0 - share)).astype(np.int64)
        start = replace(start, output=np.maximum(1, int32(rest)))
    return planned_closed(
        duration_s, start, later, whole, cached, numbers, fresh, first_prompt, fresh.size, fresh, hot=hot
    )


def _under_way(
    recorded: RecordedSessions, rate_rps: float, key: tuple[int, int], e2e_s: float
) -> tuple[Ints, Ints, Floats]:
    """Sessions begun before time 0 with turns left: their places, the first turn left, and when that one is due."""
    sessions_per_s = rate_rps / float(recorded.turns.mean())
    random = random_generator(*key, Purpose.PAST)
    begun_s = begun_before(
        all_turns(recorded),
        sessions_per_s,
        rate_rps,
        e2e_s,
        random,
        whose=f"sessions of {recorded.path.name}",
        fix="give a shorter think= behind the file",
    )
    count = begun_s.size
    places = np.floor(uniform(random, count) * recorded.count).astype(np.int64)
    drawn = turns_from(recorded, places, np.zeros(count, np.int64), np.zeros(count, np.bool_))
    ahead, due_s = turns_ahead(drawn, begun_s, e2e_s)
    session, at = np.unique(drawn.session[ahead], return_index=True)
    rows = ahead[at]
    return places[session], recorded.turns[places[session]] - 1 - drawn.left[rows], due_s[rows]


def _found_numbers(recorded: RecordedSessions, places: Ints, key: tuple[int, int]) -> Ints:
    """Numbers of sessions that a phase finds under way, of which no other session of the measurement has one."""
    rounds = _FOUND + key[1] * _PER_PHASE + np.arange(places.size, dtype=np.int64)
    found: Ints = rounds * recorded.count + places
    return found


def _carried_on(recorded: RecordedSessions, n: int, before: UnderWay, key: tuple[int, int]) -> tuple[Ints, Ints, Ints]:
    """Which of n sessions that are under way carry on one of an earlier phase, those answered last before others.

    Returns:
        Their places among the n, the number of the session that each carries on, and the turn that it goes on with;
        shape (k,) each.
    """
    k = min(n, before.number.size)
    if k == 0 or before.left is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    chosen = np.argsort(uniform(random_generator(*key, Purpose.CARRIED), n))[:k]
    theirs = before.number[:k]
    return chosen, theirs, recorded.turns[theirs % recorded.count] - before.left[:k]


def repeated(recorded: RecordedSessions, sessions: Ints) -> str:
    """What is to be said of sessions that began more than once, in one sentence; empty if none did.

    Args:
        recorded: all sessions. Those of blocks share nothing with an earlier round through the file.
        sessions: shape (n,), the numbers of all requests' sessions.
    """
    began = np.unique(sessions).size
    if not recorded.personal or began <= recorded.count:
        return ""
    return (
        f"{began} sessions began, and {recorded.path.name} has {recorded.count}: each began "
        f"{began / recorded.count:.3g} times on average, and a server with a prefix cache does less work for repeats"
    )
