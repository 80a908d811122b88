"""The queue on top of an engine whose speed is known: many short, independent replications, event by event.

Between two events every running request gets its tokens at the same pace, ``speed[n]`` seconds per token with n
running. So only arrivals, completions, stops of the engine and a full KV cache are events. A prompt's prefill delays
all others by its length, which on average is what mixed steps of chunked prefill do.

Everything here is compiled by numba where it is installed. Arrays are grouped in named tuples, which compiled code
passes by value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.jit import compiled

GAP_LOWEST_S = 1e-4
"""Upper edge of the first bin of inter-token gaps: no server generates tokens of one request faster."""
GAP_GROWTH = 1.02
"""Factor between the edges of neighbouring bins of gaps: a percentile read off them is right to 2%."""
GAP_BINS = 700
"""Bins of gaps: the last one begins at about 100 s, longer than any gap of a server that works."""
LEAST_PACE = 0.5
"""Requests that hold few KV tokens run at no less than this share of the curve's time, which is that of requests of
mean context: however little they hold, the weights must be read."""
LEAST_CHUNK = 16.0
"""Prompt tokens for which a step has room at least, however many requests run."""
STEP_PHASE = 0.6180339887498949
"""The inverse golden ratio. Its multiples, modulo 1, spread the moments at which requests meet a running step
evenly."""
STALL_PHASE = 0.7548776662466927
"""The inverse plastic number. Its multiples spread stops evenly as well, and independently of the step phases."""

UNTIL, ARRIVAL, COMPLETION, FULL, STALL, PACE = range(6)
"""What happens next: the simulation's end, an arrival, a completion, a full KV cache, a stop of the engine, another
pace."""


class QueueServer(NamedTuple):
    """What the simulation knows of the server.

    Attributes:
        speed: shape (m,): seconds per token with n running, by n from 0; beyond the end its last slope goes on.
        prefill_s: engine seconds per prompt token, in a prompt of `even_prompt` tokens.
        max_seqs, kv_tokens: the server's limits.
        kv_token_s, mean_context: seconds per step for each KV token held beyond `mean_context` per running request.
        prefill_growth_s, even_prompt: seconds by which each prompt token takes longer for each token of its prompt
            beyond `even_prompt`.
        stall_per_s: stops of the engine per second.
        stall_s: shape (k,): how long stops last; each length is equally likely.
        path: shape (p,): factors on all times, one after the other and over again; `path_bin_s` is how long each holds.
        step_tokens: tokens of one step at most, prompt and generated: the budget of chunked prefill. Infinite where
            unknown: all prompts that wait are then prefilled before the next token.
    """

    speed: Floats
    prefill_s: float
    max_seqs: int
    kv_tokens: float
    kv_token_s: float
    mean_context: float
    prefill_growth_s: float
    even_prompt: float
    stall_per_s: float
    stall_s: Floats
    path: Floats
    path_bin_s: float
    step_tokens: float


class QueueArrivals(NamedTuple):
    """Requests in order of arrival, shape (r,) each: seconds from the start, prompt tokens, output tokens.

    `cached`: tokens at the start of the prompt that need no prefill, because the session sent them before.
    """

    due_s: Floats
    prompt: Ints
    output: Ints
    cached: Ints


class QueueStart(NamedTuple):
    """Requests that run at time 0, shape (k,) each: tokens to go, and KV tokens held."""

    left: Ints
    context: Ints


class QueueLatencies(NamedTuple):
    """What arrivals meet, shape (r,) each, written as far as they get.

    TTFT and E2E from being due, and requests in flight at the moment of arrival.
    """

    ttft_s: Floats
    e2e_s: Floats
    seen: Floats


@compiled
def gap_bin(seconds: float) -> int:
    """The bin of a gap between tokens."""
    if seconds <= GAP_LOWEST_S:
        return 0
    return min(GAP_BINS - 1, math.ceil(math.log(seconds / GAP_LOWEST_S) / math.log(GAP_GROWTH)))


@compiled
def heap_push(key: Floats, item: Ints, size: int, k: float, i: int) -> int:
    """Push onto the binary heap of (key, item), the smallest key first; return its new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if key[parent] <= k:
            break
        key[at] = key[parent]
        item[at] = item[parent]
        at = parent
    key[at] = k
    item[at] = i
    return size + 1


