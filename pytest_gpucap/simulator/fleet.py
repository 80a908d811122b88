"""A fleet of simulated servers behind a router, in virtual time, as one load runner.

Every replica steps as a single simulated server does (`pytest_gpucap.simulator.engine`). The router hands each request
to a replica when it is due, and knows what it has handed out and what has ended, as a real router does. Its policies:

- ``round_robin``: one after another.
- ``random``: any replica, each with the same chance. Poisson arrivals stay Poisson arrivals at every replica.
- ``least_outstanding``: the replica with the fewest requests that have not ended; among equals, any.
- ``power_of_two``: of two different replicas drawn at random, the one with fewer (Mitzenmacher, "The power of two
  choices in randomized load balancing", 2001).

A replica moves on to the time of a decision before the decision is taken. So the counts are those of that very moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np

from pytest_gpucap.arrays import Bools, Floats, Ints
from pytest_gpucap.jit import compiled
from pytest_gpucap.load.adapters import AdapterDraw
from pytest_gpucap.load.protocol import Journal, LoadError, LoadPhase, Turns
from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import BIN_S, COUNTERS, NOISE_BLOCK, SimRunner, energy_j

MOST_REPLICAS: Final = 4096
"""Seeds of replicas are this far apart from one fleet to the next, so that no two fleets share a replica's noise."""
MANY: Final = 16
SMALL_BLOCK: Final = 1 << 14
"""Noise that is drawn at a time for each replica of a fleet of more than `MANY`: a thousand large blocks are 1 GB."""
FEW_ROWS: Final = 64
"""Rows that a replica's lists hold at first; they double when they are full."""

DONE, NOISE_USED_UP, OUT_OF_ROWS, LIST_FULL = range(4)
TURN, WHICH = range(2)
"""Places of `dealt`: requests handed out so far, and the replica that needs noise."""


class Policy(StrEnum):
    """How a router chooses a replica."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    LEAST_OUTSTANDING = "least_outstanding"
    POWER_OF_TWO = "power_of_two"


_ROUND_ROBIN, _RANDOM, _LEAST, _TWO = range(4)
_NUMBER: Final = {each: number for number, each in enumerate(Policy)}


def replica_seed(seed: int, replica: int) -> int:
    """The seed of a `SimRunner` that has the noise of this replica of the fleet with that seed."""
    return seed * MOST_REPLICAS + replica


@compiled
def _choose(policy: int, turn: int, first: float, second: float, counts: Ints) -> int:
    """The replica for a request, from two uniform draws and the requests that each replica has."""
    n = counts.size
    if policy == _ROUND_ROBIN:
        return int(turn % n)
    a = int(first * n)
    if policy == _RANDOM or n == 1:
        return a
    if policy == _TWO:
        b = _other(a, second, n)
        return a if counts[a] <= counts[b] else b
    best = a
    for k in range(1, n):
        i = (a + k) % n
        if counts[i] < counts[best]:
            best = i
    return best


@compiled
def _other(a: int, second: float, n: int) -> int:
    """Another replica than `a`, each with the same chance."""
    b = int(second * (n - 1))
    return b + 1 if b >= a else b


@compiled
def _outstanding(whole: Ints, lists: engine.Table, times: engine.Times, now: float) -> int:
    """Requests that a replica was given and whose end was not shown by now."""
    while (
        whole[engine.SHOWN_HEAD] < whole[engine.SHOWN_TAIL]
        and times[engine.END, lists[engine.ENDED, whole[engine.SHOWN_HEAD]]] <= now
    ):
        whole[engine.SHOWN_HEAD] += 1
    held = whole[engine.RUNNING] + whole[engine.FRONT] + whole[engine.TAIL] - whole[engine.HEAD]
    return int(held + whole[engine.SHOWN_TAIL] - whole[engine.SHOWN_HEAD])


@compiled
def _run_to(
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
    until_s: float,
) -> bool:
    """Run every step of one replica that begins before `until_s`; false if its noise is used up."""
    while real[engine.TIME] < until_s:
        if whole[engine.NOISE_AT] + engine.LEAST_NOISE > noise.size:
            return False
        made = engine.step(params, real, whole, noise, lists, table, times, gaps)
        if made < 0:
            engine.idle_until(real, until_s)
        else:
            tokens[min(tokens.size - 1, int(real[engine.SHOWN] / bin_s))] += made
    return True


@compiled
def _hand(row: int, to: int, wholes: Any, lists: Any, replica: Ints, dealt: Ints, whole: Ints) -> bool:
    """Put a row into a replica's queue; false if its list is full."""
    tail = wholes[to, engine.TAIL]
    if tail >= lists.shape[2]:
        return False
    lists[to, engine.QUEUE, tail] = row
    wholes[to, engine.TAIL] += 1
    replica[row] = to
    dealt[TURN] += 1
    whole[engine.NEXT_ROW] += 1
    return True


