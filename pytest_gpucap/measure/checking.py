"""`check`: hold, open loop, decide; repeated while the evidence does not separate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_gpucap.capacity.decide import errors_exceed, separated, verdict_of
from pytest_gpucap.capacity.results import Interval, Measurement, Outcome, Verdict
from pytest_gpucap.capacity.speed import SpeedError, bin_width_s, bins_of
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.direct import run_direct
from pytest_gpucap.measure.estimate import Estimate, critical_concurrency, estimate, fitted, model_of, typical_step_s
from pytest_gpucap.measure.replay import Replay, replay
from pytest_gpucap.measure.session import OutOfTime, Session, Window
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.measure.traffic import traffic_for
from pytest_gpucap.requirement import Requirement


@dataclass(slots=True)
class _State:
    """What the check knows so far."""

    windows: list[Window]
    found: Estimate | None = None
    saturated: Interval | None = None


def run_check(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Verdict:
    """See `pytest_gpucap.measure.procedure.check`."""
    session = Session(runner, requirement, settings, observer)
    state = _State([])
    try:
        outcome, reason = _decide(session, state)
    except OutOfTime:
        outcome = Outcome.INCONCLUSIVE
        reason = f"the GPU-time limit of {settings.max_time_s:g} s ended before the evidence separated" + _so_far(
            session, state
        )
    except LoadError as error:
        session.problems.append(str(error))
        outcome, reason = Outcome.INVALID, str(error)
    try:
        session.settle()
    except LoadError as error:
        session.problems.append(str(error))
    if session.problems:
        outcome, reason = Outcome.INVALID, session.problems[0]
    return verdict_of(outcome, measurement_of(session, state.found, state.saturated), reason)


def measurement_of(session: Session, found: Estimate | None, saturated: Interval | None = None) -> Measurement:
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


def _decide(session: Session, state: _State) -> tuple[Outcome, str]:  # noqa: C901, PLR0911, PLR0912 - one branch an ending
    requirement, settings = session.requirement, session.settings
    design = float(requirement.design_rate)
    traffic = traffic_for(requirement.workload)
    critical = critical_concurrency(requirement, settings, design)
    overload = int(c.OVERLOAD * critical) + c.OVERLOAD_MARGIN
    disagreements = 0
    for cycle in range(1, c.MOST_CYCLES + 1):
        if cycle == 1:
            low = max(1, round(c.LOW_SHARE * critical))
            if low < critical:
                first = session.hold("warm-up and low hold", low, c.LOW_HOLD_S, discard_s=c.WARM_UP_S)
                state.windows.append(extended(session, first, low))
            hold = session.hold("hold 1", critical, c.HOLD_S, discard_s=c.TOP_UP_S if low < critical else c.WARM_UP_S)
        else:
            hold = session.hold(f"hold {cycle}", critical, c.HOLD_S, discard_s=c.TOP_UP_S)
        state.windows.append(hold)
        if session.problems:
            return Outcome.INVALID, session.problems[0]
        if failing := _too_many_errors(session):
            return failing
        if cycle == 1:
            try:
                found = estimate(session.journal, state.windows, traffic, requirement, settings, design, extremes=False)
            except SpeedError:
                return Outcome.FAIL, _stuck(session, critical)
            state.found = found
            if math.log(found.rate.value / design) < -max(
                c.HOLD_FAIL_LN, c.HOLD_FAIL_Z * math.hypot(found.error, c.SHAPE_ERROR)
            ):
                return Outcome.FAIL, _reason(found, design, f"held at up to {critical} requests in flight")
        open_loop = session.open_loop(f"design rate {cycle}", design, c.OPEN_S, overload=overload)
        state.windows.append(open_loop)
        if session.problems:
            return Outcome.INVALID, session.problems[0]
        if failing := _too_many_errors(session):
            return failing
        found, replayed = reconciled(session, state.windows, state.found)
        state.found = found
        if open_loop.span.stopped and found.rate.value < design * math.exp(c.DECISION_Z[-1] * found.error):
            return Outcome.FAIL, _reason(found, design, "the open loop at the design rate drowned the server")
        z = c.DECISION_Z[min(cycle, len(c.DECISION_Z)) - 1]
        if not replayed.agrees:
            # What the model misses by is one more error of it. Far from the design rate that changes no verdict; near
            # it the model is given up.
            state.found = found = found.widened(math.log(replayed.pace))
        outcome = separated(found.rate.value, design, found.error, z)
        if outcome is Outcome.INCONCLUSIVE and not replayed.agrees:
            disagreements += 1
            if disagreements > 1:
                return run_direct(session, design, overload)
            continue
        if outcome is Outcome.PASS and replayed.gross > c.GROSS_SHARE and cycle < c.MOST_CYCLES:
            continue
        if outcome is not Outcome.INCONCLUSIVE and not (outcome is Outcome.PASS and replayed.gross > c.GROSS_SHARE):
            return outcome, _reason(found, design, _seen(replayed))
    return Outcome.INCONCLUSIVE, "the evidence does not separate" + _so_far(session, state)


def reconciled(session: Session, windows: list[Window], before: Estimate | None) -> tuple[Estimate, Replay]:
    """The estimate from all windows, the last an open loop, with what its replay says the model leaves out."""
    requirement, settings = session.requirement, session.settings
    traffic = traffic_for(requirement.workload)
    guess = before.rate.value if before else float(requirement.design_rate)
    model = model_of(fitted(session.journal, windows), settings)
    replayed = replay(session.journal, windows[-1], model, requirement.slo)
    found = estimate(
        session.journal,
        windows,
        traffic,
        requirement,
        settings,
        guess,
        before.slope if before else None,
        replayed.ttft_offset_s,
        replayed.correction,
    )
    return found, replayed


def extended(session: Session, hold: Window, concurrency: int) -> Window:
    """The hold, or a later one when its halves say that the server was still warming up."""
    for _ in range(c.MOST_EXTENSIONS):
        if not _unsteady(session, hold):
            break
        hold = session.hold("hold, extended", concurrency, c.HOLD_S, hot=False)
    return hold


def _unsteady(session: Session, hold: Window) -> bool:
    """Whether the pace of the hold's second half differs from that of its first."""
    step_s = typical_step_s(session.journal, [hold])
    bins = bins_of(session.journal, hold.start_s, hold.end_s, min(bin_width_s(step_s), c.HOLD_S / 8))
    usable = (bins.decoding > 1) & (bins.tokens > 0)
    if usable.sum() < 6:  # noqa: PLR2004 - too few bins to compare halves
        return False
    log_pace = [
        math.log(w * n / t)
        for w, n, t in zip(bins.width_s[usable], bins.decoding[usable], bins.tokens[usable], strict=True)
    ]
    half = len(log_pace) // 2
    first, second = sorted(log_pace[:half]), sorted(log_pace[-half:])
    difference = abs(first[half // 2] - second[half // 2])
    spread = sorted(abs(a - b) for a, b in zip(log_pace[1:], log_pace[:-1], strict=True))
    noise = 1.05 * spread[len(spread) // 2] * math.sqrt(math.pi / half)
    return difference > max(c.UNSTEADY_LN, c.UNSTEADY_Z * noise)


def _too_many_errors(session: Session) -> tuple[Outcome, str] | None:
    failed, ended = session.errors()
    allowed = float(session.requirement.slo.max_error_rate)
    if errors_exceed(failed, ended, allowed, c.ERROR_LEVEL):
        return Outcome.FAIL, f"{failed} of {ended} requests failed, more than the {allowed:.2%} allowed"
    return None


def _reason(found: Estimate, design: float, how: str) -> str:
    sign = "above" if found.rate.value >= design else "below"
    return (
        f"one replica sustains {_rps(found.rate.value)} req/s (95% interval {_rps(found.rate.low)} to "
        f"{_rps(found.rate.high)}, bound by {found.binding}), {sign} the design rate of {_rps(design)} req/s; {how}"
    )


def _seen(replayed: Replay) -> str:
    return f"the open loop at the design rate broke its tightest limit in {replayed.gross:.0%} of its requests"


def _stuck(session: Session, critical: int) -> str:
    return f"{critical} requests in flight produced too few tokens in {session.spent_s:.0f} s to tell the server's pace"


def _so_far(session: Session, state: _State) -> str:
    if state.found is None:
        return ""
    rate = state.found.rate
    return (
        f": {_rps(rate.value)} req/s (95% interval {_rps(rate.low)} to {_rps(rate.high)}) against a design rate of "
        f"{_rps(float(session.requirement.design_rate))}"
    )


def _rps(rate: float) -> str:
    return f"{float(f'{rate:.3g}'):.10g}"
