"""`measure`: find the critical concurrency, then hold and open loop at what the server turns out to sustain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pytest_gpucap.estimate.step_time import SpeedError
from pytest_gpucap.load.protocol import LoadError, LoadRunner, PhaseSpan
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.checking import failed_requests, measurement_of
from pytest_gpucap.measure.estimate import RateEstimate, critical_concurrency, estimate
from pytest_gpucap.measure.observed import violations
from pytest_gpucap.measure.pace import BUFFERED, NoPace, missing_pace
from pytest_gpucap.measure.per_replica import per_replica
from pytest_gpucap.measure.ramp import (
    Ramp,
    far_beyond,
    overloaded,
    peak_confirmed,
    retreat,
    settle,
    steady_throughput,
    throughput_rps,
)
from pytest_gpucap.measure.reconciling import reconciled
from pytest_gpucap.measure.run import CalledOff, MeasuringRun, OutOfTime, no_load, overload_at
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.measure.shown import broken_alone
from pytest_gpucap.measure.steady import steady_window
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Interval, Measurement
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId


def run_measure(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Measurement:
    """See `pytest_gpucap.measure.procedure.measure`."""
    run = MeasuringRun(runner, requirement, settings, observer)
    search = Search()
    try:
        measured(run, search)
        if search.found is not None:
            # What the headroom leaves of the rate, as it leaves it of a budget's.
            left_rps = search.found.rate.value / float(requirement.headroom)
            steady_window(run, left_rps, search.found.in_flight)
        run.settle()
    except LoadError as error:
        run.problems.append(no_load(error))
    return per_replica(measurement_from(run, search))


@dataclass(slots=True)
class Search:
    """What a measurement without a verdict has found so far.

    Attributes:
        found: the estimate; None before there is one.
        binding: the limit that binds where there is no rate.
        reason: why there is no rate, in one sentence.
    """

    found: RateEstimate | None = None
    binding: str | None = None
    reason: str = ""


def measurement_from(run: MeasuringRun, search: Search, saturated: Interval | None = None) -> Measurement:
    """What the run found. Without a rate, it says why; more failed requests than are allowed are a problem."""
    problem = failed_requests(run)
    if problem is not None and not run.problems:
        run.problems.append(problem)
    measurement = measurement_of(run, search.found, saturated)
    if measurement.sustainable_rate is not None or run.problems:
        return measurement
    windows = f"the {len(run.samples)} windows measured are too few for a rate; give it more time: gpucap(max_time=...)"
    return replace(measurement, binding=search.binding, reason=search.reason or windows)


def measured(run: MeasuringRun, search: Search) -> None:
    """Search for the rate. Leaves in `search` what was found when time ended, requests failed or no rate can be."""
    try:
        _measure(run, search)
        _breaks_alone(run, search)
    except CalledOff:
        search.found = None
        search.reason = "most requests failed"
    except SpeedError:  # an open loop starved
        search.found = None
        search.reason = NoPace.TOO_FEW_TOKENS.value
    except OutOfTime:
        search.reason = f"{run.settings.limit} ended before a rate was found"


def _breaks_alone(run: MeasuringRun, search: Search) -> bool:
    """Whether one request alone breaks a limit, so that there is no rate."""
    if search.found is None or run.problems or not (broken := broken_alone(run, search.found)):
        return False
    search.found, (search.binding, search.reason) = None, broken
    return True


def _measure(run: MeasuringRun, search: Search) -> None:
    """The search, then cycles of hold and open loop at the estimated rate."""
    ramp = _search(run, search)
    windows, found = ramp.windows, search.found
    if found is None or _breaks_alone(run, search):
        return
    rate = found.rate.value * (c.BELOW_PEAK_RATE_SHARE if ramp.peak else 1.0)
    for cycle in range(1, c.MEASURE_CYCLES + 1):
        if not run.in_flight or ramp.level > c.TOO_MANY * _in_flight(found, rate):
            run.settle()
            ramp.level = max(1, round(min(ramp.level, _in_flight(found, rate))))
            windows.append(run.hold(WindowId(Phase.HOLD, cycle), ramp.level, c.LOW_HOLD_S, discard_s=c.REFILL_S))
        if run.problems:
            break
        window = run.open_loop(
            WindowId(Phase.OPEN_LOOP, cycle),
            rate,
            c.OPEN_S,
            overload=overload_at(max(ramp.peak or 0, ramp.level, found.in_flight)),
        )
        windows.append(window)
        if run.problems:
            break
        search.found = found = reconciled(run, windows, found, ramp.peak)
        if cycle >= c.LEAST_MEASURE_CYCLES and math.log(found.rate.high / found.rate.low) / 2 < c.NARROW_LN:
            break
        wanted = found.rate.value * (c.BELOW_PEAK_RATE_SHARE if ramp.peak else 1.0)
        if (
            window.span.stopped
            or overloaded(window, ramp.peak)
            or violations(run.journal, window, run.requirement.slo) > c.MOST_VIOLATIONS
        ):
            # What piled up belongs to this rate.
            run.settle()
            wanted = min(wanted, rate * c.RETRY_RATE_SHARE)
            if found.model.wanders and not window.span.stopped:
                # One window breaks a limit by chance. A rate far below the estimate would say little about it.
                wanted = max(wanted, found.rate.value * c.RETRY_RATE_SHARE)
        if abs(math.log(wanted / rate)) > c.MOVED_LN:
            rate = wanted


def _in_flight(found: RateEstimate, rate_rps: float) -> float:
    """Requests in flight at a rate, about: in proportion to those at the estimated rate."""
    return max(1.0, found.in_flight * min(1.0, rate_rps / found.rate.value))


def _level(run: MeasuringRun, found: RateEstimate, ramp: Ramp) -> int:
    """Requests in flight to hold: where the limits bind at the estimated rate, and not beyond the best."""
    if ramp.peak is not None:
        return max(1, round(min(found.in_flight, c.BELOW_PEAK_SHARE * ramp.peak)))
    if not run.requirement.slo.limits:
        return critical_concurrency(run.requirement, run.settings, found.rate.value)
    return max(1, round(min(found.in_flight, found.model.most_running)))


def _without_pace(run: MeasuringRun, search: Search, span: PhaseSpan | None = None) -> bool:
    """Whether answers show no pace. Behind a proxy that buffers, nothing can be estimated of the server."""
    why = missing_pace(run.journal, run.requirement.workload, span)
    if why is None:
        return False
    search.reason = f"no rate can be estimated: {why.value}"
    if why in {NoPace.NO_TOKENS, NoPace.WHOLE}:
        search.reason += "; check() judges a declared rate by what it sees"
    if why in BUFFERED:
        run.problems.append(Problem(ProblemSource.SERVER, ProblemKind.NO_PACE, search.reason))
    return True


def _search(run: MeasuringRun, search: Search) -> Ramp:  # noqa: C901, PLR0912 - one branch an ending
    """Move the held concurrency towards the critical one, as long as throughput rises with it.

    The first hold is the warm-up as well. The windows on the way are kept: other batch sizes tell the curve's shape.
    """
    requirement, settings = run.requirement, run.settings
    guess = float(requirement.driven_rate)
    start = min(critical_concurrency(requirement, settings, guess), c.FIRST_HOLD)
    level = max(1, round(c.LOW_SHARE * start))
    ramp = Ramp([], level)
    found: RateEstimate | None = None
    best, best_rps = level, 0.0
    for move in range(c.SEARCH_MOVES):
        lead_s = c.WARM_UP_S if move == 0 else c.TOP_UP_S
        try:
            window = run.hold(WindowId(Phase.SEARCH, move + 1), ramp.level, c.SEARCH_HOLD_S, discard_s=lead_s)
        except LoadError:
            if _without_pace(run, search):  # a buffer that answers by itself is faster than the load was made for
                return ramp
            raise
        if run.problems or _without_pace(run, search, window.span):
            return ramp
        if far_beyond(run, window):
            retreat(run, ramp, window, (best, best_rps))
            found = _estimated(run, ramp, search, guess)
            break
        if ramp.level > best:
            window, rps = steady_throughput(run, window, ramp.level, best_rps * c.DOUBTFUL_RISE)
            if rps < best_rps * (1.0 - c.FALL_SHARE):
                peak_confirmed(run, ramp, best, rps)
        else:
            rps = throughput_rps(run, window)
        if ramp.peak is None:
            ramp.windows.append(window)
            if rps > best_rps:
                best, best_rps = ramp.level, rps
        try:
            found = estimate(run, ramp.windows, guess, peak=ramp.peak, extremes=False)
        except SpeedError:
            if ramp.level == 1:
                search.reason = NoPace.TOO_FEW_TOKENS.value
                return ramp
            ramp.level = max(1, ramp.level // 4)
            continue
        guess = found.rate.value
        if ramp.peak is not None:
            break
        if move == 0 and ramp.level < start:
            ramp.level = start  # one batch size tells a pace, but no curve
            continue
        wanted = _level(run, found, ramp)
        if abs(math.log(wanted / ramp.level)) < c.SEARCH_NEAR:
            break
        ramp.level = int(min(wanted, max(ramp.level + 1, math.ceil(ramp.level * c.SEARCH_FACTOR))))
    if found is not None and settle(run, ramp):
        found = _estimated(run, ramp, search, guess)
    search.found = found
    return ramp


def _estimated(run: MeasuringRun, ramp: Ramp, search: Search, guess: float) -> RateEstimate | None:
    """The estimate from the windows of the search; None, with the reason, where they show too few tokens."""
    try:
        return estimate(run, ramp.windows, guess, peak=ramp.peak, extremes=False)
    except SpeedError:
        search.reason = NoPace.TOO_FEW_TOKENS.value
        return None
