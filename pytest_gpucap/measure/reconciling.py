"""The estimate after an open loop: the queue model's, and what the open loop showed beyond the model."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_gpucap.estimate.queue_model import Calibration, ServerModel, evaluate
from pytest_gpucap.estimate.step_time import Speed, SpeedError
from pytest_gpucap.estimate.sustainable_rate import Sustainable, sustainable
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load.protocol import ClosedLoop, OpenLoop
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.belief import Belief, Part, mixture
from pytest_gpucap.measure.crowding import borne, crowded_at
from pytest_gpucap.measure.estimate import (
    RateEstimate,
    curve_error,
    drift_error,
    estimate,
    server_seen,
    window_paces,
)
from pytest_gpucap.measure.filling_cache import since_filled
from pytest_gpucap.measure.first_tokens import FirstTokens, first_tokens
from pytest_gpucap.measure.forgetful import limited_error, with_forgetting
from pytest_gpucap.measure.observed import Departure, departures_of, itl_factor, side
from pytest_gpucap.measure.ramp import overloaded
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.measure.slow_pace import SlowPace, slow_pace
from pytest_gpucap.requirement import Limit


def reconciled(
    run: MeasuringRun, windows: list[Window], before: RateEstimate | None, peak: int | None = None
) -> RateEstimate:
    """The estimate from all windows, the last of which is an open loop. See `_reconciled` for the arguments.

    What it costs that the server forgets its sessions is in it.

    Raises:
        SpeedError: if the windows hold too few tokens, as when an open loop starves.
    """
    return with_forgetting(run, _reconciled(run, windows, before, peak), before)


def _reconciled(
    run: MeasuringRun, windows: list[Window], before: RateEstimate | None, peak: int | None
) -> RateEstimate:
    """The estimate from all windows, and how far the last one, an open loop, departs from the model.

    Args:
        run: its journal, requirement and settings.
        windows: that count.
        before: the estimate before the last window.
        peak: the concurrency beyond which throughput falls, where one was seen.

    Raises:
        SpeedError: if the windows hold too few tokens, as when an open loop starves.
    """
    requirement, last = run.requirement, windows[-1]
    if peak is not None:
        windows = [w for w in windows if isinstance(w.span.phase, ClosedLoop) or not overloaded(w, peak)]
    # What a cache forgets goes up and down, is known, and leaves the pace as it is.
    counting = windows if peak is not None or run.room.forgot else since_filled(run, windows)
    everything, (speed, model) = _showing_a_pace(run, counting, windows)
    windows = everything
    paces = window_paces(run.journal, windows, speed)
    warming = peak is None and (paces.falls(c.WARMING_Z) or speed.falls(c.WARMING_Z, c.TREND_LN))
    while warming and len(windows) > c.LEAST_WARM and (paces.falls(c.TREND_Z) or speed.falls(c.TREND_Z, c.TREND_LN)):
        # What came first is another server than the one that will be used.
        later, (speed, model) = _showing_a_pace(run, windows[1:], windows)
        if later is windows:
            break
        windows = later
        paces = window_paces(run.journal, windows, speed)
    # What no longer counts for the pace still tells how it moves.
    moves = slow_pace(run.journal, everything, speed, windows[0].start_s)
    model = replace(model, drift_sd=moves.drift_sd)
    first = _first_tokens(run, windows, model, speed)
    found = estimate(
        run,
        windows,
        before.rate.value if before else float(requirement.driven_rate),
        slope=before.slope if before and before.settled else None,
        calibration=Calibration(
            itl_factor=itl_factor(run.journal, last, model, speed, requirement.slo),
            first_token_factor=math.exp(first.log_factor),
        ),
        peak=peak,
        thorough=True,
        examined=before.examination if before else None,
        seen=(speed, model),
        limited_error=limited_error(before),
    )
    by_first_tokens = _first_tokens_error(run, found, first)
    found = replace(
        found,
        settled=found.slope < c.STEEPEST,
        warming=warming,
        error=math.hypot(found.error, by_first_tokens) if by_first_tokens else found.error,
    )
    rate = last.rate_rps or found.rate.value
    alike = [w for w in windows if _near(w, rate)]
    open_loops = [w for w in alike if isinstance(w.span.phase, OpenLoop)]
    spans, free = _unbroken(run, alike), _unbroken(run, open_loops)
    departures = departures_of(run.journal, spans, free, found.model, found.speed, requirement.slo)
    # A server that was seen once to do what the model cannot, may do so again at any moment.
    misfits = before.misfits if before else frozenset()
    found = replace(found, misfits=misfits.union(each.limit for each in departures if each.unexplained))
    most_rps, crowd = found.rate.value, None if peak is not None else crowded_at(run, model, speed)
    bound = borne(run, windows, found.model, most_rps, crowd[0]) if crowd else None
    if bound and crowd:
        found = replace(found, binding=crowd[1])
    if found.misfits and requirement.slo.limits and peak is None:
        return found.believing(Belief((_as_kept(run, open_loops, rate, bound.greatest if bound else most_rps),)))
    if bound:
        return found.believing(Belief((replace(bound, error=math.hypot(found.error, bound.error)),)))
    found = corrected(run, windows, found, departures, rate, peak, by_first_tokens)
    if peak is not None:
        return found
    return found.believing(found.belief.widened(_unknown_pace(run, windows, found, moves)))


def _showing_a_pace(
    run: MeasuringRun, later: list[Window], windows: list[Window]
) -> tuple[list[Window], tuple[Speed, ServerModel]]:
    """The later ones of some windows and the server in them; all, where an open loop that starved leaves too little."""
    try:
        return later, server_seen(run, later)
    except SpeedError:
        return windows, server_seen(run, windows)


def corrected(
    run: MeasuringRun,
    windows: list[Window],
    found: RateEstimate,
    departures: list[Departure],
    rate_rps: float,
    peak: int | None,
    by_first_tokens: float = 0.0,
) -> RateEstimate:
    """The estimate, with what open loops at `rate_rps` showed beyond the model.

    `by_first_tokens` is the standard error of ln(rate) from how far first tokens depart from the model.

    Without a limit on latency, what the engine brings at most was measured as it is. So it is where throughput falls:
    the estimate is made for the best concurrency, and has an error of its own for that.
    """
    known = {each.limit: each for each in departures}
    limits = run.requirement.slo.limits
    own = Part(1.0, found.rate.value, found.least, found.greatest, found.error)
    other = None
    if not limits or peak is not None:
        return replace(found, belief=Belief((own,)))
    if not found.by_luck and all(limit.name in known or limit.of_gaps for limit in limits):
        root, off = _tightest(run, found, known, rate_rps)
        value = root.rate_rps * math.exp(found.examination.correction if found.examination else 0.0)
        seconds = sum(w.end_s - w.start_s for w in windows if isinstance(w.span.phase, OpenLoop))
        drift = drift_error(run.journal, windows, found.speed, seconds)
        carried = c.CARRIED * abs(math.log(value / rate_rps))
        stair = c.STAIR_ERROR if found.speed.stair else 0.0
        error = math.hypot(off, root.elasticity * drift, c.QUEUE_MODEL_ERROR, carried, stair, by_first_tokens)
        other = Part(1.0, value, value, value, error)
    return found.believing(mixture(own, other).spread(found.stops))


def _unknown_pace(
    run: MeasuringRun, windows: list[Window], found: RateEstimate, moves: SlowPace
) -> tuple[tuple[float, float], ...]:
    """Chances of standard errors of ln(rate) beyond the drift that the estimate has in it (`slow_pace`)."""
    seconds = windows[-1].end_s - windows[0].start_s
    known = drift_error(run.journal, windows, found.speed, seconds)
    return tuple((chance, found.elasticity * math.sqrt(max(0.0, e**2 - known**2))) for chance, e in moves.errors)


def _tightest(
    run: MeasuringRun, found: RateEstimate, known: dict[str, Departure], rate_rps: float
) -> tuple[Sustainable, float]:
    """What `_as_seen` says of the limit that allows the lowest rate.

    The limit that binds in the model comes first. One that holds at the rate found so far allows a higher one, which
    nobody asks for: far from its limit, a latency is searched for where requests queue, and that takes longest.
    """
    traffic = traffic_for(run.requirement.workload, found.model.own_paces)
    lowest: tuple[Sustainable, float] | None = None
    for limit in sorted(run.requirement.slo.limits, key=lambda limit: limit.name != found.binding):
        departure = known.get(limit.name)
        model = _departing(found.model, limit, departure)
        if lowest is not None:
            here = evaluate(model, traffic, lowest[0].rate_rps, want_gaps=limit.of_gaps).of_limit(limit)
            if here < 1.0:
                continue
        seen = _as_seen(run, found, limit, departure, rate_rps)
        lowest = seen if lowest is None else min(lowest, seen, key=lambda pair: pair[0].rate_rps)
    if lowest is None:
        raise ValueError("no limit, so none is the tightest")
    return lowest


def _departing(model: ServerModel, limit: Limit, departure: Departure | None) -> ServerModel:
    """The model, with what was seen of one limit alone."""
    calibration = replace(model.calibration, latency_factors=())
    model = replace(model, calibration=calibration)
    if departure is None:
        return model
    if departure.in_pace:
        return model.scaled(math.exp(departure.log_pace))
    factor = ((limit.name, math.exp(departure.log_factor)),)
    return replace(model, calibration=replace(calibration, latency_factors=factor))


def _as_seen(
    run: MeasuringRun, found: RateEstimate, limit: Limit, departure: Departure | None, rate_rps: float
) -> tuple[Sustainable, float]:
    """The rate that one limit allows, with what was seen of it; and the standard error of its logarithm from that."""
    model = _departing(found.model, limit, departure)
    traffic = traffic_for(run.requirement.workload, model.own_paces)
    root = sustainable(model, traffic, (limit,), found.rate.value, found.slope)
    slope = max(c.FLAT_SLOPE, root.slope)
    if departure is None:
        return root, c.UNSEEN_ERROR / slope
    # Far from the limit, the curve alone tells how the latency gets there.
    share = min(1.0, abs(math.log(departure.of_limit)) / c.FAR_FROM_LIMIT_LN)
    curve = root.elasticity * share * curve_error(found.speed, found.in_flight)
    if departure.in_pace:
        return root, math.hypot(departure.pace_error * (1.0 + 1.0 / slope), curve)
    if departure.log_factor > c.FAR_FROM_MODEL_LN:
        # The model does not know what makes this latency, so its curve says nothing of how it falls with the rate.
        here = evaluate(model, traffic, rate_rps, want_gaps=False).of_limit(limit)
        value = rate_rps * math.exp(-max(0.0, math.log(here)) / c.UNKNOWN_SLOPE)
        root, slope = replace(root, rate_rps=max(root.rate_rps, min(value, rate_rps))), max(slope, c.UNKNOWN_SLOPE)
    return root, math.hypot(departure.error / slope, curve)


def _as_kept(run: MeasuringRun, open_loops: list[Window], rate_rps: float, most_rps: float) -> Part:
    """The belief from nothing but the share of requests that broke a limit in open loops at about a rate.

    How the share depends on the rate is unknown. So the part says on which side of `rate_rps` the sustainable rate
    lies, with the chance that the share gives, and puts it no nearer than `constants.UNKNOWN_LN`. What the model leaves
    out makes requests slower, so its own estimate, `most_rps`, is the most that is believed.
    """
    sides = [side(run.journal, open_loops, limit) for limit in run.requirement.slo.limits]
    scores = min(max(min(sides), -c.MOST_SCORE), c.MOST_SCORE)
    value = min(rate_rps * math.exp(scores * c.UNKNOWN_LN), most_rps)
    return Part(1.0, value, value, value, c.UNKNOWN_LN)


def _first_tokens(run: MeasuringRun, windows: list[Window], model: ServerModel, speed: Speed) -> FirstTokens:
    """How far first tokens depart from the model in open loops at about the last rate; no departure without goodput."""
    goodput, rate_rps = run.requirement.slo.goodput, windows[-1].rate_rps
    if goodput is None or rate_rps is None:
        return FirstTokens()
    open_loops = [w for w in windows if isinstance(w.span.phase, OpenLoop) and _near(w, rate_rps)]
    return first_tokens(run.journal, _unbroken(run, open_loops), model, speed, goodput)


def _first_tokens_error(run: MeasuringRun, found: RateEstimate, first: FirstTokens) -> float:
    """Standard error of ln(rate) from that of the first tokens' departure, and from few of them deciding; 0 without.

    One evaluation tells how goodput moves with them: two would differ by their noise as well.
    """
    goodput = run.requirement.slo.goodput
    if goodput is None or first.error == 0.0:
        return 0.0
    traffic = traffic_for(run.requirement.workload, found.model.own_paces)
    here = evaluate(found.model, traffic, found.rate.value)
    later = replace(here, first_token_factor=here.first_token_factor * math.exp(first.error))
    moved = math.log(later.of_limit(goodput) / here.of_limit(goodput))
    return math.hypot(moved / max(c.FLAT_SLOPE, found.slope), c.GOODPUT_ERROR)


def _near(window: Window, rate_rps: float) -> bool:
    """Whether a window shows how the server is at a rate: holds, and open loops at about that rate."""
    return window.rate_rps is None or abs(math.log(window.rate_rps / rate_rps)) < c.SAME_RATE_LN


def _unbroken(run: MeasuringRun, windows: list[Window]) -> list[tuple[float, float]]:
    """The spans of time in which windows followed each other without a cancellation."""
    spans: list[tuple[float, float]] = []
    for window in windows:
        joined = spans and window.span.start_s - spans[-1][1] < c.JOINED_S
        if joined and not any(spans[-1][1] <= at <= window.start_s for at in run.emptied_s):
            spans[-1] = (spans[-1][0], window.end_s)
        else:
            spans.append((window.start_s, window.end_s))
    return spans
