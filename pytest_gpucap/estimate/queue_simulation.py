"""The queue on top of an engine whose speed is known: many short simulations ("lanes"), event by event.

Between two events every running request gets its tokens at the same pace, ``speed[n]`` seconds a token with n running,
so only arrivals, completions and a full KV cache are events. A prompt's prefill holds everybody up for its length,
which on average is what mixed steps of chunked prefill do.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pytest_gpucap.jit import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GAP_LOWEST_S = 1e-4
GAP_GROWTH = 1.02
GAP_BINS = 700
LEAST_PACE = 0.5
"""Requests that hold few KV tokens run at this share of the curve's time at least."""
_STEP_PHASE = 0.6180339887498949
"""Golden ratio: spreads the moments at which requests meet a running step evenly."""
_STALL_PHASE = 0.7548776662466927
"""The plastic number's inverse: spreads stalls evenly, and unlike the step phases."""


@compiled
def _gap_bin(seconds: float) -> int:
    if seconds <= GAP_LOWEST_S:
        return 0
    return min(GAP_BINS - 1, math.ceil(math.log(seconds / GAP_LOWEST_S) / math.log(GAP_GROWTH)))


@compiled
def _push(key: Floats, item: Ints, size: int, k: float, i: int) -> int:
    """Push onto the binary heap of (key, item) and return its new size."""
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
def _pop(key: Floats, item: Ints, size: int) -> int:
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
def run_lane(  # noqa: C901, PLR0912, PLR0915 - one event loop, read top to bottom
    speed: Floats,
    factor: float,
    prefill_s: float,
    max_seqs: int,
    kv_tokens: float,
    kv_token_s: float,
    mean_context: float,
    stall_per_s: float,
    stall_s: float,
    stall_phase: float,
    due_s: Floats,
    prompt: Ints,
    output: Ints,
    start_left: Ints,
    start_context: Ints,
    measure_from: int,
    measure_to: int,
    ttft_s: Floats,
    e2e_s: Floats,
    seen: Floats,
    gaps: Floats,
    want_gaps: bool,
    until_s: float,
    load: Floats,
) -> int:
    """Simulate one lane until the rows [measure_from, measure_to) are complete, or until `until_s`.

    Arguments by name:
        speed: shape (m,): seconds a token with n running, by n; the last entry's slope of the end goes on.
        factor: on all times of this lane (its drift).
        prefill_s: engine seconds a prompt token.
        max_seqs, kv_tokens: the server's limits.
        kv_token_s, mean_context: seconds a step for each KV token held beyond `mean_context` a request running.
        stall_per_s, stall_s: stops of the engine, a second, and how long each lasts.
        stall_phase: in [0, 1): when in this lane the first one comes.
        due_s, prompt, output: shape (r,): the arrivals.
        start_left, start_context: shape (k,): tokens to go and KV held of the requests running at time 0.
        ttft_s, e2e_s, seen: shape (r,), written for each arrival that got so far: latencies from being due, and
            requests in flight that it met.
        gaps: histogram of inter-token gaps, written if `want_gaps`.
        until_s: simulate no longer than this.
        load: shape (3,), written: the time integral of requests in flight, tokens made, and the end time.

    Returns:
        Measured rows that completed.
    """
    starters = start_left.size
    rows = due_s.size
    total = starters + rows
    key = np.empty(2 * total + 16)
    item = np.empty(2 * total + 16, np.int64)
    size = 0
    target = np.full(total, -1.0)  # token clock at which it completes; -1 while not running
    left = np.empty(total, np.int64)
    need = np.empty(total, np.int64)
    admitted = np.empty(4 * total + 64, np.int64)  # ids in order of admission; entries of ended ones are skipped
    newest = 0
    front = np.empty(total + 1, np.int64)
    fronts = 0
    clock = 0.0
    kv = 0.0
    n = 0
    for i in range(starters):
        left[i] = start_left[i]
        need[i] = start_context[i]
        target[i] = float(start_left[i])
        size = _push(key, item, size, target[i], i)
        admitted[newest] = i
        newest += 1
        n += 1
        kv += start_context[i]
    for r in range(rows):
        left[starters + r] = output[r]
        need[starters + r] = prompt[r]
    time = 0.0
    pause = 0.0
    head = 0
    arrived = 0
    completed = 0
    last = speed.size - 1
    in_flight_s = 0.0
    made = 0.0
    stalls = 0
    next_stall_s = np.inf
    if stall_per_s > 0.0:
        next_stall_s = -math.log(1.0 - stall_phase) / stall_per_s
    while completed < measure_to - measure_from and time < until_s:
        while size > 0 and target[item[0]] != key[0]:  # entries of preempted requests
            size = _pop(key, item, size)
        pace = speed[n] if n <= last else speed[last] + (speed[last] - speed[last - 1]) * (n - last)
        # The curve is for requests of mean context; whatever they lack of it, the weights must be read.
        pace = max(LEAST_PACE * pace, pace + kv_token_s * (kv - n * mean_context)) * factor
        event_s = until_s
        kind = 0
        if arrived < rows and due_s[arrived] < event_s:
            event_s = max(time, due_s[arrived])
            kind = 1
        if n > 0:
            finish_s = time + pause + max(0.0, key[0] - clock) * pace
            if finish_s < event_s:
                event_s = finish_s
                kind = 2
            full_s = time + pause + max(0.0, (kv_tokens - kv) / n) * pace
            if n > 1 and full_s < event_s:
                event_s = full_s
                kind = 3
        if kind == 0 and arrived >= rows and n == 0:
            break
        if next_stall_s < event_s:
            event_s = max(time, next_stall_s)
            kind = 4
        passed = event_s - time
        in_flight_s += passed * (n + arrived - head + fronts)
        if passed <= pause:
            pause -= passed
        else:
            tokens = (passed - pause) / pace if n > 0 else 0.0
            pause = 0.0
            clock += tokens
            kv += n * tokens
            made += n * tokens
            if want_gaps and n > 0:
                gaps[_gap_bin(pace)] += n * tokens
        time = event_s
        if kind == 0:
            break
        if kind == 4:  # noqa: PLR2004 - a stall
            if n > 0:
                pause += stall_s
            stalls += 1
            next_stall_s = time - math.log(1.0 - (stall_phase + stalls * _STALL_PHASE) % 1.0) / stall_per_s
            continue
        if kind == 1:
            seen[arrived] = n + arrived - head + fronts
            arrived += 1
        elif kind == 2:  # noqa: PLR2004 - a completion
            i = item[0]
            size = _pop(key, item, size)
            target[i] = -1.0
            n -= 1
            if i >= starters:
                r = i - starters
                kv -= prompt[r] + output[r]
                e2e_s[r] = time - due_s[r]
                if measure_from <= r < measure_to:
                    completed += 1
            else:
                kv -= start_context[i] + start_left[i]
        else:
            newest -= 1
            while target[admitted[newest]] < 0.0:
                newest -= 1
            i = admitted[newest]
            going = max(1, math.ceil(target[i] - clock))
            whole = start_context[i] + start_left[i] if i < starters else prompt[i - starters] + output[i - starters]
            kv -= whole - max(0.0, target[i] - clock)
            left[i] = going
            need[i] = whole - going
            target[i] = -1.0
            n -= 1
            front[fronts] = i
            fronts += 1
            continue  # nobody is admitted in the step that preempts
        while n < max_seqs and (fronts > 0 or head < arrived):
            i = front[fronts - 1] if fronts > 0 else starters + head
            if n > 0 and kv + need[i] + n > kv_tokens:
                break
            if fronts > 0:
                fronts -= 1
            else:
                head += 1
            prefill = prefill_s * need[i] * factor
            if n <= last:
                before = speed[n] * factor
                after = speed[min(n + 1, last)] * factor
            else:
                before = pace
                after = pace
            if want_gaps and n > 0 and pause <= 0.0:
                gaps[_gap_bin(before + prefill)] += n
                gaps[_gap_bin(before)] -= n
            # A step already under way must end before this request's first one begins.
            wait = 0.0 if n == 0 else (i * _STEP_PHASE) % 1.0
            # In the step under way, and in the one that prefills it, only the others decode.
            pause += max(0.0, prefill - (1.0 + wait) * (after - before))
            kv += need[i]
            n += 1
            if i >= starters and left[i] == output[i - starters]:
                ttft_s[i - starters] = time + pause + (1.0 + wait) * after - due_s[i - starters]
            target[i] = clock + left[i] + wait
            size = _push(key, item, size, target[i], i)
            if newest < admitted.size:
                admitted[newest] = i
                newest += 1
    load[0] = in_flight_s
    load[1] = made
    load[2] = time
    return completed


