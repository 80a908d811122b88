"""`check`: hold, open loop, decide; repeated while the evidence does not separate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pytest_gpucap.decisions.verdict import errors_exceed, separated, verdict_of
from pytest_gpucap.estimate.step_time import SpeedError
from pytest_gpucap.load.protocol import ClosedLoop, LoadError, LoadRunner, OpenLoop
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.direct import run_direct
from pytest_gpucap.measure.estimate import RateEstimate, critical_concurrency, estimate, fitted, model_of
from pytest_gpucap.measure.model_check import ModelCheck, replay
from pytest_gpucap.measure.ramp import Ramp, climbed, drowned
from pytest_gpucap.measure.run import MeasuringRun, OutOfTime, Window, no_load
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.measure.traffic import traffic_for
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Interval, Measurement, Outcome, Verdict
from pytest_gpucap.results.windows import Phase, WindowId


@dataclass(slots=True)
class _State:
    """What the check knows so far."""

    windows: list[Window]
    found: RateEstimate | None = None
    saturated: Interval | None = None


def run_check(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Verdict:
    """See `pytest_gpucap.measure.procedure.check`."""
    session = MeasuringRun(runner, requirement, settings, observer)
    state = _State([])
    try:
        outcome, reason = _decide(session, state)
    except OutOfTime:
        outcome = Outcome.INCONCLUSIVE
        reason = f"the GPU-time limit of {settings.max_time_s:g} s ended before the evidence separated" + _so_far(
            session, state
        )
    except LoadError as error:
        session.problems.append(no_load(error))
        outcome, reason = Outcome.INVALID, str(error)
    try:
        session.settle()
    except LoadError as error:
        session.problems.append(no_load(error))
    if session.problems:
        outcome, reason = Outcome.INVALID, session.problems[0].text
    return verdict_of(outcome, measurement_of(session, state.found, state.saturated), reason)


def measurement_of(session: MeasuringRun, found: RateEstimate | None, saturated: Interval | None = None) -> Measurement:
    """The session's books as a measurement; no rate where problems spoil it or samples are too few."""
    enough = len(session.samples) >= c.LEAST_SAMPLES and not session.problems
    return Measurement(
        requirement=session.requirement,
        samples=tuple(session.samples),
        sustainable_rate=found.rate if found is not None and enough else None,
        saturated_rate=saturated if enough else None,
        binding=found.binding if found is not None and enough else None,
        spent_s=dict(session.spent),
        problems=tuple(session.problems),
        simulated=session.runner.simulated,
        seed=session.settings.seed,
    )


def _decide(session: MeasuringRun, state: _State) -> tuple[Outcome, str]:  # noqa: C901 - one branch an ending
    requirement, settings = session.requirement, session.settings
    design = float(requirement.design_rate)
    critical = critical_concurrency(requirement, settings, design)
    climb = climbed(session, critical, c.ENOUGH * design)
    state.windows.extend(climb.windows)
    if early := _after_climb(session, state, climb):
        return early
    most = climb.turned or critical
    overload = int(c.OVERLOAD * most) + c.OVERLOAD_MARGIN
    disagreements = 0
    for cycle in range(1, c.MOST_CYCLES + 1):
        if cycle > 1:
            lead_s = c.TOP_UP_S if session.in_flight else c.REFILL_S
            state.windows.append(session.hold(WindowId(Phase.HOLD, cycle), climb.level, c.HOLD_S, discard_s=lead_s))
        open_loop = session.open_loop(WindowId(Phase.DESIGN_RATE, cycle), design, c.OPEN_S, overload=overload)
        state.windows.append(open_loop)
        if ended := _ended(session):
            return ended
        # What a first open loop shows that went badly wrong must show again before it is believed.
        spoilt = c.GROSS_SHARE if cycle == 1 else 1.0
        found, replayed = reconciled(session, state.windows, state.found, climb.turned, spoilt)
        state.found = found
        if open_loop.span.stopped or drowned(open_loop, climb.turned):
            if found.rate.value < design * math.exp(c.DECISION_Z[-1] * found.error):
                return Outcome.FAIL, _reason(found, design, "the open loop at the design rate drowned the server")
            session.settle()
        if not replayed.agrees:
            # What the model misses by is one more error of it. Far from the design rate that changes no verdict; near
            # it the model is given up.
            state.found = found = found.widened(math.log(replayed.pace))
        z = c.DECISION_Z[min(cycle, len(c.DECISION_Z)) - 1]
        outcome = separated(found.least, found.greatest, design, found.error, z)
        if outcome is Outcome.PASS and replayed.gross > c.GROSS_SHARE:
            continue
        if outcome is not Outcome.INCONCLUSIVE:
            return outcome, _reason(found, design, _seen(replayed))
        if not replayed.agrees:
            disagreements += 1
            if disagreements > 1:
                return run_direct(session, design, overload)
    return Outcome.INCONCLUSIVE, "the evidence does not separate" + _so_far(session, state)


