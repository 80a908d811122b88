"""`check`: hold, open loop, decide. It repeats this while the evidence does not separate capacity from requirement."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_gpucap.decisions.failures import refusal
from pytest_gpucap.decisions.verdict import errors_exceed, rps, verdict_of
from pytest_gpucap.estimate.adapters import latencies_by_adapter
from pytest_gpucap.estimate.step_time import SpeedError
from pytest_gpucap.estimate.sustainable_rate import sustainable
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.belief import Part, mixture
from pytest_gpucap.measure.direct import run_without_pace
from pytest_gpucap.measure.estimate import RateEstimate, critical_concurrency, estimate
from pytest_gpucap.measure.forgetful import if_remembered, told_of_forgetting
from pytest_gpucap.measure.more_time import more_time
from pytest_gpucap.measure.observed import violations
from pytest_gpucap.measure.pace import NoPace, missing_pace
from pytest_gpucap.measure.per_replica import per_replica
from pytest_gpucap.measure.ramp import Ramp, overloaded, ramp_up
from pytest_gpucap.measure.reconciling import reconciled
from pytest_gpucap.measure.run import CalledOff, MeasuringRun, OutOfTime, Window, no_load, overload_at
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.measure.shown import bound_shown, broken_alone, completed_rate
from pytest_gpucap.measure.staircase import larger_batch
from pytest_gpucap.measure.steady import steady_window
from pytest_gpucap.requirement import Metric, Requirement
from pytest_gpucap.results.measured import Interval, Measurement, MoreTime, Outcome, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId


@dataclass(slots=True)
class _State:
    """What the check has found so far."""

    windows: list[Window]
    found: RateEstimate | None = None
    saturated: Interval | None = None
    binding: str | None = None
    """The limit that binds where no rate is found."""
    told_apart: bool = False
    """Whether a larger batch was held to tell staircases apart."""


def run_check(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Verdict:
    """See `pytest_gpucap.measure.procedure.check`."""
    run = MeasuringRun(runner, requirement, settings, observer)
    state = _State([])
    try:
        outcome, reason = _decide(run, state)
        if outcome is Outcome.FAIL and _too_many_errors(run):
            # GPUs counted from what a server does that fails so often would mean nothing.
            state.found, state.binding = None, "errors"
        if outcome is Outcome.FAIL and state.found is not None and (broken := broken_alone(run, state.found)):
            # The estimate is a rate at which requests hardly ever meet. GPUs counted from it would mean nothing.
            state.found, (state.binding, reason) = None, broken
    except CalledOff:
        outcome, reason = called_off(run)
    except OutOfTime:
        outcome = Outcome.INCONCLUSIVE
        reason = f"{settings.limit} ended before the evidence separated" + _so_far(run, state)
    except LoadError as error:
        run.problems.append(no_load(error))
        outcome, reason = Outcome.INVALID, str(error)
    outcome, reason = _end(run, state, outcome) or (outcome, reason)
    if run.problems:
        outcome, reason = Outcome.INVALID, run.problems[0].text
    measurement = measurement_of(run, state.found, state.saturated, outcome)
    if measurement.sustainable_rate is None:
        measurement = replace(measurement, binding=state.binding, reason=reason)
    elif measurement.at_least_rps is not None:
        reason = _bound_reason(requirement, measurement.at_least_rps)
        reason += told_of_forgetting(run, state.found) if state.found else ""
    verdict = verdict_of(outcome, per_replica(measurement), reason)
    return replace(verdict, more_time=_more_time(verdict, settings)) if outcome is Outcome.INCONCLUSIVE else verdict


def _more_time(verdict: Verdict, settings: Settings) -> MoreTime:
    return more_time(verdict, settings.max_time_s, of_session=bool(settings.time_bound))


def _end(run: MeasuringRun, state: _State, outcome: Outcome) -> tuple[Outcome, str] | None:
    """Measure what is not about the rate, if the budget may hold, and end what is in flight.

    Returns:
        Another verdict, if too many requests failed in the meantime.
    """
    steady = run.settings.steady_s > 0 and outcome in {Outcome.PASS, Outcome.INCONCLUSIVE}
    try:
        if steady:
            steady_window(run, float(run.requirement.driven_rate), _critical(run))
        run.settle()
    except LoadError as error:
        run.problems.append(no_load(error))
    ended = _by_errors(run) if steady and not run.problems else None
    if ended is not None:
        state.found, state.binding = None, "errors"
    return ended


def measurement_of(
    run: MeasuringRun,
    found: RateEstimate | None,
    saturated: Interval | None = None,
    outcome: Outcome | None = None,
) -> Measurement:
    """What the run found, as a measurement. It has no rate if there are problems or too few samples.

    A FAIL or an INCONCLUSIVE rests on the estimate. Otherwise the bound that was shown replaces an extrapolation.
    """
    enough = len(run.samples) >= c.LEAST_SAMPLES and not run.problems
    keeps_design = outcome is Outcome.PASS
    at_least = float(run.requirement.driven_rate) if keeps_design else None
    if found is not None and enough and outcome in {Outcome.PASS, None}:
        at_least = bound_shown(found, run.samples, run.requirement, keeps_design=keeps_design)
    return Measurement(
        requirement=run.requirement,
        samples=tuple(run.samples),
        sustainable_rate=found.rate if found is not None and enough else None,
        saturated_rate=saturated if enough else None,
        binding=found.binding if found is not None and enough else None,
        spent_s=dict(run.spent),
        problems=tuple(run.problems),
        failed_requests=run.failed_requests(),
        simulated=run.runner.simulated,
        seed=run.settings.seed,
        at_least_rps=at_least,
        adapters=latencies_by_adapter(run.journal, run.requirement.workload, run.samples),
        forgetting_cost=found.forgetting.share if found is not None and enough and found.forgetting else None,
    )


def failed_requests(run: MeasuringRun) -> Problem | None:
    """Why a measurement without a verdict cannot be trusted, if more requests failed than the requirement allows."""
    ended = _too_many_errors(run)
    return None if ended is None else ended[1]


def called_off(run: MeasuringRun) -> tuple[Outcome, str]:
    """The verdict on a run that ended because most requests of a phase failed."""
    failed, ended = run.errors()
    return _by_errors(run) or (Outcome.FAIL, str(run.failed_requests() or f"{failed} of {ended} requests failed"))


def _decide(run: MeasuringRun, state: _State) -> tuple[Outcome, str]:
    design = float(run.requirement.driven_rate)
    critical = _critical(run)
    ramp = ramp_up(run, critical, c.ENOUGH * design)
    state.windows.extend(ramp.windows)
    if early := _after_ramp(run, state, ramp):
        return early
    most = ramp.peak or critical
    overload = overload_at(most)
    for cycle in range(1, c.MOST_CYCLES + 1):
        if cycle > 1 and not run.in_flight:
            hold = run.hold(WindowId(Phase.HOLD, cycle), ramp.level, c.LOW_HOLD_S, discard_s=c.REFILL_S)
            state.windows.append(hold)
        open_loop = run.open_loop(WindowId(Phase.DESIGN_RATE, cycle), design, c.OPEN_S, overload=overload)
        state.windows.append(open_loop)
        if ended := _ended(run):
            return ended
        try:
            state.found = found = reconciled(run, state.windows, state.found, ramp.peak)
        except SpeedError:
            state.found = None
            return _without_pace(run, state, ramp, _why_no_pace(run))
        broken = violations(run.journal, open_loop, run.requirement.slo)
        if open_loop.span.stopped or overloaded(open_loop, ramp.peak):
            # A stop of the engine more or less overloads it by luck.
            enough = c.WRONG_CHANCE if found.by_luck else c.STOPPED_CHANCE
            if found.belief.chance_above(design) < enough:
                return Outcome.FAIL, _reason(run, found, "the open loop at the design rate overloaded the server")
            run.settle()
        outcome = found.belief.outcome(design, c.WRONG_CHANCE)
        if (outcome is Outcome.PASS and broken > c.MOST_VIOLATIONS) or (outcome is Outcome.FAIL and found.warming):
            continue
        if outcome is not Outcome.INCONCLUSIVE:
            return outcome, _reason(run, found, _seen(broken))
        _larger_batch(run, state, found, ramp)
    return Outcome.INCONCLUSIVE, "the evidence does not separate" + _so_far(run, state)


def _larger_batch(run: MeasuringRun, state: _State, found: RateEstimate, ramp: Ramp) -> None:
    """One more hold, once, where the step times leave several staircases possible: at a batch where these differ."""
    if state.told_apart or not found.speed.rivals or ramp.peak is not None:
        return
    state.told_apart = True
    level = larger_batch(run.settings, traffic_for(run.requirement.workload), found.in_flight, ramp.level)
    if level > ramp.level:
        which = WindowId(Phase.RAMP, concurrency=level)
        state.windows.append(run.hold(which, level, c.LOW_HOLD_S, discard_s=c.TOP_UP_S))


def _after_ramp(run: MeasuringRun, state: _State, ramp: Ramp) -> tuple[Outcome, str] | None:
    """The verdict if the holds alone decide: the run has problems, or the server is far too slow."""
    if ended := _ended(run):
        return ended
    design = float(run.requirement.driven_rate)
    highest = ramp.peak or ramp.level
    if ramp.no_pace is not None:
        return _without_pace(run, state, ramp, ramp.no_pace)
    try:
        state.found = found = estimate(run, state.windows, design, peak=ramp.peak)
    except SpeedError:
        return _without_pace(run, state, ramp, _why_no_pace(run))
    # Holds do not tell how far the server departs from the model, so they decide only where even that does not matter.
    faster = found.speed.falls(c.WARMING_Z, c.TREND_LN)
    if _chance_of_holds(run, found, design) < c.WRONG_CHANCE and not faster:
        how = f"held at up to {highest} requests in flight"
        if ramp.peak:
            how += ", beyond which throughput falls"
        return Outcome.FAIL, _reason(run, found, how)
    return None


def _chance_of_holds(run: MeasuringRun, found: RateEstimate, design_rps: float) -> float:
    """The chance that the server keeps the design rate, from holds alone, whatever the server's build.

    Holds do not tell how long first tokens wait. Goodput needs more requests to have them in time than a percentile
    does, so there a few stops that the holds seem to have would decide. So goodput is judged without that threshold.
    """
    chance = found.belief.widest().chance_above(design_rps)
    goodput = run.requirement.slo.goodput
    if goodput is None or Metric.TTFT not in goodput.metrics or found.binding != goodput.name:
        return chance
    others = goodput.apart_from(Metric.TTFT)
    limits = (*run.requirement.slo.percentiles, *([others] if others else []))
    traffic = traffic_for(run.requirement.workload, found.model.own_paces)
    rate = max(found.rate.value, sustainable(found.model, traffic, limits, found.rate.value).rate_rps)
    return max(chance, mixture(Part(1.0, rate, rate, rate, found.error), None).widest().chance_above(design_rps))


def _why_no_pace(run: MeasuringRun) -> NoPace:
    return missing_pace(run.journal, run.requirement.workload) or NoPace.TOO_FEW_TOKENS


def _without_pace(run: MeasuringRun, state: _State, ramp: Ramp, why: NoPace) -> tuple[Outcome, str]:
    """The verdict where answers show no pace: by what was seen."""
    state.saturated = completed_rate(run, ramp.windows[-1]) if ramp.windows else None
    critical = max(ramp.level, _critical(run))
    completed = state.saturated.value if state.saturated else 0.0
    judged = run_without_pace(run, float(run.requirement.driven_rate), critical, why, completed)
    return _ended(run) or if_remembered(run, judged)


def _critical(run: MeasuringRun) -> int:
    return critical_concurrency(run.requirement, run.settings, float(run.requirement.driven_rate))


def _ended(run: MeasuringRun) -> tuple[Outcome, str] | None:
    """The verdict if problems or errors have ended the run."""
    if run.problems:
        return Outcome.INVALID, run.problems[0].text
    return _by_errors(run)


def _by_errors(run: MeasuringRun) -> tuple[Outcome, str] | None:
    """The verdict if too many requests failed. Refused requests are a problem of the measurement."""
    ended = _too_many_errors(run)
    if ended is None:
        return None
    outcome, problem = ended
    if outcome is Outcome.INVALID:
        run.problems.append(problem)
    return outcome, problem.text


def _too_many_errors(run: MeasuringRun) -> tuple[Outcome, Problem] | None:
    """FAIL or INVALID, and why, if more requests failed than the requirement allows."""
    found = run.failed_requests()
    allowed = float(run.requirement.slo.max_error_rate)
    if found is None or not errors_exceed(found.failed, found.ended, allowed, c.ERROR_LEVEL):
        return None
    if refused := refusal(found):
        return Outcome.INVALID, Problem(ProblemSource.SERVER, *refused)
    text = f"{found}; at most {allowed:.2%} may fail"
    return Outcome.FAIL, Problem(ProblemSource.SERVER, ProblemKind.FAILED_REQUESTS, text)


def _reason(run: MeasuringRun, found: RateEstimate, how: str) -> str:
    design = float(run.requirement.driven_rate)
    sign = "above" if found.rate.value >= design else "below"
    return (
        f"{run.requirement.under_load} {rps(found.rate.value)} req/s (95% interval {rps(found.rate.low)} to "
        f"{rps(found.rate.high)}, bound by {found.binding}), {sign} the design rate of {rps(design)} req/s; {how}"
        + _unexplained(found)
        + told_of_forgetting(run, found)
    )


def _unexplained(found: RateEstimate) -> str:
    if not found.misfits:
        return ""
    names = " and ".join(sorted(found.misfits))
    return f"; the queue model does not explain {names} of this server, so only requests that kept or broke it count"


def _seen(broken: float) -> str:
    return f"of the requests sent at the design rate, {broken:.0%} broke the tightest limit"


def _bound_reason(requirement: Requirement, at_least_rps: float) -> str:
    design = float(requirement.driven_rate)
    return (
        f"{requirement.under_load} at least {rps(at_least_rps)} req/s, {at_least_rps / design:.3g} times the design "
        f"rate of {rps(design)} req/s; more was not measured"
    )


def _so_far(run: MeasuringRun, state: _State) -> str:
    if state.found is None:
        return ""
    rate = state.found.rate
    return (
        f": {rps(rate.value)} req/s (95% interval {rps(rate.low)} to {rps(rate.high)}) against a design rate of "
        f"{rps(float(run.requirement.driven_rate))}{_unexplained(state.found)}{told_of_forgetting(run, state.found)}"
    )
