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
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.estimate import server_seen
from pytest_gpucap.measure.kept import NOTHING_KEPT, Kept, kept_by
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.rare_stops import UNMOVED, stop_shifts, stopping_otherwise
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import LatencyLimit, Length, Metric, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Outcome
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


def shifts(
    held: tuple[MeasuringRun, Speed, ServerModel],
    stops: tuple[float, ...],
    seconds: float,
    kept: Kept = NOTHING_KEPT,
) -> list[float]:
    """Of a server with few short requests in flight, which is cheap to examine."""
    _, speed, model = held
    short = Workload(Length.fixed(32), Length.fixed(40))
    limit = LatencyLimit(Metric.E2E, Fraction(95, 100), 0.4)
    seen = replace(speed, stops_s=stops, seconds=seconds)
    stopping = replace(model, speed=np.full(64, 0.004), stall_per_s=len(stops) / seconds, stall_s=stops)
    found = stop_shifts(seen, stopping, traffic_for(short), (limit,), 12.0, 20.0, kept)
    assert math.fsum(chance for chance, _ in found) == pytest.approx(1.0)
    return [shift for _, shift in found]


@pytest.fixture(scope="module")
def two(held: tuple[MeasuringRun, Speed, ServerModel]) -> list[float]:
    """What two stops in a minute leave open."""
    return shifts(held, (0.9, 1.1), 60.0)


def test_few_stops_leave_more_open_than_many(held: tuple[MeasuringRun, Speed, ServerModel], two: list[float]) -> None:
    twenty = shifts(held, (0.9, 1.1) * 10, 600.0)
    assert two == sorted(two, reverse=True)
    assert twenty == sorted(twenty, reverse=True)
    assert two[0] > twenty[0] > twenty[-1] > two[-1]


def test_short_stops_move_nothing(held: tuple[MeasuringRun, Speed, ServerModel]) -> None:
    _, speed, model = held
    seen = replace(speed, stops_s=(0.2, 0.3))
    assert stop_shifts(seen, model, traffic_for(FAST.workload), FAST.slo.limits, 20.0, 20.0) == UNMOVED


def test_more_and_longer_stops_leave_the_engine_half_of_the_time_for_which_it_ran(
    held: tuple[MeasuringRun, Speed, ServerModel],
) -> None:
    """A healthy server beside a busy program: one stop in six seconds may be one of many, but it delivered tokens."""
    _, _, model = held
    for seen, seconds in (((0.75,), 6.0), ((0.7, 0.8, 0.9), 3.0), ((0.6,), 300.0)):
        stopping = replace(model, stall_per_s=len(seen) / seconds, stall_s=seen)
        scenarios = stopping_otherwise(stopping, seen)
        shares = [each.stall_share for each in scenarios]
        assert shares == sorted(shares)
        assert shares[0] < stopping.stall_share < shares[-1]
        assert 1.0 - shares[-1] >= constants.LEAST_RUNNING * (1.0 - stopping.stall_share) - 1e-12
        # Their lengths are off together with their number.
        means = [sum(each.stall_s) for each in scenarios]
        assert means == sorted(means)
        assert scenarios[len(scenarios) // 2].stall_s == seen


def test_a_healthy_server_that_stops_in_a_short_run_keeps_a_rate_far_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stand-in beside busy programs, which is measured for six seconds and given no core for one of them."""
    for name in ("HOLD_S", "LOW_HOLD_S", "OPEN_S"):
        monkeypatch.setattr(constants, name, 1.5)
    monkeypatch.setattr(constants, "WARM_UP_S", 0.5)
    monkeypatch.setattr(constants, "LEAST_PHASE_S", 0.5)
    monkeypatch.setattr(constants, "MOST_CYCLES", 2)
    engine = replace(FAST.engine.settled(), stall_per_s=0.3, stall_s=0.75, max_num_seqs=8)
    workload = Workload(Length.fixed(64), Length.fixed(8))
    slo = Slo((LatencyLimit(Metric.E2E, Fraction(95, 100), 20.0),))
    healthy = Requirement("short", Fraction(5), 1, Fraction(1), 1, workload, slo)
    for seed in range(3):
        verdict = check(SimRunner(engine, seed), healthy, Settings(seed=seed, max_num_seqs=8))
        assert verdict.outcome is Outcome.PASS, verdict.reason


def test_open_loops_that_kept_their_limits_bound_the_scenarios(
    held: tuple[MeasuringRun, Speed, ServerModel], two: list[float]
) -> None:
    least = math.log(11.0 / 12.0)
    bounded = shifts(held, (0.9, 1.1), 60.0, Kept(11.0, 600.0))
    assert bounded == pytest.approx([max(shift, least) for shift in two])
    assert two[-1] < bounded[-1] == pytest.approx(least)


def test_an_open_loop_bounds_only_stops_that_would_have_come_in_it(
    held: tuple[MeasuringRun, Speed, ServerModel],
) -> None:
    _, _, model = held
    stopping = replace(model, stall_per_s=0.1, stall_s=(0.3, 1.0))  # a long one every 20 s
    assert not Kept(11.0, 59.0).rules_out(stopping)
    assert Kept(11.0, 61.0).rules_out(stopping)
    assert not Kept(11.0, 1e6).rules_out(replace(stopping, stall_s=(0.3,)))


def test_what_open_loops_kept(held: tuple[MeasuringRun, Speed, ServerModel]) -> None:
    run, _, _ = held
    hold = run.hold(WindowId(Phase.HOLD, 3), 40, 5.0)
    assert kept_by(run, [hold]) == NOTHING_KEPT
    slow = run.open_loop(WindowId(Phase.DESIGN_RATE, 1), 8.0, 20.0, overload=1000)
    kept = kept_by(run, [hold, slow])
    assert kept.rate_rps == 8.0
    assert kept.seconds == pytest.approx(slow.end_s - slow.start_s)
    run.requirement = requirement(Slo((LatencyLimit(Metric.E2E, Fraction(95, 100), 0.5),)))
    assert kept_by(run, [hold, slow]) == NOTHING_KEPT
