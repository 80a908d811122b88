"""What it costs a server that its prefix cache forgets: sessions through it for hours, in a simulation.

A server that forgets computes again what it forgot. So more requests are in flight, which take room from what the cache
still has, and more is forgotten. A busy moment can start that, and the server then stays slow for minutes. A check of a
minute hardly meets one. But all of it follows from what a check does measure, the engine's speed and the size of its KV
cache. So sessions are simulated, turn after turn, with the cache that the server has. By how much the rate that they
sustain lies below that of the queue model, in which nothing is forgotten, is what forgetting costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.queue_model import Evaluation, ServerModel, server_of
from pytest_gpucap.estimate.queue_simulation import GAP_BINS
from pytest_gpucap.estimate.session_simulation import SessionLatencies, SessionRequests, Stops, simulate_sessions
from pytest_gpucap.load import schedule
from pytest_gpucap.load.draws import random_generator, uniform
from pytest_gpucap.load.protocol import OpenLoop
from pytest_gpucap.requirement import Limit, Workload

SEED: Final = 20_260_103
"""The simulation draws its own sessions. With those of the load it would follow their luck."""
RUN_S: Final = 3000.0
"""One run: long against sessions, and against the minutes for which a server that began to forget stays slow."""
RUN_REQUESTS: Final = 100_000
"""A run with more requests than these is shorter: with many sessions at a time, less is left to luck."""
LEAST_RUN_S: Final = 900.0
"""The shortest run: three times what is discarded of it."""
DISCARD_S: Final = 300.0
"""The beginning of a run, in which the cache fills."""
DRAINED_S: Final = 600.0
"""Requests that have not ended so long after the last one came never end."""
MOST_RUNS: Final = 24
"""Runs at a rate. Some of them meet a busy moment that makes the server forget, and some do not."""
LEAST_RUNS: Final = 4
"""Fewest runs at a rate, of servers with so many requests that few runs tell as much."""
REQUESTS: Final = 300_000
"""Requests of all runs at a rate, which take about a second."""
FORGOTTEN: Final = 0.01
"""A cache forgets if this share of what sessions sent before is not found. Less moves the rate by a few thousandths."""
OVERWRITTEN: Final = 4.0
"""Nor does it, where the longest pause lets this part of it be overwritten at most."""
LONGEST_PAUSES: Final = 0.999
"""Quantile of the pauses that is taken for the longest."""
STEP_LN: Final = 0.06
"""First distance in ln(rate) at which the edge is looked for."""
CLOSE_LN: Final = 0.004
"""The edge is known to this, in ln(rate)."""
MOST_STEPS: Final = 8
"""Times that the distance is doubled: by then the rate is below a hundredth."""
BACKLOG_S: Final = 60.0
"""Without a limit on latency, a rate is too high at which the usual request waits as long: a backlog grows."""
SIMULATED_ERROR: Final = 0.012
"""Standard error of ln(rate) from the luck of the simulated runs."""
COST_ERROR: Final = 0.07
"""Standard error of what forgetting costs, as a share of it: speeds and the rule of eviction are not quite known."""
FITTED_ERROR: Final = 0.4
"""The same where the size of the cache is not told, or is another than the hits say, and so follows from these."""


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What forgetting costs.

    Attributes:
        rate_rps: that the server would sustain if it forgot nothing.
        room: tokens of the cache; 0: there is none.
        lost: share of what sessions sent before that the cache has forgotten at `rate_rps`, in the long run.
        log_cost: change of ln(rate); 0 where it forgets next to nothing.
        error: standard error of that.
    """

    rate_rps: float
    room: float
    lost: float = 0.0
    log_cost: float = 0.0
    error: float = 0.0

    @property
    def share(self) -> float:
        """What it costs, as a share of the rate."""
        return -math.expm1(self.log_cost)


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """Sessions at a rate: what requests met, and the share of what was sent before that was not found."""

    latencies: Evaluation
    lost: float


def forgetting(
    model: ServerModel, workload: Workload, limits: tuple[Limit, ...], rate_rps: float, room: float, *, told: bool
) -> Forgetting:
    """What it costs a server that its cache forgets.

    Args:
        model: of the server.
        workload: with sessions.
        limits: on latencies.
        rate_rps: that it would sustain if it forgot nothing, by the queue model.
        room: tokens of the prefix cache; 0: there is none.
        told: the server tells that size, and no hits say otherwise.
    """
    if not could_forget(model, workload, rate_rps, room):
        return Forgetting(rate_rps, room)

    def breaks(found: Evaluation) -> bool:
        over = (found.of_limit(limit) for limit in limits)
        return max(over, default=float(np.median(found.ttft_s)) / BACKLOG_S) > 1.0

    def too_high(log_rate: float) -> bool:
        return breaks(_evaluated(model, workload, math.exp(log_rate), room).latencies)

    found = _evaluated(model, workload, rate_rps, room)
    if found.lost < FORGOTTEN:
        return Forgetting(rate_rps, room, found.lost)
    log_rate = math.log(rate_rps)
    cost = min(0.0, _edge(too_high, log_rate, begins_high=breaks(found.latencies)) - log_rate)
    return Forgetting(
        rate_rps, room, found.lost, cost, math.hypot(SIMULATED_ERROR, (COST_ERROR if told else FITTED_ERROR) * cost)
    )


