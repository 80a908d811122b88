"""Requests for the queue model, drawn from the same schedule that the load is drawn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load import schedule
from pytest_gpucap.load.draws import random_generator, uniform
from pytest_gpucap.load.recorded_sessions import recorded_starts_s
from pytest_gpucap.load.sessions import typical
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, OwnPrompts, Sessions, Workload

SEED = 20_260_101
"""The queue model draws its own requests. With the requests of the load it would follow their luck."""
POOL = 16_384
"""Running requests to start replications from: enough that no two replications of an evaluation start alike."""
ARRIVALS = 1 << 21
"""Arrivals over all replications. They take 48 MiB, and a thorough examination uses most of them."""

PACE_PHASE = 0.5698402909980532
"""The inverse square of the plastic number. Its multiples spread paces evenly, and independently of the step phases."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests for all replications, the same at every rate (common random numbers).

    Attributes:
        gap: shape (m,): gaps between arrivals at one request per second.
        prompt, output: shape (m,), tokens. Where answers have paces of their own, `output` is what their tokens amount
            to at the common pace.
        cached: shape (m,), tokens at the start of the prompt that the session sent before.
        made: shape (m,), tokens of each answer.
        pool_left, pool_context: shape (p,): requests found running in steady state: tokens to go, KV held.
        mean_prompt, mean_output: tokens per request; of prompts those that are not cached.
        even_prompt: length of the prompt that the average prompt token is in; with sessions it is that and what is
            cached of it, of the average token that is not.
        poisson: arrivals are Poisson, so that the stationary law holds.
    """

    gap: Floats
    prompt: Ints
    output: Ints
    cached: Ints
    made: Ints
    pool_left: Ints
    pool_context: Ints
    mean_prompt: float
    mean_output: float
    even_prompt: float
    poisson: bool = True

    @property
    def mean_context(self) -> float:
        """Mean KV tokens of a running request."""
        return float(self.pool_context.mean())

    def paced(self, own: tuple[float, ...]) -> Traffic:
        """The same requests, each with a pace of its own: one of `own`, in tokens per token of the common pace."""
        if not own:
            return self
        paces: Floats = np.sort(np.array(own, np.float64))
        # An answer is under way for a time in inverse proportion to its pace, and so likely found running.
        time = np.cumsum(1.0 / paces)
        running: Floats = paces[np.minimum(np.searchsorted(time / time[-1], _spread(POOL)), paces.size - 1)]
        drawn: Floats = paces[_spread_over(self.made.size, paces.size)]
        return replace(
            self,
            output=np.maximum(1, np.rint(self.made / drawn)).astype(np.int64),
            pool_left=np.maximum(1, np.rint(self.pool_left / running)).astype(np.int64),
        )


def _spread(count: int) -> Floats:
    """Numbers in [0, 1), evenly spread and in no order: multiples of an irrational number, modulo 1."""
    numbers: Floats = (np.arange(count, dtype=np.float64) * PACE_PHASE) % 1.0
    return numbers


@lru_cache(maxsize=1)
def _spread_over(count: int, places: int) -> Ints:
    """`_spread` in whole places from 0. Kept: every look at the evidence has paces of its own in the same places."""
    return np.floor(_spread(count) * places).astype(np.int64)


def traffic_for(workload: Workload, own_paces: tuple[float, ...] = ()) -> Traffic:
    """The queue model's requests for a workload; the same for every measurement of it (common random numbers).

    Args:
        workload: whose lengths and arrivals they have.
        own_paces: of the requests (`Traffic.paced`); empty: all run at the common pace.
    """
    shared = workload.shared_prefix_tokens if workload.sessions else 0
    own = _Own(workload.prompts, workload.sessions, shared)
    shape = workload.input_tokens, workload.output_tokens, workload.arrivals, own
    return _paced(*shape, own_paces) if own_paces else _traffic(*shape)


class _Own(NamedTuple):
    """What a workload has beside lengths and arrivals, as far as traffic depends on it."""

    prompts: OwnPrompts | None
    sessions: Sessions | None
    shared: int


@lru_cache(maxsize=2)
def _paced(inputs: Length, outputs: Length, arrivals: Arrivals, own: _Own, own_paces: tuple[float, ...]) -> Traffic:
    return _traffic(inputs, outputs, arrivals, own).paced(own_paces)


@lru_cache(maxsize=4)
def _traffic(inputs: Length, outputs: Length, arrivals: Arrivals, own: _Own) -> Traffic:
    prompts = own.prompts
    if own.sessions is not None:
        return _of_sessions(own.sessions, outputs, arrivals, own.shared)
    workload = Workload(input_tokens=inputs, output_tokens=outputs, arrivals=arrivals, prompts=prompts)
    spread = 8.0 * max(1.0, arrivals.burstiness) * ARRIVALS**0.5
    phase = schedule.open_loop(workload, 1.0, ARRIVALS + spread, SEED, 0)
    if prompts is None:
        pool = schedule.closed_loop(workload, POOL, 1.0, 1.0, SEED, 1)
        context, left = pool.prompt_tokens[:POOL], pool.output_tokens[:POOL]
    else:  # a closed loop's prompts are not as long as those of requests under way
        found_running = random_generator(SEED, 1)
        context, left = schedule.in_flight(phase.prompt_tokens, phase.output_tokens, POOL, found_running)
    return Traffic(
        gap=np.diff(phase.due_s),
        prompt=phase.prompt_tokens[1:].astype(np.int64),
        output=phase.output_tokens[1:].astype(np.int64),
        cached=np.zeros(phase.due_s.size - 1, np.int64),
        made=phase.output_tokens[1:].astype(np.int64),
        pool_left=left.astype(np.int64),
        pool_context=context.astype(np.int64),
        mean_prompt=float(phase.prompt_tokens.mean()),
        mean_output=float(phase.output_tokens.mean()),
        even_prompt=float((phase.prompt_tokens.astype(np.float64) ** 2).mean() / phase.prompt_tokens.mean()),
        poisson=arrivals.kind is ArrivalKind.POISSON,
    )


def _of_sessions(sessions: Sessions, outputs: Length, arrivals: Arrivals, shared: int) -> Traffic:
    """Turns of many sessions at once, each taken by itself.

    First turns arrive as the workload says, and later ones at moments of their own: where many sessions are under way,
    the one that comes next is any of them (the superposition of many sparse processes is Poisson). How the turns of one
    session depend on each other is in the replays of the open loops, and in the error that is taken by session.
    """
    turns = typical(sessions, outputs, shared)
    first = np.concatenate([[True], np.diff(turns.session) != 0])
    share = float(first.mean())
    seconds = ARRIVALS + 8.0 * max(1.0, arrivals.burstiness) * ARRIVALS**0.5
    if arrivals.kind is ArrivalKind.TRACE and sessions.recorded is not None:
        firsts_s = recorded_starts_s(sessions.recorded, share, seconds, 0)
    else:
        firsts_s = schedule.arrivals_s(arrivals, share, seconds, SEED, 2)
    later_s = schedule.arrivals_s(Arrivals(), 1.0 - share, seconds, SEED, 3) if share < 1.0 else np.zeros(0)
    due_s = np.concatenate([firsts_s, later_s])
    order = np.argsort(due_s, kind="stable")
    random = random_generator(SEED, 4)
    picked = np.concatenate(
        [
            np.flatnonzero(those)[np.floor(uniform(random, n) * int(those.sum())).astype(np.int64)]
            for those, n in ((first, firsts_s.size), (~first, later_s.size))
            if n
        ]
    )[order][1:]
    context, left = schedule.in_flight(turns.prompt, turns.output, POOL, random_generator(SEED, 1))
    whole, cached = turns.prompt.astype(np.float64), turns.before.astype(np.float64)
    output = turns.output[picked].astype(np.int64)
    return Traffic(
        gap=np.diff(due_s[order]),
        prompt=turns.prompt[picked].astype(np.int64),
        output=output,
        cached=turns.before[picked].astype(np.int64),
        made=output,
        pool_left=left.astype(np.int64),
        pool_context=context.astype(np.int64),
        mean_prompt=float((whole - cached).mean()),
        mean_output=float(turns.output.mean()),
        even_prompt=float((whole**2 - cached**2).mean() / (whole - cached).mean()),
        poisson=arrivals.kind is ArrivalKind.POISSON,
    )