@compiled
def advance_open(
    params: Any,
    reals: Any,
    wholes: Any,
    noise: Any,
    lists: Any,
    table: engine.Table,
    times: engine.Times,
    gaps: Ints,
    tokens: Ints,
    bin_s: float,
    whole: Ints,
    dealt: Ints,
    draws: Any,
    replica: Ints,
    counts: Ints,
    policy: int,
    end_row: int,
    until_s: float,
) -> int:
    """Hand out the rows that are due before `until_s`, and run every replica up to it.

    Arguments by name:
        params, reals, wholes, noise, lists: as for `engine.step`, with one more axis in front, of the replicas.
        table, times, gaps, tokens, bin_s: as for `engine.advance`; all replicas share them.
        whole: ``whole[NEXT_ROW]`` is the next row to hand out.
        dealt: see `TURN`, `WHICH`.
        draws: shape (2, rows), uniform on [0, 1).
        replica: shape (rows,), written.
        counts: shape (replicas,), of each one's requests; written.
        policy: its place in `Policy`.
        end_row: behind the last row of the phase.
        until_s: when to return.

    Returns:
        `DONE`; `NOISE_USED_UP` of replica ``dealt[WHICH]``; `LIST_FULL`. Called again, it goes on.
    """
    n = counts.size
    while whole[engine.NEXT_ROW] < end_row and times[engine.DUE, whole[engine.NEXT_ROW]] < until_s:
        row = whole[engine.NEXT_ROW]
        now = times[engine.DUE, row]
        first, last, jump = 0, n, 1
        if policy in (_ROUND_ROBIN, _RANDOM):
            first = _choose(policy, dealt[TURN], draws[0, row], draws[1, row], counts)
            last = first + 1
        elif policy == _TWO and n > 1:
            a = int(draws[0, row] * n)
            b = _other(a, draws[1, row], n)
            first, last, jump = min(a, b), max(a, b) + 1, abs(a - b)
        for i in range(first, last, jump):
            if reals[i, engine.TIME] < now and not _run_to(
                params[i], reals[i], wholes[i], noise[i], lists[i], table, times, gaps, tokens, bin_s, now
            ):
                dealt[WHICH] = i
                return NOISE_USED_UP
            counts[i] = _outstanding(wholes[i], lists[i], times, now)
        to = _choose(policy, dealt[TURN], draws[0, row], draws[1, row], counts)
        if not _hand(row, to, wholes, lists, replica, dealt, whole):
            return LIST_FULL
    for i in range(n):
        if reals[i, engine.TIME] < until_s and not _run_to(
            params[i], reals[i], wholes[i], noise[i], lists[i], table, times, gaps, tokens, bin_s, until_s
        ):
            dealt[WHICH] = i
            return NOISE_USED_UP
        counts[i] = _outstanding(wholes[i], lists[i], times, until_s)
    return DONE


