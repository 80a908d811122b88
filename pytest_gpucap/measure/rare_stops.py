"""What a few long stops of the engine leave open: how often they come, how long they last, and that some may come yet.

A stop of a second makes all requests late that meet it. So where stops come every half minute, their number and their
length decide the rate, and a check sees a handful of them, or none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from pytest_gpucap.estimate.bins import LEAST_DECODING, bins_of
from pytest_gpucap.estimate.queue_model import LONG_STOP_S, ServerModel, evaluate
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.estimate.sustainable_rate import sustainable
from pytest_gpucap.estimate.traffic import Traffic, traffic_for
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.measure import constants as c
from pytest_gpucap.requirement import Limit, Requirement

STILL_BIN_S = LONG_STOP_S / 2.0
"""Width of the bins in which a standstill is looked for: two without any token are a long one."""
UNMOVED: tuple[tuple[float, float], ...] = ((1.0, 0.0),)
"""The chances and changes of ln(rate) where nothing unknown moves it."""


def long_stops(speed: Speed) -> tuple[float, ...]:
    """Lengths of the long stops that were seen."""
    return tuple(each for each in speed.stops_s if each > LONG_STOP_S)


def stop_shifts(
    speed: Speed, model: ServerModel, traffic: Traffic, limits: tuple[Limit, ...], rate_rps: float, guess_rps: float
) -> tuple[tuple[float, float], ...]:
    """What long stops may do to the rate: the chance of each of their frequencies, and the change of ln(rate) with it.

    Their number is a Poisson count, so their frequency has a gamma distribution (with Jeffreys' prior). A standard
    error would not do: where a stop meets as many requests as may be late, the rate jumps. Few of them tell as little
    of how long they last. That is taken to be off in the same direction, so the outermost scenarios are the outermost
    in both.

    Args:
        speed: with the stops that were seen.
        model: with as many of them.
        traffic: of the workload.
        limits: that bind.
        rate_rps: of the model as it is.
        guess_rps: a rate that the server may sustain: from one at which stops alone break a limit, no search climbs.
    """
    seen = long_stops(speed)
    if not seen or not limits:
        return UNMOVED
    from scipy.special import gammaincinv  # imported late: sessions without an estimate need nothing of SciPy

    edges = np.concatenate([[0.0], np.cumsum(c.STOP_STRATA)])
    middles = (edges[1:] + edges[:-1]) / 2.0
    frequencies = gammaincinv(len(seen) + 0.5, middles) / len(seen)
    of_length = _length_error(seen)

    def rate(k: int, guess: float) -> float:
        longer = math.exp(of_length * NormalDist().inv_cdf(float(middles[k])))
        lengths = tuple(each * longer if each > LONG_STOP_S else each for each in model.stall_s)
        other = replace(model, stall_s=lengths).stopping(float(frequencies[k]))
        return sustainable(other, traffic, limits, guess).rate_rps

    middle, least = len(middles) // 2, c.STOPPED_SHARE * guess_rps
    rates = {middle: rate(middle, rate_rps)}
    for k in reversed(range(middle)):
        rates[k] = rate(k, max(rates[k + 1], least))
    for k in range(middle + 1, len(middles)):
        # Where they leave next to nothing, more of them are not examined.
        rates[k] = rate(k, rates[k - 1]) if rates[k - 1] > least else rates[k - 1]
    return tuple((chance, math.log(rates[k] / rate_rps)) for k, chance in enumerate(c.STOP_STRATA))


def _length_error(seen: tuple[float, ...]) -> float:
    """Standard error of the logarithm of the lengths that matter: of the mean, with what is assumed of their spread."""
    logs = np.log(np.array(seen))
    scatter = float(((logs - logs.mean()) ** 2).sum())
    known = c.STOP_SPREAD_STOPS
    return math.sqrt((known * c.STOP_SPREAD**2 + scatter) / (known + len(seen) - 1.0) / len(seen))


def may_stop_yet(journal: Journal, requirement: Requirement, model: ServerModel, now_s: float) -> bool:
    """Whether stops that would break a limit may have been missed, because the server was watched for so short a time.

    Where stops were seen, how often they come is in the estimate (`stop_shifts`).

    Args:
        journal: of all load so far, that which was discarded included.
        requirement: with the design rate.
        model: of the server.
        now_s: on the runner's clock.
    """
    limits = [limit for limit in requirement.slo.limits if not limit.of_gaps]
    if not limits or model.stops or quiet_s(journal, now_s) >= c.STOP_WATCH_S:
        return False
    stopping = replace(model, stall_per_s=1.0 / c.UNSEEN_STOP_EVERY_S, stall_s=c.UNSEEN_STOP_S)
    found = evaluate(stopping, traffic_for(requirement.workload, model.own_paces), float(requirement.driven_rate))
    return any(found.of_limit(limit) > 1.0 for limit in limits)


def quiet_s(journal: Journal, now_s: float) -> float:
    """Seconds of load since the engine last stood still for long, or since the load began."""
    if not journal.due_s.size:
        return 0.0
    begin_s = float(journal.due_s.min())
    if now_s - begin_s < 2 * STILL_BIN_S:
        return 0.0
    bins = bins_of(journal, begin_s, now_s, STILL_BIN_S)
    still = (bins.decoding >= LEAST_DECODING) & (bins.tokens <= 0)
    long = np.flatnonzero(still[1:] & still[:-1])
    return float(bins.width_s[int(long[-1]) + 2 :].sum()) if long.size else now_s - begin_s
