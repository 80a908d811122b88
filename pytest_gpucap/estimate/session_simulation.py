"""Sessions on an engine whose speed is known, step by step, with a prefix cache that forgets.

The queue model (`queue_simulation`) takes each turn by itself, and lets it find in the cache what its session sent
before. Whether it does depends on what was written in the meantime, so here turns wait for the answers before them, and
the cache is that of vLLM: it evicts what was released first. So what a turn leaves behind stays until as many further
tokens have been written as were free when it ended.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.estimate.queue_simulation import LEAST_CHUNK, QueueServer, gap_bin, heap_pop, heap_push, step_pace_s
from pytest_gpucap.jit import compiled

ABSENT, PREFILLING, DECODING = range(3)
"""What a request does: it is not in the batch, its prompt is prefilled, it gets a token a step."""


class SessionRequests(NamedTuple):
    """Turns of sessions, shape (n,) each; those that follow none stand in order of being due.

    Attributes:
        due_s: from the start; of turns that follow another one it is not used.
        prompt, output: tokens.
        sent: tokens at the start of the prompt that were sent before.
        next_turn: the turn that follows; -1: none.
        think_s: from the end of the turn before.
        first: 1 for a turn that follows none: what was sent before it did not come from its session.
    """

    due_s: Floats
    prompt: Ints
    output: Ints
    sent: Ints
    next_turn: Ints
    think_s: Floats
    first: Ints


class SessionLatencies(NamedTuple):
    """What turns meet, shape (n,) each, written as far as they get.

    When each was due, its TTFT and E2E from then, and the tokens that it found in the cache at its first admission.
    """

    due_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    found: Ints


class Stops(NamedTuple):
    """Stops of the engine, shape (k,) each: when they come, rising, and how long they last; seconds."""

    at_s: Floats
    length_s: Floats


@compiled
def _latest(batch: Ints, newest: int, doing: Ints, entry: Ints) -> int:
    """Where the request that was admitted last, of those that still run, stands in the list."""
    newest -= 1
    while doing[batch[newest]] == ABSENT or entry[batch[newest]] != newest:
        newest -= 1
    return newest


@compiled
def _next_first(first: Ints, at: int) -> int:
    """The next turn, from this one on, that follows none; their number where there is none."""
    while at < first.size and first[at] == 0:
        at += 1
    return at


@compiled
def simulate_sessions(  # noqa: C901, PLR0912, PLR0915 - one loop over steps; its state stays in registers
    server: QueueServer,
    requests: SessionRequests,
    room: float,
    shared: int,
    stops: Stops,
    until_s: float,
    most_s: float,
    seen: SessionLatencies,
    gaps: Floats,
) -> None:
    """Simulate one run from an empty server.

    Args:
        server: and its limits.
        requests: all of them.
        room: tokens of the prefix cache; infinite: it forgets nothing, minus infinity: there is none.
        shared: tokens at the start of every prompt, which are always in a cache.
        stops: of the engine.
        until_s: nothing becomes due any more.
        most_s: nothing is waited for any longer.
        seen: written.
        gaps: histogram of inter-token gaps, shape (`GAP_BINS`,), added to; empty: they are not counted.
    """
    speed, prefill_s, max_seqs, kv_tokens, kv_token_s, mean_context = server[:6]
    growth_s, even_prompt, _, _, path, path_bin_s, budget = server[6:]
    due_s, prompt, output, sent, next_turn, think_s, first = requests
    n = prompt.size
    doing, target, cached, made = np.zeros(n, np.int64), prompt.copy(), np.zeros(n, np.int64), np.zeros(n, np.int64)
    begun, finish, entry = np.zeros(n, np.int64), np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    # What is left behind stays until so many tokens have been written; of other sessions it is always there.
    mark = np.full(n, np.inf)
    queue, preempted, batch = np.empty(n, np.int64), np.empty(n + 1, np.int64), np.empty(2 * n + 64, np.int64)
    ready_s, ready = np.empty(n + 1), np.empty(n + 1, np.int64)
    ends, ending = np.empty(4 * n + 64), np.empty(4 * n + 64, np.int64)
    fresh = np.empty(n + 1, np.int64)
    head = tail = waiting_again = newest = waiting = endings = running = decodes = step = stop = 0
    following = _next_first(first, 0)
    partial = -1
    time = kv = written = 0.0
    while time < most_s:
        while True:  # what is due by now
            begin_s = due_s[following] if following < n else np.inf
            if waiting > 0 and ready_s[0] < begin_s:
                if ready_s[0] > time or ready_s[0] >= until_s:
                    break
                r = ready[0]
                seen.due_s[r] = ready_s[0]
                waiting = heap_pop(ready_s, ready, waiting)
            else:
                if begin_s > time or begin_s >= until_s:
                    break
                r = following
                seen.due_s[r] = begin_s
                following = _next_first(first, following + 1)
            queue[tail] = r
            tail += 1
        while kv + decodes > kv_tokens and running > 1:
            newest = _latest(batch, newest, doing, entry)
            r = batch[newest]
            if doing[r] == DECODING:
                made[r] += step - begun[r]
                kv -= target[r] + step - begun[r]
                target[r] = prompt[r] + made[r]
                finish[r] = -1
                decodes -= 1
            else:
                kv -= cached[r]
                partial = -1
            running -= 1
            doing[r] = ABSENT
            preempted[waiting_again] = r
            waiting_again += 1
        left = max(LEAST_CHUNK, budget - decodes)
        work_s = 0.0
        chunks = 0.0
        ended = 0
        if partial >= 0:
            chunk = min(float(target[partial] - cached[partial]), left, max(0.0, kv_tokens - kv - decodes))
            chunk = float(int(chunk))
            work_s += chunk * (prefill_s + growth_s * (2.0 * cached[partial] + chunk - even_prompt))
            cached[partial] += int(chunk)
            left -= chunk
            chunks += chunk
            if cached[partial] == target[partial]:
                fresh[ended] = partial
                ended += 1
                partial = -1
        while partial < 0 and left > 0.0 and running < max_seqs and (waiting_again > 0 or head < tail):
            r = preempted[waiting_again - 1] if waiting_again > 0 else queue[head]
            if running > 0 and kv + chunks + decodes + target[r] > kv_tokens:
                break
            if waiting_again > 0:
                waiting_again -= 1
            else:
                head += 1
            found = float(sent[r])
            if room == -np.inf:
                found = 0.0
            elif mark[r] < np.inf:
                found = max(found - max(0.0, written - mark[r]), float(min(shared, sent[r])))
            had = int(min(found, float(target[r] - 1)))
            if seen.found[r] < 0:
                seen.found[r] = had
            if newest == batch.size:  # those that no longer run leave their places
                kept = 0
                for i in range(newest):
                    if doing[batch[i]] != ABSENT and entry[batch[i]] == i:
                        batch[kept] = batch[i]
                        entry[batch[i]] = kept
                        kept += 1
                newest = kept
            batch[newest] = r
            entry[r] = newest
            newest += 1
            doing[r] = PREFILLING
            running += 1
            chunk = float(int(min(float(target[r] - had), left)))
            work_s += chunk * (prefill_s + growth_s * (2.0 * had + chunk - even_prompt))
            cached[r] = had + int(chunk)
            kv += had
            left -= chunk
            chunks += chunk
            if cached[r] == target[r]:
                fresh[ended] = r
                ended += 1
            else:
                partial = r
        kv += chunks
        if running == 0:
            begin_s = due_s[following] if following < n else np.inf
            if waiting > 0:
                begin_s = min(begin_s, ready_s[0])
            if begin_s >= until_s:
                return
            time = max(time, begin_s)
            continue
        pace = step_pace_s(speed, max(1, decodes), kv_token_s * (kv - max(1, decodes) * mean_context))
        seconds = (pace + work_s) * path[int(time / path_bin_s) % path.size if path.size > 1 else 0]
        while stop < stops.at_s.size and stops.at_s[stop] < time + seconds:
            seconds += stops.length_s[stop]
            stop += 1
        time += seconds
        step += 1
        kv += decodes
        written += chunks + decodes
        if gaps.size > 0:
            gaps[gap_bin(seconds)] += decodes
        for i in range(ended):
            r = fresh[i]
            if np.isnan(seen.ttft_s[r]):
                seen.ttft_s[r] = time - seen.due_s[r]
            made[r] += 1
            doing[r] = DECODING
            begun[r] = step
            finish[r] = step + output[r] - made[r]
            decodes += 1
            if endings == ends.size:  # those that were preempted leave their places
                kept = endings
                endings = 0
                for j in range(kept):
                    if doing[ending[j]] == DECODING and finish[ending[j]] == ends[j]:
                        endings = heap_push(ends, ending, endings, ends[j], ending[j])
            endings = heap_push(ends, ending, endings, float(finish[r]), r)
        while endings > 0 and ends[0] <= step:
            r = ending[0]
            over = doing[r] == DECODING and finish[r] == ends[0]
            endings = heap_pop(ends, ending, endings)
            if not over:  # it was preempted since
                continue
            seen.e2e_s[r] = time - seen.due_s[r]
            kv -= target[r] + step - begun[r]
            finish[r] = -1
            doing[r] = ABSENT
            running -= 1
            decodes -= 1
            after = next_turn[r]
            if after >= 0:
                mark[after] = written + room - kv if room < np.inf else np.inf
                waiting = heap_push(ready_s, ready, waiting, time + think_s[after], after)
