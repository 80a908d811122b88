"""`measure`: find the critical concurrency, then hold and open loop at what the server turns out to sustain."""

from __future__ import annotations

import math

import numpy as np

from pytest_gpucap.estimate.step_time import SpeedError
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.checking import measurement_of, reconciled
from pytest_gpucap.measure.estimate import RateEstimate, critical_concurrency, estimate
from pytest_gpucap.measure.model_check import ModelCheck
from pytest_gpucap.measure.ramp import (
    Ramp,
    drowned,
    extended,
    steady_throughput,
    throughput_rps,
    turned_back,
)
from pytest_gpucap.measure.run import MeasuringRun, OutOfTime, Window, no_load
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.measure.traffic import traffic_for
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Measurement
from pytest_gpucap.results.windows import Phase, WindowId


def run_measure(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Measurement:
    """See `pytest_gpucap.measure.procedure.measure`."""
    session = MeasuringRun(runner, requirement, settings, observer)
    found: RateEstimate | None = None
    try:
        found, _ = measured(session)
        session.settle()
    except LoadError as error:
        session.problems.append(no_load(error))
    return measurement_of(session, found)


def measured(session: MeasuringRun) -> tuple[RateEstimate | None, list[Window]]:
    """The estimate, and the windows behind it; None when time ended or the server was stuck before there was one."""
    found: RateEstimate | None = None
    windows: list[Window] = []
    replays: list[ModelCheck] = []
    try:
        climb, found = _search(session)
        windows = climb.windows
        if found is None:
            return None, windows
        share = 1.0
        for cycle in range(1, c.MEASURE_CYCLES + 1):
            if windows[-1].span.stopped or drowned(windows[-1], climb.turned):
                session.settle()
            emptied = session.in_flight == 0
            hold = session.hold(
                WindowId(Phase.HOLD, cycle),
                climb.level,
                c.HOLD_S,
                discard_s=c.REFILL_S if emptied else 0.0,
                hot=emptied,
            )
            windows.append(extended(session, hold, climb.level) if cycle == 1 else hold)
            if session.problems:
                break
            window = session.open_loop(
                WindowId(Phase.OPEN_LOOP, cycle),
                found.rate.value * share * (c.TURNED_RATE_SHARE if climb.turned else 1.0),
                c.OPEN_S,
                overload=int(c.OVERLOAD * (climb.turned or climb.level)) + c.OVERLOAD_MARGIN,
            )
            windows.append(window)
            if session.problems:
                break
            found, replayed = reconciled(session, windows, found, climb.turned, c.SPOILT_SHARE)
            if replayed.gross > c.SPOILT_SHARE:
                share *= c.SPOILT_RATE_SHARE
            replays.append(replayed)
            if not all(each.agrees for each in replays):
                found = found.widened(_misfit(replays))
            # One odd window must not send the holds to a concurrency that tells nothing.
            climb.level = max(_level(session, found, climb), climb.level // 2)
    except OutOfTime:
        pass
    return found, windows


def _misfit(replays: list[ModelCheck]) -> float:
    """By how much the replays of several open loops are off: their mean, or its error where that is more."""
    off = np.log([each.pace for each in replays if not math.isnan(each.pace)])
    return max(abs(float(off.mean())), float(np.sqrt((off**2).mean() / off.size)))


def _level(session: MeasuringRun, found: RateEstimate, climb: Ramp) -> int:
    """Requests in flight to hold: where the limits bind at the estimated rate, and not beyond the best."""
    if climb.turned is not None:
        return max(1, round(min(found.in_flight, c.TURNED_SHARE * climb.turned)))
    if not session.requirement.slo.limits:
        return critical_concurrency(session.requirement, session.settings, found.rate.value)
    return max(1, round(min(found.in_flight, found.model.most_running)))


def _search(session: MeasuringRun) -> tuple[Ramp, RateEstimate | None]:  # noqa: C901 - one branch an ending
    """Move the held concurrency towards the critical one, as long as throughput rises with it.

    The first hold is the warm-up as well. The windows on the way are kept: other batch sizes tell the curve's shape.
    """
    requirement, settings = session.requirement, session.settings
    traffic = traffic_for(requirement.workload)
    guess = float(requirement.design_rate)
    start = min(critical_concurrency(requirement, settings, guess), c.FIRST_HOLD)
    level = max(1, round(c.LOW_SHARE * start))
    climb = Ramp([], level)
    found: RateEstimate | None = None
    best, best_rps = level, 0.0
    for move in range(c.SEARCH_MOVES):
        lead_s = c.WARM_UP_S if move == 0 else c.TOP_UP_S
        window = session.hold(WindowId(Phase.SEARCH, move + 1), climb.level, c.SEARCH_HOLD_S, discard_s=lead_s)
        if session.problems:
            return climb, None
        if climb.level > best:
            window, rps = steady_throughput(session, window, climb.level, best_rps * c.DOUBTFUL_RISE)
            if rps < best_rps * (1.0 - c.FALL_SHARE):
                turned_back(session, climb, best, rps)
        else:
            rps = throughput_rps(session, window)
        if climb.turned is None:
            climb.windows.append(window)
            if rps > best_rps:
                best, best_rps = climb.level, rps
        try:
            found = estimate(
                session.journal, climb.windows, traffic, requirement, settings, guess, extremes=False,
                turned=climb.turned,
            )  # fmt: skip
        except SpeedError:
            if climb.level == 1:
                return climb, None
            climb.level = max(1, climb.level // 4)
            continue
        guess = found.rate.value
        if climb.turned is not None:
            break
        if move == 0 and climb.level < start:
            climb.level = start  # one batch size tells a pace, but no curve
            continue
        wanted = _level(session, found, climb)
        if abs(math.log(wanted / climb.level)) < c.SEARCH_NEAR:
            break
        climb.level = int(min(wanted, max(climb.level + 1, math.ceil(climb.level * c.SEARCH_FACTOR))))
    return climb, found
