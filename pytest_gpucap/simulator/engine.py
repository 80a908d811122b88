"""One engine step after another: the part of the simulated server that both virtual time and HTTP run.

The model follows vLLM's scheduler. Every step gives each running decode one token, fills what is left of the token
budget with prompt chunks, first of running requests, then of waiting ones in order of arrival, and admits while a
sequence slot and KV space are free. When the running decodes outgrow the KV cache, the last admitted request is
preempted: it loses its KV, returns to the head of the queue and is prefilled again, generated tokens included. A step
takes

    base + per_seq * decodes + per_seq_over * max(0, decodes - knee) + per_kv_token * kv + per_prompt_token * chunk

times noise, drift and the warm-up transient, plus now and then a stall.

Every further trait is a switch that is off unless its parameter is set:

- Staircase: CUDA graphs exist for some batch sizes, so decodes count as the next multiple of `graph_step` (below it:
  the next power of two), up to `graph_most`.
- Long prompts: `per_prompt_context_s` for each prompt token and each token of context before it (attention).
- Chunked prefill: a step with decodes and prompt chunks takes `mixed_slow` longer.
- Speculation: a request makes ``(1 - a**(k + 1)) / (1 - a)`` tokens a step, with k = `spec_tokens` and its own rate of
  acceptance a (Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, equation 1). A step
  takes ``k * (per_draft_s + per_draft_seq_s * decodes)`` more.
- Prefix cache: prompts hit it with up to `prefix_share` of their tokens, after a start with the time constant
  `prefix_warm_s`.
- Sessions: a turn finds in the prefix cache what its session sent before (`SHARED`), unless that was evicted. vLLM
  evicts what was released first, so a released prompt stays until as many further tokens have been written as were free
  when it was released (`MARK`).
- Pace: it wanders (Ornstein-Uhlenbeck, `wander_sd`, `wander_tau_s`), and the clock has a new level every
  `throttle_every_s` (log-normal, `throttle_sd`).
- Stops: their lengths are uniform in ``stall_s * (1 - stall_spread)`` to ``stall_s * (1 + stall_spread)``.

With `front_token_s` or `front_request_s` above 0 a second station sends the tokens: the API server, a separate process
on one core. It takes a step's tokens in their order, each for

    front_token_s * (1 + front_loss * backlog / (backlog + front_backlog_s))

and `front_request_s` for each request's first one, all of it times its own wandering pace (`front_wander_sd`).
`backlog` is the seconds of work that wait before it (buffers and collections of garbage grow with what is held). The
engine does not wait for it. Beyond the front end's speed a backlog grows, it grows less efficient, and throughput falls
as requests are added.

The code works on arrays, because it runs for millions of steps; numba compiles it where it is installed. State lives in
two vectors, `real` and `whole`, indexed by the names below.
"""

from __future__ import annotations

import math

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.jit import compiled, is_compiled

Table = np.ndarray[tuple[int, int], np.dtype[np.int64]]
Times = np.ndarray[tuple[int, int], np.dtype[np.float64]]

# Model parameters (`params`).
BASE, PER_SEQ, PER_SEQ_OVER, KNEE, PER_KV, PER_PROMPT = 0, 1, 2, 3, 4, 5
NOISE, DRIFT_SD, DRIFT_TAU, STALL_PER_S, STALL_S, WARM_EXTRA, WARM_TAU = 6, 7, 8, 9, 10, 11, 12
MAX_SEQS, TOKEN_BUDGET, KV_TOKENS = 13, 14, 15
FRONT_TOKEN, FRONT_LOSS, FRONT_BACKLOG = 16, 17, 18
GRAPH_STEP, GRAPH_MOST, PER_CONTEXT, MIXED_SLOW = 19, 20, 21, 22
SPEC_TOKENS, PER_DRAFT, PER_DRAFT_SEQ, PREFIX_SHARE, PREFIX_WARM = 23, 24, 25, 26, 27
WANDER_SD, WANDER_TAU, THROTTLE_SD, THROTTLE_EVERY, STALL_SPREAD = 28, 29, 30, 31, 32
FRONT_REQUEST, FRONT_WANDER_SD = 33, 34
PARAMS = 35