@compiled
def run_lanes(
    speed: Floats,
    factors: Floats,
    prefill_s: float,
    max_seqs: int,
    kv_tokens: float,
    kv_token_s: float,
    mean_context: float,
    stall_per_s: float,
    stall_s: float,
    rate_rps: float,
    gap: Floats,
    prompt: Ints,
    output: Ints,
    rows: int,
    in_flight: Ints,
    pool_left: Ints,
    pool_context: Ints,
    burn: int,
    measured: int,
    ttft_s: Floats,
    e2e_s: Floats,
    seen: Floats,
    outputs: Ints,
    gaps: Floats,
    want_gaps: bool,
) -> None:
    """Simulate every lane at one rate.

    Arguments by name:
        factors, in_flight: shape (l,): each lane's drift and requests in flight at its start.
        gap: shape (l * rows,): gaps between arrivals at one a second; `prompt`, `output` alike.
        rows: arrivals a lane.
        pool_left, pool_context: shape (p,): stationary tokens to go and KV held of running requests.
        burn: arrivals before the measured ones; those that wait at the start come on top.
        measured: arrivals measured a lane.
        ttft_s, e2e_s, seen, outputs: shape (l, measured), written.
    """
    load = np.zeros(3)
    for lane in range(in_flight.size):
        offset = (lane * 7919) % pool_left.size
        running = 0
        kv = 0.0
        while running < min(in_flight[lane], max_seqs):
            at = (offset + running) % pool_left.size
            if kv + pool_context[at] + running > kv_tokens:
                break
            kv += pool_context[at]
            running += 1
        left = np.empty(running, np.int64)
        context = np.empty(running, np.int64)
        for i in range(running):
            at = (offset + i) % pool_left.size
            left[i] = pool_left[at]
            context[i] = pool_context[at]
        waiting = min(in_flight[lane] - running, rows - burn - measured)
        start = lane * rows
        due = np.zeros(rows)
        # The lane begins with an arrival: what arrivals meet is the stationary law (PASTA), what the first arrival
        # after a fixed time meets is a little less.
        for r in range(waiting + 1, rows):
            due[r] = due[r - 1] + gap[start + r] / rate_rps
        first = waiting + burn
        lane_ttft = np.full(rows, np.inf)
        lane_e2e = np.full(rows, np.inf)
        lane_seen = np.zeros(rows)
        run_lane(
            speed, factors[lane], prefill_s, max_seqs, kv_tokens, kv_token_s, mean_context,
            stall_per_s, stall_s, (lane * _STEP_PHASE) % 1.0, due,
            prompt[start : start + rows], output[start : start + rows], left, context, first, first + measured,
            lane_ttft, lane_e2e, lane_seen, gaps, want_gaps, 1e12, load,
        )  # fmt: skip
        ttft_s[lane] = lane_ttft[first : first + measured]
        e2e_s[lane] = lane_e2e[first : first + measured]
        seen[lane] = lane_seen[first : first + measured]
        outputs[lane] = output[start + first : start + first + measured]
