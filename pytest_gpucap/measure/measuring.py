"""`measure`: find the critical concurrency, then hold and open loop at what the server turns out to sustain."""

from __future__ import annotations

import math

from pytest_gpucap.capacity.results import Measurement
from pytest_gpucap.capacity.speed import SpeedError
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.checking import extended, measurement_of, reconciled
from pytest_gpucap.measure.estimate import Estimate, critical_concurrency, estimate
from pytest_gpucap.measure.session import OutOfTime, Session, Window
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.measure.traffic import traffic_for
from pytest_gpucap.requirement import Requirement


def run_measure(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Measurement:
    """See `pytest_gpucap.measure.procedure.measure`."""
    session = Session(runner, requirement, settings, observer)
    found: Estimate | None = None
    try:
        found, _ = measured(session)
        session.settle()
    except LoadError as error:
        session.problems.append(str(error))
    return measurement_of(session, found)


def measured(session: Session) -> tuple[Estimate | None, list[Window]]:
    """The estimate, and the windows behind it; None when time ended or the server was stuck before there was one."""
    found: Estimate | None = None
    windows: list[Window] = []
    try:
        critical, found, windows = _search(session)
        if found is None:
            return None, windows
        for cycle in range(1, c.MEASURE_CYCLES + 1):
            hold = session.hold(f"hold {cycle}", critical, c.HOLD_S, hot=False)
            windows.append(extended(session, hold, critical) if cycle == 1 else hold)
            if session.problems:
                break
            window = session.open_loop(
                f"open loop {cycle}",
                found.rate.value,
                c.OPEN_S,
                overload=int(c.OVERLOAD * critical) + c.OVERLOAD_MARGIN,
            )
            windows.append(window)
            if session.problems:
                break
            found, replayed = reconciled(session, windows, found)
            if not replayed.agrees:
                found = found.widened(math.log(replayed.pace))
            critical = _critical(session, found)
    except OutOfTime:
        pass
    return found, windows


def _critical(session: Session, found: Estimate) -> int:
    """Requests in flight to hold: where the limits bind at the estimated rate."""
    if not session.requirement.slo.limits:
        return critical_concurrency(session.requirement, session.settings, found.rate.value)
    return max(1, round(min(found.in_flight, found.model.most_running)))


def _search(session: Session) -> tuple[int, Estimate | None, list[Window]]:
    """Move the held concurrency towards the critical one; the first hold is the warm-up as well.

    The windows on the way are kept: other batch sizes tell the curve's shape.
    """
    requirement, settings = session.requirement, session.settings
    traffic = traffic_for(requirement.workload)
    guess = float(requirement.design_rate)
    n = min(critical_concurrency(requirement, settings, guess), c.UNKNOWN_SEQS)
    found: Estimate | None = None
    windows: list[Window] = []
    for move in range(c.SEARCH_MOVES):
        window = session.hold(
            f"search {move + 1}", n, c.SEARCH_HOLD_S, discard_s=c.WARM_UP_S if move == 0 else 1.0, hot=move == 0
        )
        if session.problems:
            return n, None, windows
        windows.append(window)
        try:
            found = estimate(session.journal, windows, traffic, requirement, settings, guess, extremes=False)
        except SpeedError:
            if n == 1:
                return n, None, windows
            n = max(1, n // 4)
            continue
        guess = found.rate.value
        wanted = _critical(session, found)
        if abs(math.log(wanted / n)) < c.SEARCH_NEAR:
            break
        n = int(min(wanted, max(n + 1, math.ceil(n * c.SEARCH_FACTOR))))
    return n, found, windows
