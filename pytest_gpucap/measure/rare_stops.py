"""What a few long stops of the engine leave open: how often they come, and how long they last.

A stop of a second makes all requests late that meet it. So where stops come every half minute, their number and their
length decide the rate, and a check sees a handful of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from pytest_gpucap.estimate.queue_model import LONG_STOP_S, MOST_STOPPED, ServerModel
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.estimate.sustainable_rate import sustainable
from pytest_gpucap.estimate.traffic import Traffic
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.kept import NOTHING_KEPT, Kept
from pytest_gpucap.requirement import Limit

UNMOVED: tuple[tuple[float, float], ...] = ((1.0, 0.0),)
"""The chances and changes of ln(rate) where nothing unknown moves it."""


def long_stops(speed: Speed) -> tuple[float, ...]:
    """Lengths of the long stops that were seen."""
    return tuple(each for each in speed.stops_s if each > LONG_STOP_S)


def stop_shifts(
    speed: Speed,
    model: ServerModel,
    traffic: Traffic,
    limits: tuple[Limit, ...],
    rate_rps: float,
    guess_rps: float,
    kept: Kept = NOTHING_KEPT,
) -> tuple[tuple[float, float], ...]:
    """What long stops may do to the rate: the chance of each of their frequencies, and the change of ln(rate) with it.

    A standard error would not do: where a stop meets as many requests as may be late, the rate jumps.

    Args:
        speed: with the stops that were seen.
        model: with as many of them.
        traffic: of the workload.
        limits: that bind.
        rate_rps: of the model as it is.
        guess_rps: a rate that the server may sustain: from one at which stops alone break a limit, no search climbs.
        kept: what open loops showed. Stops that would have come in them, and broken a limit, do not come so often.
    """
    seen = long_stops(speed)
    if not seen or not limits:
        return UNMOVED
    models = stopping_otherwise(model, seen)
    middle, least = len(models) // 2, c.STOPPED_SHARE * guess_rps

    def rate(k: int, guess: float) -> float:
        found = sustainable(models[k], traffic, limits, guess, rough=True).rate_rps
        return max(found, min(kept.rate_rps, rate_rps)) if kept.rules_out(models[k]) else found

    rates = {middle: rate(middle, rate_rps)}
    for k in reversed(range(middle)):
        rates[k] = rate(k, max(rates[k + 1], least))
    for k in range(middle + 1, len(models)):
        # Where they leave next to nothing, more of them are not examined.
        rates[k] = rate(k, rates[k - 1]) if rates[k - 1] > least else rates[k - 1]
    return tuple((chance, math.log(rates[k] / rate_rps)) for k, chance in enumerate(c.STOP_STRATA))


def stopping_otherwise(model: ServerModel, seen: tuple[float, ...]) -> tuple[ServerModel, ...]:
    """The server for each of `constants.STOP_STRATA`, from the fewest and shortest stops to the most and longest.

    The number of stops is a Poisson count over the time in which the engine ran, for none begins while it stands still.
    So their frequency has a gamma distribution (with Jeffreys' prior), and however many come, the engine runs now and
    then. Few of them tell as little of how long they last. That is taken to be off in the same direction, so the
    outermost scenarios are the outermost in both.

    The windows delivered tokens for some share of their time. No scenario leaves the engine less than
    `constants.LEAST_RUNNING` of that: it would contradict what was seen.

    Args:
        model: with stops as they were seen.
        seen: the long ones.
    """
    from scipy.special import gammaincinv  # imported late: sessions without an estimate need nothing of SciPy

    edges = np.concatenate([[0.0], np.cumsum(c.STOP_STRATA)])
    middles = (edges[1:] + edges[:-1]) / 2.0
    often = gammaincinv(len(seen) + 0.5, middles) / len(seen)
    of_length = _length_error(seen)
    share = min(model.stall_share, MOST_STOPPED)
    found = []
    for level, each in zip(middles, often, strict=True):
        longer = math.exp(of_length * NormalDist().inv_cdf(float(level)))
        lengths = tuple(s * longer if s > LONG_STOP_S else s for s in model.stall_s)
        odds = share / (1.0 - share) * float(each) * sum(lengths) / sum(model.stall_s)
        stopped = min(odds / (1.0 + odds), 1.0 - c.LEAST_RUNNING * (1.0 - share))
        found.append(replace(model, stall_s=lengths, stall_per_s=stopped * len(lengths) / sum(lengths)))
    return tuple(found)


def _length_error(seen: tuple[float, ...]) -> float:
    """Standard error of the logarithm of the lengths that matter: of the mean, with what is assumed of their spread."""
    logs = np.log(np.array(seen))
    scatter = float(((logs - logs.mean()) ** 2).sum())
    known = c.STOP_SPREAD_STOPS
    return math.sqrt((known * c.STOP_SPREAD**2 + scatter) / (known + len(seen) - 1.0) / len(seen))
