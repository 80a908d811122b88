"""Which staircase a server's step times are: where the times leave several possible, their rates differ.

Two staircases that agree on the batches measured may differ on the next larger ones, which decide a percentile.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.estimate.sustainable_rate import sustainable
from pytest_gpucap.estimate.traffic import Traffic
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Limit


def rival_shifts(
    speed: Speed, model: ServerModel, traffic: Traffic, limits: tuple[Limit, ...], rate_rps: float
) -> tuple[tuple[float, float], ...]:
    """The chance of each staircase that the times leave possible, and the change of ln(rate) with it; the first is 0.

    Args:
        speed: the curve fitted.
        model: with that curve.
        traffic: of the workload.
        limits: of the SLO.
        rate_rps: that the model sustains, without any correction.
    """
    found = [(1.0, 0.0)]
    for chance, rival in speed.rivals:
        other = replace(
            model,
            speed=rival.table(model.speed.size - 1),
            prefill_s=rival.prefill_s,
            kv_token_s=rival.kv_token_s,
            prefill_growth_s=rival.prefill_growth_s,
        )
        rate = sustainable(other, traffic, limits, rate_rps).rate_rps
        found.append((chance, math.log(rate / rate_rps)))
    total = sum(chance for chance, _ in found)
    return tuple((chance / total, shift) for chance, shift in found)


def larger_batch(settings: Settings, traffic: Traffic, in_flight: float, level: int) -> int:
    """Requests to hold so that staircases that agree on the batches measured differ: more than both, if they fit.

    Args:
        settings: the server's limits.
        traffic: of the workload.
        in_flight: requests in flight at the estimated rate.
        level: highest concurrency held so far.
    """
    most = float(settings.max_num_seqs or c.UNKNOWN_SEQS)
    if settings.kv_tokens:
        most = min(most, c.KV_SHARE * settings.kv_tokens / traffic.mean_context)
    return int(min(most, math.ceil(c.STAIR_MORE * max(level, in_flight))))