def could_forget(model: ServerModel, workload: Workload, rate_rps: float, room: float) -> bool:
    """Whether a pause may be long enough for a good part of the cache to be overwritten in it."""
    if room == math.inf:
        return False
    if room <= 0.0:
        return True
    turns = _requests(_drawn(workload, rate_rps, LEAST_RUN_S, 0))
    follows = turns.first == 0
    if not follows.any():
        return False
    written = rate_rps * float((turns.prompt - turns.sent + turns.output).mean())
    pause_s = float(np.quantile(turns.think_s[follows], LONGEST_PAUSES))
    # A turn waits for those before it, too.
    answered_s = float(turns.output.max()) * float(model.speed[1])
    return OVERWRITTEN * written * (pause_s + answered_s) > room


def _drawn(workload: Workload, rate_rps: float, run_s: float, run: int) -> OpenLoop:
    """The sessions of a run.

    Those under way when it begins are taken to be answered at once, so they are a little few: a server whose cache is
    empty is not driven into forgetting by the start alone.
    """
    return schedule.open_loop(workload, rate_rps, run_s, SEED, run)


def _requests(phase: OpenLoop) -> SessionRequests:
    """An open loop of sessions as the simulation takes it."""
    assert phase.turns is not None  # noqa: S101 - of sessions
    turns = phase.turns
    next_turn = np.full(phase.prompt_tokens.size, -1, np.int64)
    follows = np.flatnonzero(turns.after >= 0)
    next_turn[turns.after[follows]] = follows
    return SessionRequests(
        phase.due_s,
        phase.prompt_tokens.astype(np.int64),
        phase.output_tokens.astype(np.int64),
        turns.cached.astype(np.int64),
        next_turn,
        turns.think_s,
        (turns.after < 0).astype(np.int64),
    )


def _stops(model: ServerModel, run_s: float, run: int) -> Stops:
    """The engine's stops in a run."""
    if model.stall_per_s <= 0.0:
        return Stops(np.zeros(0), np.zeros(0))
    expected = model.stall_per_s * run_s
    count = math.ceil(expected + 6.0 * math.sqrt(expected)) + 8
    gaps, lengths = uniform(random_generator(SEED, run), 2 * count).reshape(2, count)
    at_s: Floats = np.cumsum(-np.log(gaps)) / model.stall_per_s
    return Stops(at_s, np.array(model.stall_s)[(lengths * len(model.stall_s)).astype(np.int64)])


def _evaluated(model: ServerModel, workload: Workload, rate_rps: float, room: float) -> _Evaluated:
    """Many runs at a rate."""
    run_s = min(RUN_S, max(LEAST_RUN_S, RUN_REQUESTS / rate_rps))
    runs = int(min(MOST_RUNS, max(LEAST_RUNS, REQUESTS / (rate_rps * run_s))))
    parts: list[tuple[Floats, Floats, Floats]] = []
    gaps, server = np.zeros(GAP_BINS), server_of(model)
    sent = lost = 0
    for run in range(runs):
        requests = _requests(_drawn(workload, rate_rps, run_s, run))
        n = requests.prompt.size
        seen = SessionLatencies(np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan), np.full(n, -1, np.int64))
        simulate_sessions(
            server, requests, room if room > 0.0 else -math.inf, workload.shared_prefix_tokens,
            _stops(model, run_s, run), run_s, run_s + DRAINED_S, seen, gaps,
        )  # fmt: skip
        counted = seen.due_s >= DISCARD_S
        ttft, e2e = (np.where(np.isnan(each[counted]), np.inf, each[counted]) for each in (seen.ttft_s, seen.e2e_s))
        after_first = np.where(requests.output[counted] > 1, requests.output[counted] - 1.0, np.nan)
        with np.errstate(invalid="ignore"):
            parts.append((ttft, np.where(np.isinf(e2e), np.inf, e2e - ttft) / after_first, e2e))
        admitted = counted & (seen.found >= 0)
        sent += int(requests.sent[admitted].sum())
        lost += int((requests.sent - seen.found)[admitted].sum())
    ttft, tpot, e2e = (np.concatenate(each) for each in zip(*parts, strict=True))
    calibration = model.calibration
    latencies = Evaluation(
        rate_rps, ttft, tpot, e2e, np.zeros(0), gaps, calibration.latency_factors, model.failed,
        calibration.first_token_factor,
    )  # fmt: skip
    return _Evaluated(latencies, lost / sent if sent else 0.0)


def _edge(too_high: Callable[[float], bool], guess: float, *, begins_high: bool) -> float:
    """Where rates begin to be too high, by halving: near the rate at which a cache begins to forget, latency leaps.

    `begins_high` says whether the guess is too high, which is known already.
    """
    step, at = STEP_LN, guess
    for _ in range(MOST_STEPS):
        at += -step if begins_high else step
        if too_high(at) is not begins_high:
            break
        step *= 2.0
    low, top = (at, at + step) if begins_high else (at - step, at)
    while top - low > CLOSE_LN:
        middle = (low + top) / 2.0
        if too_high(middle):
            top = middle
        else:
            low = middle
    return (low + top) / 2.0