def _after_climb(session: MeasuringRun, state: _State, climb: Ramp) -> tuple[Outcome, str] | None:
    """What the holds alone decide: a measurement that is spoilt, and a server that is far too slow."""
    if ended := _ended(session):
        return ended
    requirement, design = session.requirement, float(session.requirement.design_rate)
    traffic = traffic_for(requirement.workload)
    highest = climb.turned or climb.level
    try:
        state.found = found = estimate(
            session.journal, state.windows, traffic, requirement, session.settings, design, turned=climb.turned
        )
    except SpeedError:
        return Outcome.FAIL, _stuck(session, highest)
    least_gap = max(c.HOLD_FAIL_LN, c.HOLD_FAIL_Z * math.hypot(found.error, c.SHAPE_ERROR))
    if math.log(found.greatest / design) < -least_gap:
        how = f"held at up to {highest} requests in flight"
        if climb.turned:
            how += ", beyond which throughput falls"
        return Outcome.FAIL, _reason(found, design, how)
    return None


def _ended(session: MeasuringRun) -> tuple[Outcome, str] | None:
    """The ending that problems or errors have brought about."""
    if session.problems:
        return Outcome.INVALID, session.problems[0].text
    return _too_many_errors(session)


def reconciled(
    session: MeasuringRun,
    windows: list[Window],
    before: RateEstimate | None,
    turned: int | None = None,
    spoilt_share: float = 1.0,
) -> tuple[RateEstimate, ModelCheck]:
    """The estimate from all windows, the last an open loop, with what its replay says the model leaves out.

    That is not believed of an open loop which broke a limit in more than `spoilt_share` of its requests.
    """
    requirement, settings = session.requirement, session.settings
    traffic = traffic_for(requirement.workload)
    guess = before.rate.value if before else float(requirement.design_rate)
    last = windows[-1]
    if turned is not None:
        windows = [w for w in windows if isinstance(w.span.phase, ClosedLoop) or not drowned(w, turned)]
    model = model_of(fitted(session.journal, windows, traffic.mean_context), settings)
    replayed = replay(session.journal, last, model, requirement.slo)
    offset, correction = replayed.ttft_offset_s, replayed.correction
    offset_rps = last.span.phase.rate_rps if isinstance(last.span.phase, OpenLoop) else 0.0
    if (last.span.stopped or drowned(last, turned) or replayed.gross > spoilt_share) and before is not None:
        # First tokens of a server that drowned tell nothing of one that does not.
        offset, correction = before.model.ttft_offset_s, before.model.correction
        offset_rps = before.model.ttft_offset_rps
    found = estimate(
        session.journal,
        windows,
        traffic,
        requirement,
        settings,
        guess,
        before.slope if before and before.settled else None,
        offset,
        correction,
        offset_rps,
        turned=turned,
        thorough=True,
        examined=before.examination if before else None,
    )
    return replace(found, settled=found.slope < c.STEEPEST), replayed


def _too_many_errors(session: MeasuringRun) -> tuple[Outcome, str] | None:
    failed, ended = session.errors()
    allowed = float(session.requirement.slo.max_error_rate)
    if errors_exceed(failed, ended, allowed, c.ERROR_LEVEL):
        return Outcome.FAIL, f"{failed} of {ended} requests failed, more than the {allowed:.2%} allowed"
    return None


def _reason(found: RateEstimate, design: float, how: str) -> str:
    sign = "above" if found.rate.value >= design else "below"
    return (
        f"one replica sustains {_rps(found.rate.value)} req/s (95% interval {_rps(found.rate.low)} to "
        f"{_rps(found.rate.high)}, bound by {found.binding}), {sign} the design rate of {_rps(design)} req/s; {how}"
    )


def _seen(replayed: ModelCheck) -> str:
    return f"the open loop at the design rate broke its tightest limit in {replayed.gross:.0%} of its requests"


def _stuck(session: MeasuringRun, critical: int) -> str:
    return f"{critical} requests in flight produced too few tokens in {session.spent_s:.0f} s to tell the server's pace"


def _so_far(session: MeasuringRun, state: _State) -> str:
    if state.found is None:
        return ""
    rate = state.found.rate
    return (
        f": {_rps(rate.value)} req/s (95% interval {_rps(rate.low)} to {_rps(rate.high)}) against a design rate of "
        f"{_rps(float(session.requirement.design_rate))}"
    )


def _rps(rate: float) -> str:
    return f"{float(f'{rate:.3g}'):.10g}"
