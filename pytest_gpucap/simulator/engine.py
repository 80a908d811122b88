"""One engine step after another: the part of the simulated server that both virtual time and HTTP run.

The model follows vLLM's scheduler. Every step gives each running decode one token, fills what is left of the token
budget with prompt chunks, first of running requests, then of waiting ones in order of arrival, and admits while a
sequence slot and KV space are free. When the running decodes outgrow the KV cache, the last admitted request is
preempted: it loses its KV, returns to the head of the queue and is prefilled again, generated tokens included. A step
takes

    base + per_seq * decodes + per_seq_over * max(0, decodes - knee) + per_kv_token * kv + per_prompt_token * chunk

times noise, drift and the warm-up transient, plus now and then a stall.

With `front_token_s` above 0 a second station hands the tokens out: the API server, a process of its own on one core. It
takes a step's tokens in their order, each for

    front_token_s * (1 + front_loss * backlog / (backlog + front_backlog_s))

with `backlog` the seconds of work that wait before it (buffers and collections of garbage grow with what is held). The
engine does not wait for it. Beyond the front end's speed a backlog grows, it grows less efficient, and throughput falls
as requests are added.

The code is one function over arrays, because it runs for millions of steps; numba compiles it where installed. State
lives in two vectors, `real` and `whole`, indexed by the names below.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pytest_gpucap.jit import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Model parameters (`params`).
BASE, PER_SEQ, PER_SEQ_OVER, KNEE, PER_KV, PER_PROMPT = 0, 1, 2, 3, 4, 5
NOISE, DRIFT_SD, DRIFT_TAU, STALL_PER_S, STALL_S, WARM_EXTRA, WARM_TAU = 6, 7, 8, 9, 10, 11, 12
MAX_SEQS, TOKEN_BUDGET, KV_TOKENS = 13, 14, 15
FRONT_TOKEN, FRONT_LOSS, FRONT_BACKLOG = 16, 17, 18
PARAMS = 19

# Real-valued state.
TIME, DRIFT, DRIFT_AT, STARTED, STEP_S, SHOWN = 0, 1, 2, 3, 4, 5
REALS = 6
"""`SHOWN`: when the front end has handed out the last step's tokens; the step's own end without a front end."""

# Whole-number state.
HEAD, TAIL, FRONT, RUNNING, DECODES, KV, DECODE_STEP, NEXT_ROW, NOISE_AT, PREFILLING, NEXT_FINISH, PREEMPTIONS = range(
    12
)
SHOWN_HEAD, SHOWN_TAIL = 12, 13
WHOLES = 14

DRIFT_EVERY_S = 0.5
"""The drift moves at this interval; its time constant is minutes."""
GAP_LOWEST_S = 1e-4
GAP_GROWTH = 1.02
GAP_BINS = 700
NEVER = 2**62


@compiled
def step(  # noqa: C901, PLR0912, PLR0915 - one scheduler step, read top to bottom
    params: Floats,
    real: Floats,
    whole: Ints,
    noise: Floats,
    queue: Ints,
    front: Ints,
    run: Ints,
    prompt: Ints,
    output: Ints,
    cached: Ints,
    target: Ints,
    done: Ints,
    finish_at: Ints,
    shown: Ints,
    first_s: Floats,
    last_s: Floats,
    end_s: Floats,
    gaps: Ints,
) -> int:
    """Run one step from ``real[TIME]``, and move the time on; return the tokens generated at its end, -1 when idle.

    Request columns (shape (n,), one row a request): `prompt` and `output` as asked for; `cached` KV tokens held;
    `target` tokens to prefill before it decodes (more than `prompt` after a preemption); `done` tokens generated when
    it last began to decode; `finish_at` the decode step at which it completes. `shown`, shape (n,), gets the requests
    that the engine has done with, in the order in which the front end will show their ends.
    """
    max_seqs, token_budget, kv_tokens = int(params[MAX_SEQS]), int(params[TOKEN_BUDGET]), int(params[KV_TOKENS])
    # Decodes need one KV token each; preempt from the back until they fit.
    while whole[KV] + whole[DECODES] > kv_tokens and whole[RUNNING] > 1:
        victim = run[whole[RUNNING] - 1]
        whole[RUNNING] -= 1
        whole[PREEMPTIONS] += 1
        if finish_at[victim] != NEVER:
            left = finish_at[victim] - whole[DECODE_STEP]
            held = prompt[victim] + output[victim] - left
            done[victim] = output[victim] - left
            target[victim] = held
            finish_at[victim] = NEVER
            whole[DECODES] -= 1
            whole[KV] -= held
        else:
            whole[PREFILLING] -= 1
            whole[KV] -= cached[victim]
        cached[victim] = 0
        front[whole[FRONT]] = victim
        whole[FRONT] += 1
    decodes = whole[DECODES]
    budget = token_budget - decodes
    chunk_tokens = 0
    fresh = 0  # requests whose prefill ends in this step
    if whole[PREFILLING] > 0:
        for i in range(whole[RUNNING]):
            r = run[i]
            if finish_at[r] == NEVER and budget > 0:
                chunk = min(target[r] - cached[r], budget, kv_tokens - whole[KV] - decodes)
                if chunk <= 0:
                    continue
                cached[r] += chunk
                whole[KV] += chunk
                budget -= chunk
                chunk_tokens += chunk
                if cached[r] == target[r]:
                    fresh += 1
    while budget > 0 and whole[RUNNING] < max_seqs and (whole[FRONT] > 0 or whole[HEAD] < whole[TAIL]):
        r = front[whole[FRONT] - 1] if whole[FRONT] > 0 else queue[whole[HEAD]]
        if whole[KV] + decodes + target[r] > kv_tokens and whole[RUNNING] > 0:
            break
        if whole[FRONT] > 0:
            whole[FRONT] -= 1
        else:
            whole[HEAD] += 1
        run[whole[RUNNING]] = r
        whole[RUNNING] += 1
        whole[PREFILLING] += 1
        chunk = min(target[r], budget)
        cached[r] = chunk
        whole[KV] += chunk
        budget -= chunk
        chunk_tokens += chunk
        if chunk == target[r]:
            fresh += 1
    if decodes == 0 and chunk_tokens == 0:
        return -1

    # How long it takes.
    while real[TIME] - real[DRIFT_AT] >= DRIFT_EVERY_S:
        real[DRIFT_AT] += DRIFT_EVERY_S
        keep = math.exp(-DRIFT_EVERY_S / params[DRIFT_TAU])
        real[DRIFT] = real[DRIFT] * keep + params[DRIFT_SD] * math.sqrt(1 - keep * keep) * noise[whole[NOISE_AT]]
        whole[NOISE_AT] += 1
    seconds = params[BASE] + params[PER_SEQ] * decodes + params[PER_KV] * whole[KV] + params[PER_PROMPT] * chunk_tokens
    if decodes > params[KNEE]:
        seconds += params[PER_SEQ_OVER] * (decodes - params[KNEE])
    seconds *= max(0.5, 1.0 + params[NOISE] * noise[whole[NOISE_AT]]) * math.exp(real[DRIFT])
    whole[NOISE_AT] += 1
    age = real[TIME] - real[STARTED]
    if params[WARM_EXTRA] > 0.0 and age < 12.0 * params[WARM_TAU]:
        seconds *= 1.0 + params[WARM_EXTRA] * math.exp(-age / params[WARM_TAU])
    # A normal draw beyond its own quantile is as good as a uniform one, and reuses the noise block.
    if 0.5 * math.erfc(noise[whole[NOISE_AT]] / math.sqrt(2.0)) < params[STALL_PER_S] * seconds:
        seconds += params[STALL_S]
    whole[NOISE_AT] += 1
    real[TIME] += seconds
    real[STEP_S] = seconds
    now = real[TIME]
    gap_s = seconds
    if params[FRONT_TOKEN] > 0.0:
        before = real[SHOWN]
        backlog = max(0.0, before - now)
        lost = params[FRONT_LOSS] * backlog / (backlog + params[FRONT_BACKLOG])
        now = max(before, now) + (decodes + fresh) * params[FRONT_TOKEN] * (1.0 + lost)
        gap_s = now - before if backlog > 0.0 else seconds
    real[SHOWN] = now

    # What it brought.
    if decodes > 0:
        whole[DECODE_STEP] += 1
        whole[KV] += decodes
        gap_bin = 0
        if gap_s > GAP_LOWEST_S:
            gap_bin = min(GAP_BINS - 1, math.ceil(math.log(gap_s / GAP_LOWEST_S) / math.log(GAP_GROWTH)))
        gaps[gap_bin] += decodes
    at = whole[DECODE_STEP]
    if fresh == 0 and at < whole[NEXT_FINISH]:
        return int(decodes)
    kept = 0
    soonest = NEVER
    for i in range(whole[RUNNING]):
        r = run[i]
        if finish_at[r] == NEVER:
            if cached[r] == target[r]:
                if done[r] == 0:
                    first_s[r] = now
                done[r] += 1
                finish_at[r] = at + output[r] - done[r]
                # From here on its tokens are known from finish_at; `held` in a preemption counts this token's KV too.
                whole[KV] += 1
                whole[PREFILLING] -= 1
                whole[DECODES] += 1
            else:
                run[kept] = r
                kept += 1
                continue
        if finish_at[r] <= at:
            whole[DECODES] -= 1
            whole[KV] -= prompt[r] + output[r]
            cached[r] = 0
            last_s[r] = now
            end_s[r] = now
            shown[whole[SHOWN_TAIL]] = r
            whole[SHOWN_TAIL] += 1
            continue
        soonest = min(soonest, finish_at[r])
        run[kept] = r
        kept += 1
    whole[RUNNING] = kept
    whole[NEXT_FINISH] = soonest
    return int(decodes + fresh)


@compiled
def advance(  # noqa: C901, PLR0912 - one loop, read top to bottom
    params: Floats,
    real: Floats,
    whole: Ints,
    noise: Floats,
    queue: Ints,
    front: Ints,
    run: Ints,
    prompt: Ints,
    output: Ints,
    cached: Ints,
    target: Ints,
    done: Ints,
    finish_at: Ints,
    shown: Ints,
    due_s: Floats,
    first_s: Floats,
    last_s: Floats,
    end_s: Floats,
    gaps: Ints,
    tokens: Ints,
    bin_s: float,
    end_row: int,
    concurrency: int,
    until_s: float,
) -> int:
    """Run steps until `until_s`, taking in rows [``whole[NEXT_ROW]``, `end_row`) as they become due.

    `concurrency` 0: rows are due at `due_s` (open loop). Above 0: a row becomes due when fewer are in flight, and its
    due time is written (closed loop).

    Returns:
        0 when the time is reached, 1 when the noise block must be renewed, 2 when a closed loop has no row left.
    """
    while True:
        now = real[TIME]
        while whole[SHOWN_HEAD] < whole[SHOWN_TAIL] and end_s[shown[whole[SHOWN_HEAD]]] <= now:
            whole[SHOWN_HEAD] += 1
        if concurrency > 0:
            in_flight = whole[RUNNING] + whole[FRONT] + whole[TAIL] - whole[HEAD]
            in_flight += whole[SHOWN_TAIL] - whole[SHOWN_HEAD]
            while in_flight < concurrency and now < until_s:
                if whole[NEXT_ROW] >= end_row:
                    return 2
                r = whole[NEXT_ROW]
                due_s[r] = now
                queue[whole[TAIL]] = r
                whole[TAIL] += 1
                whole[NEXT_ROW] += 1
                in_flight += 1
        else:
            while whole[NEXT_ROW] < end_row and due_s[whole[NEXT_ROW]] <= now:
                queue[whole[TAIL]] = whole[NEXT_ROW]
                whole[TAIL] += 1
                whole[NEXT_ROW] += 1
        if now >= until_s:
            return 0
        if whole[NOISE_AT] + 4096 > noise.size:
            return 1
        made = step(
            params, real, whole, noise, queue, front, run, prompt, output, cached, target, done, finish_at, shown,
            first_s, last_s, end_s, gaps,
        )  # fmt: skip
        if made < 0:
            wake = until_s
            if concurrency == 0 and whole[NEXT_ROW] < end_row:
                wake = min(wake, due_s[whole[NEXT_ROW]])
            if whole[SHOWN_HEAD] < whole[SHOWN_TAIL]:
                wake = min(wake, end_s[shown[whole[SHOWN_HEAD]]])
            # Idle time lets the drift move at most a block at a time; nothing else happens in it.
            real[TIME] = max(now, wake)
            real[DRIFT_AT] = max(real[DRIFT_AT], real[TIME] - 1000.0 * DRIFT_EVERY_S)
        else:
            tokens[min(tokens.size - 1, int(real[SHOWN] / bin_s))] += made
