"""What a few long stops of the engine leave open."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load import schedule
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.estimate import server_seen
from pytest_gpucap.measure.rare_stops import UNMOVED, may_stop_yet, quiet_s, stop_shifts
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import LatencyLimit, Length, Metric, Requirement, Slo, Workload
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")


def requirement(slo: Slo = FAST.slo) -> Requirement:
    return Requirement("stops", Fraction(FAST.true_rate_rps / 1.1), 1, Fraction(1), 1, FAST.workload, slo)


@pytest.fixture(scope="module")
def held() -> tuple[MeasuringRun, Speed, ServerModel]:
    """Twelve seconds of load on a server without long stops, and what they show."""
    run = MeasuringRun(SimRunner(FAST.engine.settled(), 1), requirement(), Settings(seed=1), SilentObserver())
    windows = [run.hold(WindowId(Phase.HOLD, i + 1), level, 5.0, discard_s=1.0) for i, level in enumerate((40, 90))]
    return (run, *server_seen(run, windows))


def shifts(held: tuple[MeasuringRun, Speed, ServerModel], stops: tuple[float, ...], seconds: float) -> list[float]:
    """Of a server with few short requests in flight, which is cheap to examine."""
    _, speed, model = held
    short = Workload(Length.fixed(32), Length.fixed(40))
    limit = LatencyLimit(Metric.E2E, Fraction(95, 100), 0.4)
    seen = replace(speed, stops_s=stops, seconds=seconds)
    stopping = replace(model, speed=np.full(64, 0.004), stall_per_s=len(stops) / seconds, stall_s=stops)
    found = stop_shifts(seen, stopping, traffic_for(short), (limit,), 12.0, 20.0)
    assert math.fsum(chance for chance, _ in found) == pytest.approx(1.0)
    return [shift for _, shift in found]


def test_few_stops_leave_more_open_than_many(held: tuple[MeasuringRun, Speed, ServerModel]) -> None:
    two = shifts(held, (0.9, 1.1), 60.0)
    twenty = shifts(held, (0.9, 1.1) * 10, 600.0)
    assert two == sorted(two, reverse=True)
    assert twenty == sorted(twenty, reverse=True)
    assert two[0] > twenty[0] > twenty[-1] > two[-1]


def test_short_stops_move_nothing(held: tuple[MeasuringRun, Speed, ServerModel]) -> None:
    _, speed, model = held
    seen = replace(speed, stops_s=(0.2, 0.3))
    assert stop_shifts(seen, model, traffic_for(FAST.workload), FAST.slo.limits, 20.0, 20.0) == UNMOVED


def test_a_short_watch_does_not_rule_out_stops_that_would_break_a_limit(
    held: tuple[MeasuringRun, Speed, ServerModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, model = held
    now_s = run.runner.clock.now()
    assert may_stop_yet(run.journal, requirement(), model, now_s)
    bears = Slo((LatencyLimit(Metric.E2E, Fraction(95, 100), 60.0),))
    assert not may_stop_yet(run.journal, requirement(bears), model, now_s)
    # Where they were seen, their frequency is in the estimate.
    assert not may_stop_yet(run.journal, requirement(), replace(model, stall_per_s=0.1, stall_s=(1.0,)), now_s)
    monkeypatch.setattr(constants, "STOP_WATCH_S", 0.9 * now_s)
    assert not may_stop_yet(run.journal, requirement(), model, now_s)


def test_the_watch_begins_again_with_a_long_stop() -> None:
    engine = replace(FAST.engine.settled(), stall_per_s=0.1, stall_s=1.5)
    runner = SimRunner(engine, 3)
    span = runner.run(schedule.open_loop(FAST.workload, 15.0, 60.0, 1, 0))
    stopping = quiet_s(runner.journal(), span.end_s)
    assert 0.0 < stopping < 40.0
    calm = SimRunner(replace(engine, stall_per_s=0.0), 3)
    span = calm.run(schedule.open_loop(FAST.workload, 15.0, 60.0, 1, 0))
    assert quiet_s(calm.journal(), span.end_s) == pytest.approx(60.0, abs=1.0)
