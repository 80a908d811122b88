"""Sessions on a simulated server in virtual time: a turn is due some time after the answer to the one before.

The requests of a phase are a plan. A planned request becomes a row of the engine when it is due, so rows stand in the
order of being due, as they do without sessions. The arrays of a plan are indexed by the names below.
"""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.jit import compiled
from pytest_gpucap.load.protocol import LoadPhase, OpenLoop, Turns
from pytest_gpucap.simulator import engine

# Rows of a plan: whole numbers of each request.
PROMPT, OUTPUT, PACE, SHARED, MARK, FOLLOWS, FIRST, READY, HELD_BY = range(9)
PLAN = 9
"""`SHARED`, `MARK`: as in the engine. `FOLLOWS`: the place of the next turn, counted from 1; 0: there is none. `FIRST`:
1 for a row that follows none. `HELD_BY`: the row of an earlier phase, counted from 1, whose KV is what was sent before,
as long as it is in flight; 0: there is none. `READY`: no figure of a request, but the places of those that are due
next: of an open loop a binary heap by when they are due, of a closed one a queue."""

# Rows of a plan: seconds of each request.
DUE, THINK = range(2)
PLAN_TIMES = 2

# State.
FOLLOWED, READY_HEAD, READY_TAIL, NEXT_FIRST = range(4)
STATES = 4
"""`FOLLOWED`: place in the engine's list of ended requests up to which following turns were made ready. `READY_HEAD`,
`READY_TAIL`: of `READY`. `NEXT_FIRST`: no first turn stands before it that was not sent."""


def plan_of(
    phase: LoadPhase, turns: Turns, start_s: float, paces: Ints, marks: Ints, held_by: Ints
) -> tuple[Ints, Floats]:
    """The plan of a phase.

    Args:
        phase: to run.
        turns: of the phase.
        start_s: when it begins.
        paces: shape (n,), see `engine`.
        marks: shape (n,): of what a session sent in an earlier phase; of other sessions `engine.CACHED_FOR_EVER`.
        held_by: shape (n,), see above.

    Returns:
        Shapes (`PLAN`, n) and (`PLAN_TIMES`, n).
    """
    n = phase.prompt_tokens.size
    plan, times = np.zeros((PLAN, n), np.int64), np.full((PLAN_TIMES, n), np.nan)
    plan[PROMPT], plan[OUTPUT], plan[PACE] = phase.prompt_tokens, phase.output_tokens, paces
    plan[SHARED], plan[MARK], plan[FIRST], plan[HELD_BY] = turns.cached, marks, turns.after < 0, held_by
    follows = np.flatnonzero(turns.after >= 0)
    plan[FOLLOWS, turns.after[follows]] = follows + 1
    times[THINK] = turns.think_s
    if isinstance(phase, OpenLoop):
        times[DUE] = start_s + phase.due_s
    return plan, times


@compiled
def _push(plan: engine.Table, times: engine.Times, at: Ints, p: int) -> None:
    """Put a request onto the heap of an open loop."""
    i = at[READY_TAIL]
    at[READY_TAIL] += 1
    plan[READY, i] = p
    while i > 0:
        above = (i - 1) // 2
        if times[DUE, plan[READY, above]] <= times[DUE, p]:
            break
        plan[READY, i] = plan[READY, above]
        i = above
    plan[READY, i] = p


@compiled
def _pop(plan: engine.Table, times: engine.Times, at: Ints) -> int:
    """Take the request that is due next from the heap of an open loop."""
    found = plan[READY, 0]
    at[READY_TAIL] -= 1
    size = at[READY_TAIL]
    last = plan[READY, size]
    i = 0
    while 2 * i + 1 < size:
        below = 2 * i + 1
        if below + 1 < size and times[DUE, plan[READY, below + 1]] < times[DUE, plan[READY, below]]:
            below += 1
        if times[DUE, last] <= times[DUE, plan[READY, below]]:
            break
        plan[READY, i] = plan[READY, below]
        i = below
    if size > 0:
        plan[READY, i] = last
    return int(found)


@compiled
def _follow(
    params: Floats,
    whole: Ints,
    lists: engine.Table,
    table: engine.Table,
    times: engine.Times,
    plan: engine.Table,
    plan_times: engine.Times,
    at: Ints,
    closed: bool,
) -> None:
    """Make the turns ready that follow requests which have ended, and note what the cache then had free."""
    until = whole[engine.SHOWN_HEAD] if closed else whole[engine.SHOWN_TAIL]
    while at[FOLLOWED] < until:
        r = lists[engine.ENDED, at[FOLLOWED]]
        at[FOLLOWED] += 1
        table[engine.MARK, r] = whole[engine.WRITTEN] + int(params[engine.KV_TOKENS]) - whole[engine.KV]
        if table[engine.PLANNED, r] == 0:
            continue
        p = plan[FOLLOWS, table[engine.PLANNED, r] - 1] - 1
        if p < 0:
            continue
        plan[MARK, p] = table[engine.MARK, r]
        if closed:
            plan[READY, at[READY_TAIL]] = p
            at[READY_TAIL] += 1
        else:
            plan_times[DUE, p] = times[engine.END, r] + plan_times[THINK, p]
            _push(plan, plan_times, at, p)


