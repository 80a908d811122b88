"""Requests for the queue model, drawn from the same schedule that the load is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load import schedule
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, Workload

SEED = 20_260_101
"""The queue model draws its own requests. With the requests of the load it would follow their luck."""
POOL = 16_384
"""Running requests to start replications from: enough that no two replications of an evaluation start alike."""
ARRIVALS = 1 << 21
"""Arrivals over all replications. They take 48 MiB, and a thorough examination uses most of them."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests for all replications, the same at every rate (common random numbers).

    Attributes:
        gap: shape (m,): gaps between arrivals at one request per second.
        prompt, output: shape (m,), tokens.
        pool_left, pool_context: shape (p,): requests found running in steady state: tokens to go, KV held.
        mean_prompt, mean_output: tokens per request.
        poisson: arrivals are Poisson, so that the stationary law holds.
    """

    gap: Floats
    prompt: Ints
    output: Ints
    pool_left: Ints
    pool_context: Ints
    mean_prompt: float
    mean_output: float
    poisson: bool = True

    @property
    def mean_context(self) -> float:
        """Mean KV tokens of a running request."""
        return float(self.pool_context.mean())


def traffic_for(workload: Workload) -> Traffic:
    """The queue model's requests for a workload; the same for every measurement of it (common random numbers)."""
    return _traffic(workload.input_tokens, workload.output_tokens, workload.arrivals)


@lru_cache(maxsize=4)
def _traffic(inputs: Length, outputs: Length, arrivals: Arrivals) -> Traffic:
    workload = Workload(input_tokens=inputs, output_tokens=outputs, arrivals=arrivals)
    spread = 8.0 * max(1.0, arrivals.burstiness) * ARRIVALS**0.5
    phase = schedule.open_loop(workload, 1.0, ARRIVALS + spread, SEED, 0)
    pool = schedule.closed_loop(workload, POOL, 1.0, 1.0, SEED, 1)
    return Traffic(
        gap=np.diff(phase.due_s),
        prompt=phase.prompt_tokens[1:].astype(np.int64),
        output=phase.output_tokens[1:].astype(np.int64),
        pool_left=pool.output_tokens[:POOL].astype(np.int64),
        pool_context=pool.prompt_tokens[:POOL].astype(np.int64),
        mean_prompt=float(phase.prompt_tokens.mean()),
        mean_output=float(phase.output_tokens.mean()),
        poisson=arrivals.kind is ArrivalKind.POISSON,
    )
