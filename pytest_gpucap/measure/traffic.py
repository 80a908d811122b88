"""Requests for the twin, drawn from the same schedule that the load is drawn from."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pytest_gpucap.estimate.queue_model import Traffic
from pytest_gpucap.load import schedule
from pytest_gpucap.requirement import ArrivalKind, Arrivals, Length, Workload

TWIN_SEED = 20_260_101
"""The twin draws its own requests: using those of the load would fit it to their luck."""
POOL = 16_384
"""Running requests to start lanes from."""
ARRIVALS = 1 << 21
"""Arrivals over all lanes: 48 MiB of them."""


def traffic_for(workload: Workload) -> Traffic:
    """The twin's requests for a workload; the same for every measurement of it (common random numbers)."""
    return _traffic(workload.input_tokens, workload.output_tokens, workload.arrivals)


@lru_cache(maxsize=4)
def _traffic(inputs: Length, outputs: Length, arrivals: Arrivals) -> Traffic:
    workload = Workload(input_tokens=inputs, output_tokens=outputs, arrivals=arrivals)
    spread = 8.0 * max(1.0, arrivals.burstiness) * ARRIVALS**0.5
    phase = schedule.open_loop(workload, 1.0, ARRIVALS + spread, TWIN_SEED, 0)
    pool = schedule.closed_loop(workload, POOL, 1.0, 1.0, TWIN_SEED, 1)
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