# Real-valued state.
TIME, DRIFT, DRIFT_AT, STARTED, STEP_S, SHOWN = 0, 1, 2, 3, 4, 5
WANDER, FRONT_WANDER, WANDER_AT, THROTTLE, THROTTLE_AT, BUSY = 6, 7, 8, 9, 10, 11
REALS = 12
"""`SHOWN`: when the front end has handed out the last step's tokens; the step's own end without a front end.
`BUSY`: seconds of steps so far."""

# Whole-number state.
HEAD, TAIL, FRONT, RUNNING, DECODES, KV, DECODE_STEP, NEXT_ROW, NOISE_AT, PREFILLING, NEXT_FINISH, PREEMPTIONS = range(
    12
)
SHOWN_HEAD, SHOWN_TAIL = 12, 13
PREFIX_QUERIES, PREFIX_HITS, DRAFT_TOKENS, ACCEPTED_TOKENS = 14, 15, 16, 17
WRITTEN = 18
WHOLES = 19
"""`WRITTEN`: KV tokens computed so far. The four before it are counters of tokens, as vLLM has them: prompt tokens that
were looked up in the prefix cache and found there, and tokens that were speculated and accepted. A preempted request is
looked up once."""

# Rows of `table`: whole numbers of each request.
PROMPT, OUTPUT, CACHED, TARGET, DONE, FINISH_AT, PACE, SHARED, MARK, PLANNED, FOUND = range(11)
TABLE = 11
"""`PROMPT`, `OUTPUT`: tokens, as asked for. `CACHED`: KV tokens held. `TARGET`: tokens to prefill before it decodes;
more than `PROMPT` after a preemption. `DONE`: tokens generated when it last began to decode. `FINISH_AT`: the decode
step at which it completes; `NEVER` while it does not decode. `PACE`: thousandths of tokens that it makes in a step;
`PLAIN_PACE` without speculation. `SHARED`: tokens at the start of the prompt that were sent before. `MARK`: they are in
the cache as long as no more than so many tokens were written in all. `PLANNED`: its place in the plan of a phase with
sessions (`turns`), counted from 1; 0: none. `FOUND`: tokens that the prefix cache had when it was first admitted."""

# Rows of `times`: seconds of each request.
DUE, FIRST, LAST, END = range(4)
TIMES = 4
"""When it was due, and when its first token, its last token and its end were shown."""

# Rows of `lists`.
QUEUE, PREEMPTED, BATCH, ENDED = range(4)
LISTS = 4
"""`QUEUE`: requests that wait, in order of arrival, from ``whole[HEAD]`` to ``whole[TAIL]``. `PREEMPTED`:
``whole[FRONT]`` of them; the last is admitted first. `BATCH`: ``whole[RUNNING]`` of them, in order of admission.
`ENDED`: those that the engine is done with, in the order in which the front end shows their ends, from
``whole[SHOWN_HEAD]`` to ``whole[SHOWN_TAIL]``."""

LEAST_NOISE = 4096
"""Draws that one step may need."""
DRIFT_EVERY_S = 0.5
"""The drift moves at this interval; its time constant is minutes."""
WANDER_EVERY_S = 0.1
"""The wandering pace moves at this interval; its time constant is seconds."""
WANDER_BLOCKS = 500
"""Most moves for a time in which the engine was idle."""
PLAIN_PACE = 1000
GAP_LOWEST_S = 1e-4
GAP_GROWTH = 1.02
GAP_BINS = 700
NEVER = 2**62
CACHED_FOR_EVER = 2**61
"""`MARK` of what is in the cache whatever is written."""


@compiled
def steps_for(tokens: int, pace: int) -> int:
    """Decode steps that a request needs for so many tokens."""
    return (tokens * PLAIN_PACE + pace - 1) // pace