@compiled
def advance_closed(  # noqa: C901, PLR0912 - compiled code: one loop over events
    params: Any,
    reals: Any,
    wholes: Any,
    noise: Any,
    lists: Any,
    table: engine.Table,
    times: engine.Times,
    gaps: Ints,
    tokens: Ints,
    bin_s: float,
    whole: Ints,
    dealt: Ints,
    draws: Any,
    replica: Ints,
    counts: Ints,
    policy: int,
    end_row: int,
    until_s: float,
    concurrency: int,
    at: Floats,
) -> int:
    """Keep `concurrency` requests in flight over the whole fleet until `until_s`; see `advance_open`.

    The earliest event of all replicas comes first: the begin of a step, or the end of a request.

    Arguments by name, beyond those of `advance_open`:
        concurrency: requests to keep in flight.
        at: ``at[0]`` is the time of the last event; moved on.

    Returns:
        As `advance_open`, or `OUT_OF_ROWS`.
    """
    n = counts.size
    while True:
        now = at[0]
        in_flight = 0
        for i in range(n):
            counts[i] = _outstanding(wholes[i], lists[i], times, now)
            in_flight += counts[i]
        while in_flight < concurrency and now < until_s:
            row = whole[engine.NEXT_ROW]
            if row >= end_row:
                return OUT_OF_ROWS
            to = _choose(policy, dealt[TURN], draws[0, row], draws[1, row], counts)
            times[engine.DUE, row] = now
            if reals[to, engine.TIME] < now:
                engine.idle_until(reals[to], now)
            if not _hand(row, to, wholes, lists, replica, dealt, whole):
                return LIST_FULL
            counts[to] += 1
            in_flight += 1
        busy, event = -1, math.inf
        step_at = math.inf
        for i in range(n):
            w = wholes[i]
            working = w[engine.RUNNING] > 0 or w[engine.FRONT] > 0 or w[engine.HEAD] < w[engine.TAIL]
            if working and reals[i, engine.TIME] < step_at:
                busy, step_at = i, reals[i, engine.TIME]
            if w[engine.SHOWN_HEAD] < w[engine.SHOWN_TAIL]:
                event = min(event, times[engine.END, lists[i, engine.ENDED, w[engine.SHOWN_HEAD]]])
        if min(event, step_at) >= until_s:
            at[0] = max(now, until_s)
            for i in range(n):
                counts[i] = _outstanding(wholes[i], lists[i], times, until_s)
            return DONE
        if event <= step_at and event > now:
            # What it frees is replaced before any replica takes its next step.
            at[0] = event
            continue
        if step_at > now:
            at[0] = step_at
        i = busy
        if wholes[i, engine.NOISE_AT] + engine.LEAST_NOISE > noise.shape[1]:
            dealt[WHICH] = i
            return NOISE_USED_UP
        made = engine.step(params[i], reals[i], wholes[i], noise[i], lists[i], table, times, gaps)
        if made > 0:
            tokens[min(tokens.size - 1, int(reals[i, engine.SHOWN] / bin_s))] += made


