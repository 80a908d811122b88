"""The sustainable rate: where the tightest percentile of the queue model just meets its limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pytest_gpucap.estimate.queue_model import Evaluation, ServerModel, evaluate, saturation_rps
from pytest_gpucap.estimate.traffic import Traffic
from pytest_gpucap.requirement import Limit

IN_FLIGHT_QUANTILE = 0.995
"""Where throughput has a peak, this quantile of the requests in flight must stay below its concurrency. Beyond it a
queue makes the server slower, and so grows by itself."""
ACCEPTED_STEP = 0.005
"""The last step in ln(rate) is taken without another evaluation if it is shorter. The slope is right to a fifth, so the
step is right to 0.1%."""
ROUGH_STEP = 0.02
"""The same step of a rough search."""
CROSSING_MARGIN = 0.2
"""Between two rates, the next one keeps this share of their distance from both, so that either end soon moves."""
MOST_EVALUATIONS = 14
"""Evaluations of one search. Newton steps need 3 or 4; halving a bracket needs 14 in the worst case."""
FIRST_SLOPE = 2.0
"""First guess of the slope of ln(percentile) against ln(rate), in the middle of what servers near their limit show."""
LEAST_SLOPE = 0.25
"""Smallest slope that is believed. A percentile rises with the rate, so a flatter one is noise."""
SLOPE_STEP = 0.02
"""Least distance in ln(rate) over which a slope is taken: over less, the noise of the replications counts."""
ALONE_SHARE = 0.01
"""Lowest rate of a search, as a share of the rate of requests one after the other. There requests hardly ever meet, so
a limit that does not hold at it holds at no rate."""
FURTHEST = 0.12
"""Distance in ln(rate) beyond which the slope at one end says little of the other: an examination goes on there."""
MOST_EXAMINATIONS = 4
"""Places of an examination: together they reach as far as an ordinary evaluation can be wrong."""
STRAIGHT = 2.0
"""Largest difference of ln(percentile / limit) over which the curve is taken for a straight line."""


@dataclass(frozen=True, slots=True)
class Sustainable:
    """The rate at which the tightest limit just holds.

    Attributes:
        rate_rps: that rate.
        binding: the limit's name, or ``backlog``.
        slope: of ln(percentile / limit) against ln(rate) there.
        in_flight: requests in flight met at that rate: its 95th percentile.
    """

    rate_rps: float
    binding: str
    slope: float
    in_flight: float

    @property
    def elasticity(self) -> float:
        """Relative loss of the rate for a relative rise of all the engine's times.

        If all times grow by d, the curve of ln(percentile) shifts by d along both axes, as under a change of the unit
        of time. So the root moves by d (1 + 1 / slope).
        """
        return 1.0 + 1.0 / self.slope


@dataclass(frozen=True, slots=True)
class Examination:
    """What a thorough evaluation adds to a root. With common random numbers it holds for models and roots nearby too.

    Attributes:
        rate_rps: the root examined.
        correction: of its logarithm, from more requests.
        slope: as that of `Sustainable`, from both sides of the root.
    """

    rate_rps: float
    correction: float
    slope: float


def alone_rps(model: ServerModel, traffic: Traffic) -> float:
    """A rate at which requests hardly ever meet."""
    alone_s = float(model.speed[1]) * traffic.mean_output + model.prefill_s * traffic.mean_prompt
    return ALONE_SHARE / max(alone_s, 1e-6)


def sustainable(
    model: ServerModel,
    traffic: Traffic,
    limits: tuple[Limit, ...],
    guess_rps: float,
    slope: float | None = None,
    *,
    most_in_flight: float | None = None,
    rough: bool = False,
) -> Sustainable:
    """The highest rate at which every limit holds, or the saturation rate without limits.

    Where a limit holds at no rate, it is `alone_rps`.

    Solves ln(percentile / limit) = 0 for ln(rate). Common random numbers make the function smooth.

    Args:
        model: of the server.
        traffic: of the workload.
        limits: on latencies.
        guess_rps: where the search begins.
        slope: from an earlier solution nearby, where there is one; it saves an evaluation.
        most_in_flight: a limit on `IN_FLIGHT_QUANTILE` of the requests in flight, named ``backlog``.
        rough: a few percent are near enough, as for one of several scenarios far apart.
    """
    bound = saturation_rps(model, traffic)
    if not limits and most_in_flight is None:
        return Sustainable(bound, "backlog", math.inf, float(model.most_running))
    evaluations: dict[float, Evaluation] = {}
    accepted = ROUGH_STEP if rough else ACCEPTED_STEP

    def worst(log_rate: float) -> tuple[float, str]:
        rate_rps = math.exp(log_rate)
        f, name, evaluations[log_rate] = _worst(model, traffic, limits, rate_rps, most_in_flight, rough=rough)
        return f, name

    top = math.log(bound)
    lowest = min(math.log(alone_rps(model, traffic)), top - 0.02)
    guess = min(math.log(guess_rps), top - 0.02)
    log_rate, slope, name = _root(worst, guess, (lowest, top), slope, accepted, jumps=model.stops)
    nearest = evaluations[min(evaluations, key=lambda key: abs(key - log_rate))]
    in_flight = float(np.quantile(nearest.seen, 0.95))
    return Sustainable(math.exp(log_rate), name, slope, in_flight)


def examine(found: Sustainable, model: ServerModel, traffic: Traffic, limits: tuple[Limit, ...]) -> Examination:
    """A thorough look at the root that `sustainable` found.

    The secants of the search lie on the side of the first guess. Where that was too high, they are steeper than the
    convex curve at its root. The evaluations here lie evenly around the root, so their slope is the curve's.
    """
    if not limits:
        return Examination(found.rate_rps, 0.0, found.slope)

    def f(log_rate: float) -> float:
        return _worst(model, traffic, limits, math.exp(log_rate), None, thorough=True)[0]

    top = math.log(saturation_rps(model, traffic))
    begin = root = min(math.log(found.rate_rps), top)
    slope = found.slope
    for _ in range(MOST_EXAMINATIONS):
        low, middle, high = (f(root + step) for step in (-SLOPE_STEP, 0.0, SLOPE_STEP))
        if max(abs(low), abs(high)) >= STRAIGHT:
            break
        slope = max(LEAST_SLOPE, (high - low) / (2.0 * SLOPE_STEP))
        missed = -(low + middle + high) / 3.0 / slope
        root = min(root + min(max(missed, -FURTHEST), FURTHEST), top)
        if abs(missed) < FURTHEST:
            break
    return Examination(found.rate_rps, root - begin, slope)


def _worst(
    model: ServerModel,
    traffic: Traffic,
    limits: tuple[Limit, ...],
    rate_rps: float,
    most_in_flight: float | None,
    *,
    rough: bool = False,
    thorough: bool = False,
) -> tuple[float, str, Evaluation]:
    """Logarithm of the tightest percentile over its limit, the limit's name, and the evaluation behind it."""
    want_gaps = any(limit.of_gaps for limit in limits)
    evaluation = evaluate(model, traffic, rate_rps, want_gaps=want_gaps, rough=rough, thorough=thorough)
    ratios = {limit.name: evaluation.of_limit(limit) for limit in limits}
    if most_in_flight is not None:
        ratios["backlog"] = float(np.quantile(evaluation.seen, IN_FLIGHT_QUANTILE)) / most_in_flight
    name = max(ratios, key=lambda key: ratios[key])
    return math.log(min(max(ratios[name], 1e-9), 1e9)), name, evaluation