@compiled
def tokens_at(table: Table, r: int, step: int) -> int:
    """Tokens that a decoding request has made by the end of a decode step."""
    left = max(0, table[FINISH_AT, r] - step)
    return int(max(table[DONE, r], table[OUTPUT, r] - (left * table[PACE, r] + PLAIN_PACE - 1) // PLAIN_PACE))


@compiled
def _preempt(params: Floats, whole: Ints, lists: Table, table: Table) -> None:
    """Take requests out of the batch, the last admitted first, until the decodes' next KV tokens fit."""
    kv_tokens = int(params[KV_TOKENS])
    while whole[KV] + whole[DECODES] > kv_tokens and whole[RUNNING] > 1:
        victim = lists[BATCH, whole[RUNNING] - 1]
        whole[RUNNING] -= 1
        whole[PREEMPTIONS] += 1
        if table[FINISH_AT, victim] != NEVER:
            made = tokens_at(table, victim, whole[DECODE_STEP])
            held = table[PROMPT, victim] + made
            table[DONE, victim] = made
            table[TARGET, victim] = held
            table[FINISH_AT, victim] = NEVER
            whole[DECODES] -= 1
            whole[KV] -= held
        else:
            whole[PREFILLING] -= 1
            whole[KV] -= table[CACHED, victim]
        table[CACHED, victim] = 0
        lists[PREEMPTED, whole[FRONT]] = victim
        whole[FRONT] += 1


@compiled
def _found(whole: Ints, table: Table, hit: float, r: int) -> int:
    """Tokens of a request that the prefix cache has; at least the last one is computed, as in vLLM."""
    found = int(hit * table[PROMPT, r])
    if table[SHARED, r] > 0:
        found = max(found, table[SHARED, r] - max(0, whole[WRITTEN] - table[MARK, r]))
    return int(min(found, table[TARGET, r] - 1))


@compiled
def _prefill(params: Floats, whole: Ints, lists: Table, table: Table, hit: float) -> tuple[int, int, float]:
    """Give what is left of the token budget to prompts: of running requests first, then of those admitted now.

    Arguments by name:
        hit: share of a prompt's tokens that the prefix cache has.

    Returns:
        Prompt tokens of this step, requests whose prefill ends in it, and the sum over its prompt tokens of the context
        before each.
    """
    max_seqs, kv_tokens = int(params[MAX_SEQS]), int(params[KV_TOKENS])
    decodes = whole[DECODES]
    budget = int(params[TOKEN_BUDGET]) - decodes
    chunk_tokens = 0
    fresh = 0
    context = 0.0
    if whole[PREFILLING] > 0:
        for i in range(whole[RUNNING]):
            r = lists[BATCH, i]
            if table[FINISH_AT, r] == NEVER and budget > 0:
                chunk = min(table[TARGET, r] - table[CACHED, r], budget, kv_tokens - whole[KV] - decodes)
                if chunk <= 0:
                    continue
                context += chunk * (table[CACHED, r] + 0.5 * chunk)
                table[CACHED, r] += chunk
                whole[KV] += chunk
                budget -= chunk
                chunk_tokens += chunk
                if table[CACHED, r] == table[TARGET, r]:
                    fresh += 1
    while budget > 0 and whole[RUNNING] < max_seqs and (whole[FRONT] > 0 or whole[HEAD] < whole[TAIL]):
        r = lists[PREEMPTED, whole[FRONT] - 1] if whole[FRONT] > 0 else lists[QUEUE, whole[HEAD]]
        if whole[KV] + decodes + table[TARGET, r] > kv_tokens and whole[RUNNING] > 0:
            break
        found = _found(whole, table, hit, r)
        if whole[FRONT] > 0:
            whole[FRONT] -= 1
        else:
            whole[HEAD] += 1
            whole[PREFIX_QUERIES] += table[PROMPT, r]
            whole[PREFIX_HITS] += found
            table[FOUND, r] = found
        lists[BATCH, whole[RUNNING]] = r
        whole[RUNNING] += 1
        whole[PREFILLING] += 1
        chunk = min(table[TARGET, r] - found, budget)
        context += chunk * (found + 0.5 * chunk)
        table[CACHED, r] = found + chunk
        whole[KV] += found + chunk
        budget -= chunk
        chunk_tokens += chunk
        if found + chunk == table[TARGET, r]:
            fresh += 1
    return chunk_tokens, fresh, context


@compiled
def _padded(params: Floats, decodes: int) -> int:
    """The batch size that a CUDA graph was captured for; the batch itself where there are no graphs."""
    every = int(params[GRAPH_STEP])
    if every == 0 or decodes > params[GRAPH_MOST]:
        return decodes
    if decodes >= every:
        return (decodes + every - 1) // every * every
    size = 1
    while size < decodes:
        size *= 2
    return size


@compiled
def _move_pace(params: Floats, real: Floats, whole: Ints, noise: Floats) -> None:
    """Move drift, wandering and throttling on to the present time."""
    while real[TIME] - real[DRIFT_AT] >= DRIFT_EVERY_S:
        real[DRIFT_AT] += DRIFT_EVERY_S
        keep = math.exp(-DRIFT_EVERY_S / params[DRIFT_TAU])
        real[DRIFT] = real[DRIFT] * keep + params[DRIFT_SD] * math.sqrt(1 - keep * keep) * noise[whole[NOISE_AT]]
        whole[NOISE_AT] += 1
    if params[WANDER_SD] > 0.0 or params[FRONT_WANDER_SD] > 0.0:
        real[WANDER_AT] = max(real[WANDER_AT], real[TIME] - WANDER_BLOCKS * WANDER_EVERY_S)
        keep = math.exp(-WANDER_EVERY_S / params[WANDER_TAU])
        fresh = math.sqrt(1 - keep * keep)
        while real[TIME] - real[WANDER_AT] >= WANDER_EVERY_S:
            real[WANDER_AT] += WANDER_EVERY_S
            at = whole[NOISE_AT]
            real[WANDER] = real[WANDER] * keep + params[WANDER_SD] * fresh * noise[at]
            real[FRONT_WANDER] = real[FRONT_WANDER] * keep + params[FRONT_WANDER_SD] * fresh * noise[at + 1]
            whole[NOISE_AT] += 2
    if params[THROTTLE_SD] > 0.0 and real[TIME] >= real[THROTTLE_AT]:
        real[THROTTLE_AT] = real[TIME] + params[THROTTLE_EVERY]
        real[THROTTLE] = params[THROTTLE_SD] * noise[whole[NOISE_AT]]
        whole[NOISE_AT] += 1


@compiled
def _step_s(
    params: Floats, real: Floats, whole: Ints, noise: Floats, decodes: int, chunk_tokens: int, context: float
) -> float:
    """Seconds of a step, with noise, pace, the warm-up and perhaps a stall; the pace moves on."""
    _move_pace(params, real, whole, noise)
    batch = _padded(params, decodes)
    seconds = params[BASE] + params[PER_SEQ] * batch + params[PER_KV] * whole[KV] + params[PER_PROMPT] * chunk_tokens
    if batch > params[KNEE]:
        seconds += params[PER_SEQ_OVER] * (batch - params[KNEE])
    seconds += params[PER_CONTEXT] * context
    if decodes > 0:
        seconds += params[SPEC_TOKENS] * (params[PER_DRAFT] + params[PER_DRAFT_SEQ] * decodes)
        if chunk_tokens > 0:
            seconds *= 1.0 + params[MIXED_SLOW]
    seconds *= max(0.5, 1.0 + params[NOISE] * noise[whole[NOISE_AT]]) * math.exp(real[DRIFT])
    seconds *= math.exp(real[WANDER] + real[THROTTLE])
    whole[NOISE_AT] += 1
    age = real[TIME] - real[STARTED]
    if params[WARM_EXTRA] > 0.0 and age < 12.0 * params[WARM_TAU]:
        seconds *= 1.0 + params[WARM_EXTRA] * math.exp(-age / params[WARM_TAU])
    # A normal draw beyond its own quantile is as good as a uniform one, and reuses the noise block.
    drawn, chance = 0.5 * math.erfc(noise[whole[NOISE_AT]] / math.sqrt(2.0)), params[STALL_PER_S] * seconds
    if drawn < chance:
        # Given a stall, its place below the chance is uniform too, and decides how long it lasts.
        seconds += params[STALL_S] * (1.0 + params[STALL_SPREAD] * (2.0 * drawn / chance - 1.0))
    whole[NOISE_AT] += 1
    return float(seconds)


@compiled
def _show(params: Floats, real: Floats, tokens: int, fresh: int, seconds: float) -> float:
    """When the front end has handed out the tokens of the step that just ended; sets ``real[SHOWN]``.

    Returns:
        The gap between the tokens of this step and those of the step before.
    """
    now = real[TIME]
    gap_s = seconds
    if params[FRONT_TOKEN] > 0.0 or params[FRONT_REQUEST] > 0.0:
        before = real[SHOWN]
        backlog = max(0.0, before - now)
        lost = params[FRONT_LOSS] * backlog / (backlog + params[FRONT_BACKLOG])
        work = tokens * params[FRONT_TOKEN] * (1.0 + lost) + fresh * params[FRONT_REQUEST]
        now = max(before, now) + work * math.exp(real[FRONT_WANDER])
        gap_s = now - before if backlog > 0.0 else seconds
    real[SHOWN] = now
    return float(gap_s)


@compiled
def _speculated(whole: Ints, lists: Table, table: Table) -> int:
    """Tokens that the running decodes make in the next decode step."""
    at = whole[DECODE_STEP]
    made = 0
    for i in range(whole[RUNNING]):
        r = lists[BATCH, i]
        if table[FINISH_AT, r] != NEVER:
            made += tokens_at(table, r, at + 1) - tokens_at(table, r, at)
    return made


@compiled
def _finish(now: float, whole: Ints, lists: Table, table: Table, times: Times) -> None:
    """Start the decoding of requests whose prefill is done, and let go of those that are complete."""
    at = whole[DECODE_STEP]
    kept = 0
    soonest = NEVER
    for i in range(whole[RUNNING]):
        r = lists[BATCH, i]
        if table[FINISH_AT, r] == NEVER:
            if table[CACHED, r] == table[TARGET, r]:
                if table[DONE, r] == 0:
                    times[FIRST, r] = now
                table[DONE, r] += 1
                table[FINISH_AT, r] = at + steps_for(table[OUTPUT, r] - table[DONE, r], table[PACE, r])
                # From here on its tokens are known from finish_at; `held` in a preemption counts this token's KV too.
                whole[KV] += 1
                whole[PREFILLING] -= 1
                whole[DECODES] += 1
            else:
                lists[BATCH, kept] = r
                kept += 1
                continue
        if table[FINISH_AT, r] <= at:
            whole[DECODES] -= 1
            whole[KV] -= table[PROMPT, r] + table[OUTPUT, r]
            table[CACHED, r] = 0
            times[LAST, r] = now
            times[END, r] = now
            lists[ENDED, whole[SHOWN_TAIL]] = r
            whole[SHOWN_TAIL] += 1
            continue
        soonest = min(soonest, table[FINISH_AT, r])
        lists[BATCH, kept] = r
        kept += 1
    whole[RUNNING] = kept
    whole[NEXT_FINISH] = soonest


@compiled
def step(
    params: Floats, real: Floats, whole: Ints, noise: Floats, lists: Table, table: Table, times: Times, gaps: Ints
) -> int:
    """Run one step from ``real[TIME]``, and move the time on.

    Arguments by name:
        params: of the model, by the names above.
        real, whole: the state, by the names above; it moves on.
        noise: shape (k,), standard normal draws, used from ``whole[NOISE_AT]`` on.
        lists: shape (4, m), rows in each list; see above.
        table, times: shapes (11, n) and (4, n), a column per request; see above. Written.
        gaps: histogram of inter-token gaps, shape (`GAP_BINS`,), added to.

    Returns:
        The tokens generated at the end of the step; -1 when there is nothing to do.
    """
    _preempt(params, whole, lists, table)
    decodes = whole[DECODES]
    hit = params[PREFIX_SHARE]
    if hit > 0.0 and params[PREFIX_WARM] > 0.0:
        hit *= 1.0 - math.exp((real[STARTED] - real[TIME]) / params[PREFIX_WARM])
    chunk_tokens, fresh, context = _prefill(params, whole, lists, table, hit)
    if decodes == 0 and chunk_tokens == 0:
        return -1
    seconds = _step_s(params, real, whole, noise, decodes, chunk_tokens, context)
    real[TIME] += seconds
    real[STEP_S] = seconds
    real[BUSY] += seconds
    whole[WRITTEN] += chunk_tokens + decodes
    made = decodes
    if params[SPEC_TOKENS] > 0.0:
        made = _speculated(whole, lists, table)
        whole[DRAFT_TOKENS] += decodes * int(params[SPEC_TOKENS])
        whole[ACCEPTED_TOKENS] += max(0, made - decodes)
    gap_s = _show(params, real, made + fresh, fresh, seconds)
    if decodes > 0:
        whole[DECODE_STEP] += 1
        whole[KV] += made
        gap_bin = 0
        if gap_s > GAP_LOWEST_S:
            gap_bin = min(GAP_BINS - 1, math.ceil(math.log(gap_s / GAP_LOWEST_S) / math.log(GAP_GROWTH)))
        gaps[gap_bin] += decodes
        # The further tokens of a step arrive with its first.
        gaps[0] += made - decodes
    if fresh > 0 or whole[DECODE_STEP] >= whole[NEXT_FINISH]:
        _finish(real[SHOWN], whole, lists, table, times)
    return int(made + fresh)


@compiled
def _arrive(
    now: float, whole: Ints, lists: Table, times: Times, end_row: int, concurrency: int, until_s: float
) -> bool:
    """Queue the rows that are due by now; false if a closed loop has no row left."""
    if concurrency == 0:
        while whole[NEXT_ROW] < end_row and times[DUE, whole[NEXT_ROW]] <= now:
            lists[QUEUE, whole[TAIL]] = whole[NEXT_ROW]
            whole[TAIL] += 1
            whole[NEXT_ROW] += 1
        return True
    in_flight = whole[RUNNING] + whole[FRONT] + whole[TAIL] - whole[HEAD]
    in_flight += whole[SHOWN_TAIL] - whole[SHOWN_HEAD]
    while in_flight < concurrency and now < until_s:
        if whole[NEXT_ROW] >= end_row:
            return False
        times[DUE, whole[NEXT_ROW]] = now
        lists[QUEUE, whole[TAIL]] = whole[NEXT_ROW]
        whole[TAIL] += 1
        whole[NEXT_ROW] += 1
        in_flight += 1
    return True


@compiled
def show_ended(now: float, whole: Ints, lists: Table, times: Times) -> None:
    """Count the requests as ended whose last token has come by `now`."""
    while whole[SHOWN_HEAD] < whole[SHOWN_TAIL] and times[END, lists[ENDED, whole[SHOWN_HEAD]]] <= now:
        whole[SHOWN_HEAD] += 1


@compiled
def idle_until(real: Floats, until_s: float) -> None:
    """Let an engine without work wait. Its drift moves at most a block at a time; nothing else happens meanwhile."""
    real[TIME] = max(real[TIME], until_s)
    real[DRIFT_AT] = max(real[DRIFT_AT], real[TIME] - 1000.0 * DRIFT_EVERY_S)


@compiled
def advance(
    params: Floats,
    real: Floats,
    whole: Ints,
    noise: Floats,
    lists: Table,
    table: Table,
    times: Times,
    gaps: Ints,
    tokens: Ints,
    bin_s: float,
    end_row: int,
    concurrency: int,
    until_s: float,
) -> int:
    """Run steps until `until_s`, taking in rows [``whole[NEXT_ROW]``, `end_row`) as they become due.

    Arguments by name:
        params, real, whole, noise, lists, table, times, gaps: as for `step`.
        tokens: output tokens by when they were shown, in bins of `bin_s`; added to.
        bin_s: width of these bins.
        end_row: behind the last row of the phase.
        concurrency: 0: rows are due at ``times[DUE]`` (open loop). Above 0: a row becomes due when fewer are in flight,
            and its due time is written (closed loop).
        until_s: when to return.

    Returns:
        0 when the time is reached, 1 when the noise block must be renewed, 2 when a closed loop has no row left.
    """
    while True:
        now = real[TIME]
        show_ended(now, whole, lists, times)
        if not _arrive(now, whole, lists, times, end_row, concurrency, until_s):
            return 2
        if now >= until_s:
            return 0
        if whole[NOISE_AT] + LEAST_NOISE > noise.size:
            return 1
        made = step(params, real, whole, noise, lists, table, times, gaps)
        if made < 0:
            wake = until_s
            if concurrency == 0 and whole[NEXT_ROW] < end_row:
                wake = min(wake, times[DUE, whole[NEXT_ROW]])
            if whole[SHOWN_HEAD] < whole[SHOWN_TAIL]:
                wake = min(wake, times[END, lists[ENDED, whole[SHOWN_HEAD]]])
            idle_until(real, wake)
        else:
            tokens[min(tokens.size - 1, int(real[SHOWN] / bin_s))] += made


def compiles_first() -> bool:
    """Whether the first call of `advance` compiles it, which takes seconds: once after an installation."""
    return not is_compiled(advance)