@compiled
def _next_first(plan: engine.Table, at: Ints) -> int:
    """The next first turn of a session; -1 when there is none."""
    while at[NEXT_FIRST] < plan.shape[1] and plan[FIRST, at[NEXT_FIRST]] == 0:
        at[NEXT_FIRST] += 1
    return int(at[NEXT_FIRST]) if at[NEXT_FIRST] < plan.shape[1] else -1


@compiled
def _send(
    now: float, whole: Ints, lists: engine.Table, table: engine.Table, times: engine.Times, plan: engine.Table, p: int,
    due_s: float,
) -> None:  # fmt: skip
    """A planned request is due: it becomes the engine's next row, and waits."""
    held_by = plan[HELD_BY, p] - 1
    if held_by >= 0 and times[engine.END, held_by] <= now:
        plan[MARK, p] = table[engine.MARK, held_by]
    r = whole[engine.NEXT_ROW]
    table[engine.PROMPT, r] = table[engine.TARGET, r] = plan[PROMPT, p]
    table[engine.OUTPUT, r], table[engine.PACE, r] = plan[OUTPUT, p], plan[PACE, p]
    table[engine.SHARED, r], table[engine.MARK, r] = plan[SHARED, p], plan[MARK, p]
    table[engine.PLANNED, r] = p + 1
    times[engine.DUE, r] = due_s
    lists[engine.QUEUE, whole[engine.TAIL]] = r
    whole[engine.TAIL] += 1
    whole[engine.NEXT_ROW] += 1


@compiled
def _next_due_s(plan: engine.Table, plan_times: engine.Times, at: Ints) -> float:
    """When the next request of an open loop is due; infinite when none is."""
    due_s = np.inf
    first = _next_first(plan, at)
    if first >= 0:
        due_s = plan_times[DUE, first]
    if at[READY_TAIL] > 0:
        due_s = min(due_s, plan_times[DUE, plan[READY, 0]])
    return float(due_s)


@compiled
def _arrive(
    now: float,
    whole: Ints,
    lists: engine.Table,
    table: engine.Table,
    times: engine.Times,
    plan: engine.Table,
    plan_times: engine.Times,
    at: Ints,
    concurrency: int,
    until_s: float,
) -> bool:
    """Queue what is due by now; false if a closed loop has no request left."""
    if concurrency == 0:
        while _next_due_s(plan, plan_times, at) <= now:
            p = _next_first(plan, at)
            if p < 0 or (at[READY_TAIL] > 0 and plan_times[DUE, plan[READY, 0]] < plan_times[DUE, p]):
                p = _pop(plan, plan_times, at)
            else:
                at[NEXT_FIRST] += 1
            _send(now, whole, lists, table, times, plan, p, plan_times[DUE, p])
        return True
    in_flight = whole[engine.RUNNING] + whole[engine.FRONT] + whole[engine.TAIL] - whole[engine.HEAD]
    in_flight += whole[engine.SHOWN_TAIL] - whole[engine.SHOWN_HEAD]
    while in_flight < concurrency and now < until_s:
        if at[READY_HEAD] < at[READY_TAIL]:
            p = plan[READY, at[READY_HEAD]]
            at[READY_HEAD] += 1
        else:
            p = _next_first(plan, at)
            if p < 0:
                return False
            at[NEXT_FIRST] += 1
        _send(now, whole, lists, table, times, plan, p, now)
        in_flight += 1
    return True


@compiled
def advance(
    params: Floats,
    real: Floats,
    whole: Ints,
    noise: Floats,
    lists: engine.Table,
    table: engine.Table,
    times: engine.Times,
    gaps: Ints,
    tokens: Ints,
    bin_s: float,
    plan: engine.Table,
    plan_times: engine.Times,
    at: Ints,
    concurrency: int,
    until_s: float,
) -> int:
    """Run steps until `until_s`, taking in planned requests as they become due; see `engine.advance`.

    Arguments by name:
        params, real, whole, noise, lists, table, times, gaps, tokens, bin_s: as for `engine.advance`. There is a row
            for every request of the plan from ``whole[NEXT_ROW]`` on.
        plan, plan_times, at: see above.
        concurrency: 0 for an open loop.
        until_s: when to return.

    Returns:
        0 when the time is reached, 1 when the noise block must be renewed, 2 when a closed loop has no request left.
    """
    while True:
        now = real[engine.TIME]
        engine.show_ended(now, whole, lists, times)
        _follow(params, whole, lists, table, times, plan, plan_times, at, concurrency > 0)
        if not _arrive(now, whole, lists, table, times, plan, plan_times, at, concurrency, until_s):
            return 2
        if now >= until_s:
            return 0
        if whole[engine.NOISE_AT] + engine.LEAST_NOISE > noise.size:
            return 1
        made = engine.step(params, real, whole, noise, lists, table, times, gaps)
        if made < 0:
            wake = until_s
            if concurrency == 0:
                wake = min(wake, _next_due_s(plan, plan_times, at))
            if whole[engine.SHOWN_HEAD] < whole[engine.SHOWN_TAIL]:
                wake = min(wake, times[engine.END, lists[engine.ENDED, whole[engine.SHOWN_HEAD]]])
            engine.idle_until(real, wake)
        else:
            tokens[min(tokens.size - 1, int(real[engine.SHOWN] / bin_s))] += made