@compiled
def heap_pop(key: Floats, item: Ints, size: int) -> int:
    """Remove the smallest and return the heap's new size."""
    size -= 1
    k, i = key[size], item[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and key[child + 1] < key[child]:
            child += 1
        if key[child] >= k:
            break
        key[at] = key[child]
        item[at] = item[child]
        at = child
    key[at] = k
    item[at] = i
    return size


@compiled
def step_pace_s(speed: Floats, n: int, kv_excess_s: float) -> float:
    """Seconds per token with n running, whose KV tokens beyond the mean cost `kv_excess_s` a step."""
    last = speed.size - 1
    pace: float = speed[n] if n <= last else speed[last] + (speed[last] - speed[last - 1]) * (n - last)
    return max(LEAST_PACE * pace, pace + kv_excess_s)


@compiled
def _tokens_s(tokens: float, pause: float, chunks_per_s: float, pace: float) -> float:
    """Seconds until those that run have got so many tokens each, when so much prefill comes first."""
    if tokens < pause * chunks_per_s:
        return tokens * (pace + 1.0 / chunks_per_s)
    return tokens * pace + pause


@compiled
def _next_event(
    time: float, n: int, halt: float, pause: float, chunks_per_s: float, finish_tokens: float, full_tokens: float,
    pace: float, due_s: float, stall_at_s: float, pace_at_s: float, until_s: float,
) -> tuple[int, float]:  # fmt: skip
    """What happens next, and when.

    Args:
        time: now.
        n: requests running.
        halt: seconds for which the engine stands still.
        pause: seconds of prefill that come then.
        chunks_per_s: steps over which a second of prefill is spread; in each, those that run get a token.
        finish_tokens: tokens until the next of them completes.
        full_tokens: tokens that each of them gets until the KV cache is full.
        pace: seconds per token.
        due_s: the next arrival; infinite where there is none.
        stall_at_s: when the engine stops next.
        pace_at_s: when the pace changes next.
        until_s: end of the simulation.
    """
    event_s = until_s
    kind = UNTIL
    if due_s < event_s:
        event_s = max(time, due_s)
        kind = ARRIVAL
    if n > 0:
        finish_s = time + halt + _tokens_s(max(0.0, finish_tokens), pause, chunks_per_s, pace)
        if finish_s < event_s:
            event_s = finish_s
            kind = COMPLETION
        full_s = time + halt + _tokens_s(max(0.0, full_tokens), pause, chunks_per_s, pace)
        if n > 1 and full_s < event_s:
            event_s = full_s
            kind = FULL
    if stall_at_s < event_s and (n > 0 or due_s < np.inf):
        event_s = max(time, stall_at_s)
        kind = STALL
    if pace_at_s <= event_s:
        event_s = pace_at_s
        kind = PACE
    return kind, event_s


@compiled
def _latest(admitted: Ints, newest: int, target: Floats) -> int:
    """Where the request that was admitted last, of those that still run, stands in the list."""
    newest -= 1
    while target[admitted[newest]] < 0.0:
        newest -= 1
    return newest


@compiled
def _pause_s(speed: Floats, n: int, pace: float, factor: float, prefill: float, wait: float) -> tuple[float, float]:
    """By how long one more request delays n others, and seconds per token before that.

    In the step under way, and in the one that prefills it, only the others decode.
    """
    last = speed.size - 1
    before = speed[n] * factor if n <= last else pace
    after = speed[min(n + 1, last)] * factor if n <= last else pace
    return max(0.0, prefill - (1.0 + wait) * (after - before)), after


@compiled
def _chunks_per_s(budget: float, n: int, prefill_s: float) -> float:
    """Steps over which a second of prefill is spread, with n running; 0: it comes as one piece."""
    if budget == np.inf or prefill_s <= 0.0:
        return 0.0
    return 1.0 / (max(LEAST_CHUNK, budget - n) * prefill_s)


@compiled
def _into_steps(
    pause: float, last_s: float, last_tokens: float, tokens: float, delay: float, budget: float, bend: float
) -> tuple[float, float, float]:
    """Put a prompt behind those that wait, into steps of so many prompt tokens.

    First tokens come at the end of a step, and what it holds is decided when it begins. So a prompt that comes before
    that fills it up, and delays the first tokens of the prompts that end in it.

    Args:
        pause: seconds of prefill that wait or are under way.
        last_s: seconds of the last step of them.
        last_tokens: prompt tokens of it.
        tokens: of the new prompt.
        delay: seconds of it.
        budget: prompt tokens of a step; infinite: prompts do not share steps.
        bend: share of `delay` that grows with the square of the tokens.

    Returns:
        Seconds by which the last step gets longer, then the seconds and the tokens of the step that is the last then.
        It is the same step if it has all of the prompt.
    """
    if budget == np.inf:
        return 0.0, 0.0, 0.0
    room = 0.0
    if 0.0 < last_s < pause * (1.0 - 1e-9):
        room = min(max(0.0, budget - last_tokens), tokens)
    share = room / tokens
    filled_s = delay * share * (1.0 - bend + bend * share)
    if room >= tokens:
        return filled_s, last_s + filled_s, last_tokens + tokens
    rest = tokens - room
    last = rest - budget * max(0.0, math.ceil(rest / budget) - 1.0)
    share = 1.0 - last / tokens
    return filled_s, delay * (1.0 - share * (1.0 - bend + bend * share)), last


@compiled
def simulate(  # noqa: C901, PLR0912, PLR0915 - one event loop; its state stays in registers
    server: QueueServer,
    factor: float,
    stall_phase: float,
    arrivals: QueueArrivals,
    running: QueueStart,
    measured: tuple[int, int],
    found: QueueLatencies,
    gaps: Floats,
    until_s: float,
) -> float:
    """Simulate one replication until the arrivals [measured[0], measured[1]) are complete, or until `until_s`.

    Args:
        server: and its limits.
        factor: on all times of this replication: its drift.
        stall_phase: in [0, 1): when in this replication the first stop of the engine comes, and where in the path of
            the pace it begins.
        arrivals: all of them.
        running: requests that run at time 0.
        measured: first and end of the arrivals that must be complete.
        found: written.
        gaps: histogram of inter-token gaps, shape (`GAP_BINS`,), added to; empty: they are not counted.
        until_s: simulate no longer than this.

    Returns:
        The time integral of requests in flight.
    """
    # Taken out once: taking an array out of a tuple costs, and each of these is used for every event.
    speed, prefill_s, max_seqs, kv_tokens, kv_token_s, mean_context = server[:6]
    growth_s, even_prompt, stall_per_s, stall_s, path, path_bin_s, budget = server[6:]
    due_s, _, output, _ = arrivals
    ttft_s, e2e_s, seen = found
    starters, rows = running.left.size, due_s.size
    total = starters + rows
    # One entry per request: those running at the start, then the arrivals. `need`: tokens to prefill when it is
    # admitted; `target`: the token clock at which it completes, -1 while it does not run.
    left = np.concatenate((running.left, arrivals.output))
    need = np.concatenate((running.context, arrivals.prompt))
    cached = np.concatenate((np.zeros(starters, np.int64), arrivals.cached))
    whole = left + need
    target = np.full(total, -1.0)
    key, item = np.empty(2 * total + 16), np.empty(2 * total + 16, np.int64)
    admitted, preempted = np.empty(4 * total + 64, np.int64), np.empty(total + 1, np.int64)
    # First tokens to come, in order of admission: after how much of the engine's time at a factor of 1.
    first_item, first_work = np.empty(4 * rows + 64, np.int64), np.empty(4 * rows + 64)
    # The last of the steps that prefill what waits: its seconds and prompt tokens, and its first request in that order.
    last_s = last_tokens = 0.0
    last_from = 0
    size = waiting_again = arrived = taken = completed = stalls = begun = announced = 0
    time = halt = pause = clock = work = in_flight_s = 0.0
    n = newest = starters
    for i in range(starters):
        target[i] = float(left[i])
        size = heap_push(key, item, size, target[i], i)
        admitted[i] = i
    kv = float(running.context.sum())
    stall_at_s = -math.log(1.0 - stall_phase) / stall_per_s if stall_per_s > 0.0 else np.inf
    path_at = int(stall_phase * path.size)
    pace_at_s = path_bin_s if path.size > 1 else np.inf
    drift = factor
    factor = drift * path[path_at]
    while completed < measured[1] - measured[0] and time < until_s:
        while size > 0 and target[item[0]] != key[0]:  # entries of preempted requests
            size = heap_pop(key, item, size)
        pace = step_pace_s(speed, n, kv_token_s * (kv - n * mean_context)) * factor
        chunks_per_s = _chunks_per_s(budget, n, prefill_s * factor)
        kind, event_s = _next_event(
            time, n, halt, pause, chunks_per_s, key[0] - clock, (kv_tokens - kv) / max(n, 1), pace,
            due_s[arrived] if arrived < rows else np.inf, stall_at_s, pace_at_s, until_s,
        )  # fmt: skip
        passed = event_s - time
        in_flight = n + arrived - taken + waiting_again
        in_flight_s += passed * in_flight
        if passed <= halt:
            halt -= passed
        else:
            working = passed - halt
            halt = 0.0
            work += working / factor
            while begun < announced and first_work[begun] <= work:
                i = first_item[begun]
                ttft_s[i] = event_s - (work - first_work[begun]) * factor - due_s[i]
                begun += 1
            stretch = 1.0 + pace * chunks_per_s
            if working <= pause * stretch:
                tokens = working / stretch * chunks_per_s
                pause -= working / stretch
            else:
                tokens = pause * chunks_per_s + (working - pause * stretch) / pace
                pause = 0.0
            if n > 0 and tokens > 0.0:
                clock += tokens
                kv += n * tokens
                if gaps.size > 0:
                    gaps[gap_bin(pace)] += n * tokens
        time = event_s
        if kind == UNTIL:
            break
        if kind == PACE:
            path_at = (path_at + 1) % path.size
            pause *= drift * path[path_at] / factor
            last_s *= drift * path[path_at] / factor
            factor = drift * path[path_at]
            pace_at_s += path_bin_s
            continue
        if kind == STALL:
            halt += stall_s[int((stall_phase + stalls * STEP_PHASE) % 1.0 * stall_s.size)] if n > 0 else 0.0
            stalls += 1
            stall_at_s = time - math.log(1.0 - (stall_phase + stalls * STALL_PHASE) % 1.0) / stall_per_s
            continue
        if kind == FULL:
            newest = _latest(admitted, newest, target)
            i = admitted[newest]
            to_go = target[i] - clock
            kv -= whole[i] - max(0.0, to_go)
            # Before its first token it counts as one that has more to go than it has.
            left[i] = max(1, min(left[i], math.ceil(to_go)))
            need[i] = whole[i] - left[i]
            target[i] = -1.0
            n -= 1
            preempted[waiting_again] = i
            waiting_again += 1
            continue  # nobody is admitted in the step that preempts
        if kind == ARRIVAL:
            seen[arrived] = in_flight
            arrived += 1
        else:
            i = item[0]
            size = heap_pop(key, item, size)
            target[i] = -1.0
            n -= 1
            kv -= whole[i]
            if i >= starters:
                e2e_s[i - starters] = time - due_s[i - starters]
                completed += measured[0] <= i - starters < measured[1]
        while n < max_seqs and (waiting_again > 0 or taken < arrived):
            i = preempted[waiting_again - 1] if waiting_again > 0 else starters + taken
            if n > 0 and kv + need[i] + n > kv_tokens:
                break
            if waiting_again > 0:
                waiting_again -= 1
            else:
                taken += 1
            # A step already under way must end before this request's first one begins.
            wait = 0.0 if n == 0 else (i * STEP_PHASE) % 1.0
            tokens = need[i] - cached[i]
            token_s = prefill_s + growth_s * (need[i] + cached[i] - even_prompt)
            prefill = token_s * tokens * factor
            chunks_per_s = _chunks_per_s(budget, n, prefill_s * factor)
            if gaps.size > 0 and n > 0 and pause + halt <= 0.0:
                before = speed[n] * factor if n < speed.size else pace
                steps = max(1.0, prefill * chunks_per_s)
                gaps[gap_bin(before + prefill / steps)] += n * steps
                gaps[gap_bin(before)] -= n * steps
            delay, after = _pause_s(speed, n, pace, factor, prefill, wait)
            room = max(LEAST_CHUNK, budget - n)
            bend = min(1.0, growth_s * tokens / max(1e-30, token_s))
            fills = last_tokens
            filled_s, last_s, last_tokens = _into_steps(pause, last_s, last_tokens, tokens, delay, room, bend)
            # What fills up a step that has not begun delays the first tokens that come at its end.
            for j in range(max(begun, last_from), announced):
                first_work[j] += filled_s / factor
            if last_tokens != fills + tokens:
                last_from = announced
            pause += delay
            n += 1
            # Its first token comes from the last of the steps that prefill it and all before it.
            steps = max(1.0, math.ceil(pause * chunks_per_s))
            if i >= starters and left[i] == output[i - starters] and announced < first_work.size:
                first_item[announced] = i - starters
                first_work[announced] = work + (pause + (steps + wait) * after) / factor
                announced += 1
            # From now on it counts as one of those that get tokens, and it gets none before its first.
            lead = steps - 1.0 + wait
            kv += need[i] - lead
            target[i] = clock + lead + left[i]
            size = heap_push(key, item, size, target[i], i)
            if newest < admitted.size:
                admitted[newest] = i
                newest += 1
    return in_flight_s


class Replications(NamedTuple):
    """Every replication of an evaluation: how each starts, and which arrivals it gets.

    Attributes:
        factors, in_flight: shape (l,): each replication's drift, and requests in flight at its start.
        rows: arrivals of each.
        burn_in: arrivals before the measured ones; those that wait at the start come on top.
        measured: arrivals measured in each.
    """

    factors: Floats
    in_flight: Ints
    rows: int
    burn_in: int
    measured: int


@compiled
def _running_at_start(server: QueueServer, pool: QueueStart, offset: int, in_flight: int) -> QueueStart:
    """The first of `in_flight` requests from the pool that sequences and KV cache allow to run."""
    running = 0
    kv = 0.0
    while running < min(in_flight, server.max_seqs):
        at = (offset + running) % pool.left.size
        if kv + pool.context[at] + running > server.kv_tokens:
            break
        kv += pool.context[at]
        running += 1
    left = np.empty(running, np.int64)
    context = np.empty(running, np.int64)
    for i in range(running):
        at = (offset + i) % pool.left.size
        left[i] = pool.left[at]
        context[i] = pool.context[at]
    return QueueStart(left, context)


@compiled
def simulate_replications(
    server: QueueServer,
    replications: Replications,
    rate_rps: float,
    unit: QueueArrivals,
    pool: QueueStart,
    found: QueueLatencies,
    outputs: Ints,
    gaps: Floats,
    made: Ints,
) -> None:
    """Simulate every replication at one rate.

    Args:
        server: and its limits.
        replications: l of them, `measured` arrivals each.
        rate_rps: of the arrivals.
        unit: shape (l * rows,) and more: `due_s` has the gaps between arrivals at one request per second.
        pool: stationary running requests to start from, shape (p,).
        found: shape (l, measured), written.
        outputs: shape (l, measured), written: output tokens of the measured arrivals.
        gaps: as for `simulate`.
        made: shape as `unit`: tokens of each answer, where ``unit.output`` is what they amount to at the common pace.
    """
    rows, measured = replications.rows, replications.measured
    for number in range(replications.in_flight.size):
        running = _running_at_start(server, pool, (number * 7919) % pool.left.size, replications.in_flight[number])
        waiting = min(replications.in_flight[number] - running.left.size, rows - replications.burn_in - measured)
        start = number * rows
        due_s = np.zeros(rows)
        # A replication begins with an arrival. What arrivals meet is the stationary law (PASTA); what the first arrival
        # after a fixed time meets is a little less.
        for r in range(waiting + 1, rows):
            due_s[r] = due_s[r - 1] + unit.due_s[start + r] / rate_rps
        first = waiting + replications.burn_in
        own = QueueLatencies(np.full(rows, np.inf), np.full(rows, np.inf), np.zeros(rows))
        those = slice(start, start + rows)
        arrivals = QueueArrivals(due_s, unit.prompt[those], unit.output[those], unit.cached[those])
        simulate(
            server, replications.factors[number], (number * STEP_PHASE) % 1.0, arrivals, running,
            (first, first + measured), own, gaps, 1e12,
        )  # fmt: skip
        found.ttft_s[number] = own.ttft_s[first : first + measured]
        found.e2e_s[number] = own.e2e_s[first : first + measured]
        found.seen[number] = own.seen[first : first + measured]
        outputs[number] = made[start + first : start + first + measured]
