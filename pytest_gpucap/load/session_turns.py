"""Turns of sessions, drawn or from a file, and how loops of them are planned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Floats, Int32s, Ints
from pytest_gpucap.load.draws import Purpose, random_generator, uniform
from pytest_gpucap.load.protocol import ClosedLoop, Journal, LoadError, OpenLoop, Status, Turns


@dataclass(frozen=True, slots=True)
class SessionTurns:
    """All turns of some sessions, session by session, shape (t,) each.

    Attributes:
        session: number of the session, from 0.
        prompt, output: tokens.
        before: tokens at the beginning of the prompt that the session has sent before, or that all sessions share.
        left: turns of the session after this one.
        think_s: from the end of the answer before; 0 for the first turn.
        place: of the session in its file; 0 for sessions that are drawn.
    """

    session: Ints
    prompt: Int32s
    output: Int32s
    before: Int32s
    left: Int32s
    think_s: Floats
    place: Ints

    def of(self, rows: Ints) -> SessionTurns:
        """Some of the turns."""
        return SessionTurns(*(getattr(self, name)[rows] for name in SessionTurns.__slots__))


@dataclass(frozen=True, slots=True)
class UnderWay:
    """Sessions of earlier phases that have turns left, those first that are being answered or were last; shape (k,).

    Attributes:
        number: of the session's text.
        prompt: tokens of it that were sent.
        e2e_s: how long an answer usually takes; 0 where none is known.
        left: turns of the session that were not sent; None: not known.
    """

    number: Ints
    prompt: Int32s
    e2e_s: float = 0.0
    left: Int32s | None = None


NONE: Final = UnderWay(np.zeros(0, np.int64), np.zeros(0, np.int32))
"""Nothing was sent before."""
MOST_PAST: Final = 4_000_000
"""Turns of sessions that may be under way when an open loop begins, at most: some hundred megabytes."""


def under_way(journal: Journal) -> UnderWay:
    """The sessions that have turns left, and whose last prompt the server has taken in."""
    columns = journal.sessions
    if columns is None:
        return NONE
    whole = journal.status == Status.OK
    usual = whole & ~journal.hot
    e2e_s = float(np.median(journal.e2e_s[usual])) if usual.any() else 0.0
    order = np.argsort(np.where(np.isnan(journal.end_s), math.inf, journal.end_s), kind="stable")[::-1]
    # The first of each session in this order is the last that became of it.
    _, at = np.unique(columns.session[order], return_index=True)
    rows = order[np.sort(at)]
    taken_in = whole | ((journal.status == Status.IN_FLIGHT) & ~np.isnan(journal.first_s))
    rows = rows[taken_in[rows] & (columns.left[rows] > 0)]
    return UnderWay(columns.session[rows], journal.prompt_tokens[rows], e2e_s, columns.left[rows])


def begun_before(
    known: SessionTurns,
    sessions_per_s: float,
    rate_rps: float,
    e2e_s: float,
    random: np.random.Generator,
    *,
    whose: str,
    fix: str,
) -> Floats:
    """When sessions began, before time 0, that may have turns left then; shape (n,), seconds, all negative.

    Args:
        known: sessions whose longest tells how long ago that may be.
        sessions_per_s: sessions that begin.
        rate_rps: turns of theirs.
        e2e_s: how long an answer usually takes.
        random: what is drawn from.
        whose: sessions, as a message names them.
        fix: what to do where they are too many.

    Raises:
        LoadError: if they have more than `MOST_PAST` turns.
    """
    _, waits_s = in_sessions(known.session, known.think_s + e2e_s)
    horizon_s = float(waits_s.max())
    if rate_rps * horizon_s > MOST_PAST:
        raise LoadError(
            f"{whose} last up to {horizon_s:.3g} s, and {sessions_per_s:.3g} begin each second: too many are under way "
            f"at once to be made; {fix}"
        )
    count = math.floor(sessions_per_s * horizon_s + uniform(random, 1)[0])
    begun_s: Floats = -horizon_s * uniform(random, count)
    return begun_s


def turns_ahead(turns: SessionTurns, begun_s: Floats, e2e_s: float) -> tuple[Ints, Floats]:
    """Which turns of sessions that began at `begun_s`, shape (s,), are due from time 0 on, and when each turn is."""
    _, waits_s = in_sessions(turns.session, turns.think_s + e2e_s)
    due_s = begun_s[turns.session] + waits_s
    return np.flatnonzero(due_s >= 0.0), due_s


def planned(
    turns: SessionTurns,
    start_s: Floats,
    duration_s: float,
    e2e_s: float,
    numbers: Ints,
    cached: Ints,
    first_prompt: int,
    fresh: Ints | None = None,
) -> OpenLoop:
    """An open loop of sessions whose first turns are due at `start_s`, shape (s,).

    Args:
        turns: of these sessions.
        start_s: see above.
        duration_s: of the phase.
        e2e_s: how long an answer usually takes.
        numbers: shape (s,), of the sessions' texts.
        cached: shape (t,), tokens at the start of each prompt that were sent before.
        first_prompt: see `OpenLoop`.
        fresh: see `Turns`.
    """
    first, waits_s = in_sessions(turns.session, turns.think_s)
    _, usual_s = in_sessions(turns.session, turns.think_s + e2e_s)
    earliest_s, due_s = start_s[turns.session] + waits_s, start_s[turns.session] + usual_s
    kept = np.flatnonzero(earliest_s < duration_s)
    kept = kept[np.argsort(due_s[kept], kind="stable")]
    after = np.arange(turns.session.size) - 1
    after[first] = -1
    place = np.full(turns.session.size, -1)
    place[kept] = np.arange(kept.size)
    found = turns.of(kept)
    return OpenLoop(
        duration_s,
        np.round(due_s[kept], 9),
        found.prompt,
        found.output,
        first_prompt,
        Turns(
            session=numbers[found.session],
            after=np.where(after[kept] < 0, -1, place[after[kept]]).astype(np.int64),
            think_s=found.think_s,
            cached=np.minimum(cached[kept], found.prompt - 1).astype(np.int32),
            left=found.left,
            count=start_s.size if fresh is None else fresh.size,
            fresh=fresh,
        ),
    )


def found_within(pool: SessionTurns, n: int, key: tuple[int, int]) -> tuple[Ints, Ints]:
    """Turns that are being answered at any one time, each in proportion to its answer.

    Args:
        pool: to draw from.
        n: how many.
        key: seed and stream of the phase.

    Returns:
        Their rows in the pool, and how many tokens of the answer are there already; shape (n,) each.
    """
    ends = np.cumsum(pool.output, dtype=np.int64)
    points = np.floor(uniform(random_generator(*key, Purpose.HOT), n) * ends[-1]).astype(np.int64)
    at = np.searchsorted(ends, points, side="right")
    return at, points - (ends[at] - pool.output[at])


def planned_closed(
    duration_s: float,
    start: SessionTurns,
    later: SessionTurns,
    whole: SessionTurns,
    cached: Ints,
    numbers: Ints,
    whole_numbers: Ints,
    first_prompt: int,
    count: int,
    fresh: Ints | None = None,
    *,
    hot: bool,
) -> ClosedLoop:
    """A closed loop that begins with one turn of each of n sessions, and goes on with the rest of these, then others.

    Args:
        duration_s: of the phase.
        start: the first turns, shape (n,).
        later: what is left of their sessions, whose numbers are places in `start`.
        whole: of sessions from their beginning.
        cached: shape (n,), tokens at the start of the first prompts that were sent before.
        numbers: shape (n,), of the texts of the first sessions.
        whole_numbers: shape (w,), of the texts of the whole ones.
        first_prompt: see `OpenLoop`.
        count: see `Turns`.
        fresh: see `Turns`.
        hot: the first turns are in mid-life.
    """
    concurrency = start.prompt.size
    after_later = np.where(
        ramps(start.left.astype(np.int64)) == 0, later.session, concurrency + np.arange(later.session.size) - 1
    )
    first_whole, _ = in_sessions(whole.session, whole.think_s)
    after_whole = concurrency + later.session.size + np.arange(whole.session.size) - 1
    after_whole[first_whole] = -1
    prompts = np.concatenate([start.prompt, later.prompt, whole.prompt])
    found = np.concatenate([cached, later.before, whole.before])
    return ClosedLoop(
        duration_s,
        concurrency,
        prompts,
        np.concatenate([start.output, later.output, whole.output]),
        concurrency if hot else 0,
        first_prompt,
        Turns(
            session=np.concatenate([numbers, numbers[later.session], whole_numbers[whole.session]]),
            after=np.concatenate([np.full(concurrency, -1), after_later, after_whole]).astype(np.int64),
            think_s=np.zeros(prompts.size),
            cached=int32(np.minimum(found, prompts - 1)),
            left=np.concatenate([start.left, later.left, whole.left]),
            count=count,
            fresh=fresh,
        ),
    )


def in_sessions(session: Ints, seconds: Floats) -> tuple[Ints, Floats]:
    """The first turn of each session, and at each turn the seconds since it: those of the turns after the first."""
    if session.size == 0:
        return np.zeros(0, np.int64), np.zeros(0)
    first = np.flatnonzero(np.concatenate([[True], np.diff(session) != 0]))
    total = np.cumsum(seconds)
    counts = np.diff(np.append(first, session.size))
    return first, total - np.repeat(total[first], counts)


def ramps(counts: Ints) -> Ints:
    """0, 1, ... up to each count, one after the other."""
    found: Ints = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def int32(values: Ints) -> Int32s:
    """The values with 32 bits."""
    found: Int32s = values.astype(np.int32)
    return found