def _root(
    worst: Callable[[float], tuple[float, str]],
    guess: float,
    within: tuple[float, float],
    known_slope: float | None,
    accepted: float,
    *,
    jumps: bool,
) -> tuple[float, float, str]:
    """Where `worst` crosses 0, its slope there, and the name that binds.

    Newton steps inside a bracket. The slope is a secant over rates so far apart that the replications' own noise does
    not matter. A last step shorter than `accepted` is taken without another evaluation. Where the curve `jumps`, such a
    slope leads back and forth: there the secant across the bracket says where to go on.
    """
    lowest, bound = within
    low, high = (-math.inf, -math.inf), (bound, math.inf)
    slope = known_slope or FIRST_SLOPE
    sure = known_slope is not None
    x, name = max(guess, lowest), "backlog"
    tried: list[tuple[float, float]] = []
    for _ in range(MOST_EVALUATIONS):
        f, found = worst(x)
        if f > 0 and x <= lowest:
            return lowest, slope, found
        if f > 0:
            high, name = (x, f), found
        else:
            low = (x, f)
            name = found if name == "backlog" else name
        secant = _secant(tried, x, f)
        if secant is not None:
            slope, sure = secant, True
        tried.append((x, f))
        step = min(max(-f / slope, -1.0), 1.0)
        width = high[0] - low[0]
        crossing = _crossing(low, high) if jumps else None
        if width < ACCEPTED_STEP / 4:
            break
        if abs(step) < accepted and x + step < bound:
            if sure:
                return x + step, slope, found
            # A second rate, on the side where the queue is calmer, to learn the slope from.
            step -= 2.0 * SLOPE_STEP
        elif crossing is not None:
            if width < 2.0 * accepted or abs(crossing - x) < accepted:
                return crossing, slope, name
            margin = CROSSING_MARGIN * width
            step = min(max(crossing, low[0] + margin), high[0] - margin) - x
        x = max(_inside(x, x + step, low[0], high[0]), lowest)
    return (low[0] if math.isfinite(low[0]) else x), slope, name


def _secant(tried: list[tuple[float, float]], x: float, f: float) -> float | None:
    """Slope from the nearest of the rates tried that is far enough from `x`; None without such a rate."""
    apart = [(abs(x - p), (f - g) / (x - p)) for p, g in tried if abs(x - p) > SLOPE_STEP and abs(f - g) < STRAIGHT]
    return max(LEAST_SLOPE, min(apart)[1]) if apart else None


def _inside(x: float, following: float, low: float, high: float) -> float:
    """The rate that follows `x`, or the middle of the bracket where that lies outside of it."""
    if low < following < high:
        return following
    return (low + high) / 2 if math.isfinite(low) else x - 0.5


def _crossing(low: tuple[float, float], high: tuple[float, float]) -> float | None:
    """Where the secant between two rates, each with its value, crosses 0; None where that is too far from a line."""
    (below, f), (above, g) = low, high
    if max(abs(f), abs(g)) >= STRAIGHT:
        return None
    return below + (above - below) * f / (f - g)