class FleetSimRunner(SimRunner):
    """A `LoadRunner` on simulated servers behind a router, all started when this object was made.

    The journal and the histograms are those of the whole fleet. Limits of the scheduler are summed over the replicas
    for a procedure that takes the fleet for one server: `max_num_seqs`, `kv_tokens`, `max_num_batched_tokens`.

    Args:
        models: one engine for each replica; they may differ in speed and limits.
        policy: of the router.
        seed: of the noise of every replica (see `replica_seed`) and of the router's draws.
        error_rate, adapters: see `SimRunner`.

    Raises:
        ValueError: if there is no model, or too many, or they speculate differently: the tokens that a request makes in
            a step are drawn before its replica is known.
    """

    def __init__(
        self,
        models: Sequence[EngineModel],
        policy: Policy | str = Policy.ROUND_ROBIN,
        seed: int = 0,
        error_rate: float = 0.0,
        adapters: AdapterDraw | None = None,
    ) -> None:
        n = len(models)
        if not 0 < n <= MOST_REPLICAS:
            raise ValueError(f"a fleet has 1 to {MOST_REPLICAS} replicas, not {n}")
        if len({(each.spec_tokens, each.spec_accept, each.spec_accept_sd) for each in models}) > 1:
            raise ValueError("the replicas of a fleet must speculate alike")
        self.models = tuple(models)
        self.policy = Policy(policy)
        self._replicas = n
        self._router_rng = np.random.default_rng([0xF1EE7, seed])
        self._draws = np.zeros((2, 0))
        self._replica: Ints = np.zeros(0, np.int64)
        self._run_until_s = 0.0
        # The shortest KV cache says which requests fit.
        super().__init__(min(models, key=lambda each: each.kv_tokens), replica_seed(seed, 0), error_rate, adapters)
        self._block = NOISE_BLOCK if n <= MANY else SMALL_BLOCK
        self._rngs = [np.random.default_rng([0x51, replica_seed(seed, k)]) for k in range(n)]
        self._noises: Any = np.stack([rng.standard_normal(self._block) for rng in self._rngs])
        self._all_params: Any = np.stack([each.params for each in models])
        self._reals: Any = np.zeros((n, engine.REALS))
        for k, each in enumerate(models):
            self._reals[k, engine.DRIFT] = each.drift_sd * self._rngs[k].standard_normal()
        self._wholes: Any = np.zeros((n, engine.WHOLES), np.int64)
        self._wholes[:, engine.NEXT_FINISH] = engine.NEVER
        self._fleet_lists: Any = np.zeros((n, engine.LISTS, FEW_ROWS), np.int64)
        self._dealt: Ints = np.zeros(2, np.int64)
        self._counts: Ints = np.zeros(n, np.int64)

    @property
    def max_num_seqs(self) -> int:
        """Sequences that the fleet runs at once."""
        return sum(each.max_num_seqs for each in self.models)

    @property
    def kv_tokens(self) -> int:
        """Tokens that fit the fleet's KV caches together."""
        return sum(each.kv_tokens for each in self.models)

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens of one step of every replica."""
        return sum(each.max_num_batched_tokens for each in self.models)

    @property
    def replica(self) -> Ints:
        """Shape (n,): which replica answered each row of the journal."""
        return self._replica[: self._rows].copy()

    @property
    def in_flight_of_replicas(self) -> tuple[int, ...]:
        """Requests that each replica was given and that have not ended."""
        return tuple(int(count) for count in self._counts)

    def journal(self) -> Journal:
        """See `LoadRunner.journal`; with each row's replica where a journal has that column."""
        found = super().journal()
        if any(each.name == "replica" for each in fields(Journal)):
            column: dict[str, Any] = {"replica": self.replica}
            return replace(found, **column)
        return found

    @property
    def in_flight(self) -> int:
        """See `SimRunner.in_flight`."""
        return int(self._counts.sum())

    @property
    def preemptions(self) -> int:
        """See `SimRunner.preemptions`."""
        return int(self._wholes[:, engine.PREEMPTIONS].sum())

    def _counters(self) -> list[float]:
        return [float(self._wholes[:, place].sum()) for place in COUNTERS.values()]

    def _energy_j(self, now_s: float) -> float:
        busy = self._reals[:, engine.BUSY]
        return float(sum(energy_j(model, now_s, busy_s) for model, busy_s in zip(self.models, busy, strict=True)))

    def _grow(self, rows: int) -> None:
        super()._grow(rows)
        missing = self._table.shape[1] - self._replica.size
        if missing > 0:
            self._replica = np.concatenate([self._replica, np.full(missing, -1, np.int64)])
            self._draws = np.ascontiguousarray(np.hstack([self._draws, self._router_rng.random((2, missing))]))

    def _advance(self, gaps: Ints, end_row: int, concurrency: int, until_s: float) -> None:
        at = np.array([self._run_until_s])
        while True:
            arguments = (
                self._all_params, self._reals, self._wholes, self._noises, self._fleet_lists, self._table, self._times,
                gaps, self._tokens, BIN_S, self._whole, self._dealt, self._draws, self._replica, self._counts,
                _NUMBER[self.policy], end_row, until_s,
            )  # fmt: skip
            result = advance_closed(*arguments, concurrency, at) if concurrency else advance_open(*arguments)
            if result == DONE:
                self._run_until_s = until_s
                return
            if result == OUT_OF_ROWS:
                raise LoadError("the closed loop ran out of rows before its time was over")
            if result == LIST_FULL:
                self._fleet_lists = np.concatenate([self._fleet_lists, np.zeros_like(self._fleet_lists)], axis=2)
            else:
                which = int(self._dealt[WHICH])
                self._noises[which] = self._rngs[which].standard_normal(self._block)
                self._wholes[which, engine.NOISE_AT] = 0

    def _begin_sessions(self, phase: LoadPhase, planned: Turns, paces: Ints) -> None:  # noqa: ARG002 - refused
        raise LoadError("a simulated fleet has no sessions: measure one replica, or a fleet of real servers")

    def _cancel(self) -> None:
        now_s = self.clock.time_s
        c = self._columns
        still: Bools = np.zeros(self._table.shape[1], np.bool_)
        for w, lists, real in zip(self._wholes, self._fleet_lists, self._reals, strict=True):
            for name, first, end in (
                (engine.BATCH, 0, w[engine.RUNNING]),
                (engine.PREEMPTED, 0, w[engine.FRONT]),
                (engine.QUEUE, w[engine.HEAD], w[engine.TAIL]),
                (engine.ENDED, w[engine.SHOWN_HEAD], w[engine.SHOWN_TAIL]),
            ):
                still[lists[name, first:end]] = True
            real[engine.SHOWN] = now_s
            w[engine.SHOWN_HEAD] = w[engine.SHOWN_TAIL]
            for name in (engine.RUNNING, engine.FRONT, engine.DECODES, engine.KV, engine.PREFILLING):
                w[name] = 0
            w[engine.HEAD] = w[engine.TAIL]
            w[engine.NEXT_FINISH] = engine.NEVER
        open_rows = np.flatnonzero(still)
        # What has not been shown yet never is.
        self._tokens[int(now_s / BIN_S) + 1 :] = 0
        for column in ("first", "last"):
            times = c[column]
            times[open_rows[times[open_rows] > now_s]] = np.nan
        c["end"][open_rows] = now_s
        c["cancelled"][open_rows] = True
        c["finish_at"][open_rows] = engine.NEVER
        self._counts[:] = 0
