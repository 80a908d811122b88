"""The steady window follows the decision and changes nothing in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_gpucap.load.protocol import LoadPhase, PhaseSpan, Progress
from pytest_gpucap.measure.constants import WARM_UP_S
from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Outcome, Sample
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
PLAIN = Settings(max_num_seqs=FAST.engine.max_num_seqs, kv_tokens=FAST.engine.kv_tokens)
STEADY = replace(PLAIN, steady_s=15.0)


def requirement(qps: float, headroom: float = 1.0) -> Requirement:
    return Requirement("x", Fraction(qps), 1, Fraction(headroom), 1, FAST.workload, FAST.slo)


def steady(samples: tuple[Sample, ...]) -> list[Sample]:
    return [sample for sample in samples if sample.window.phase is Phase.STEADY]


def test_a_budget_that_holds_has_one_at_its_design_rate_and_the_same_verdict() -> None:
    wanted = requirement(FAST.true_rate_rps / 1.1)
    without, found = check(SimRunner(FAST.engine, 1), wanted, PLAIN), check(SimRunner(FAST.engine, 1), wanted, STEADY)
    windows = steady(found.measurement.samples)
    assert found.outcome is without.outcome is Outcome.PASS
    assert found.measurement.sustainable_rate == without.measurement.sustainable_rate
    assert found.measurement.samples[-3:] == tuple(windows)
    assert not steady(without.measurement.samples)
    assert sum(each.end_s - each.start_s for each in windows) == pytest.approx(15.0)
    # Offered is what the arrivals of a short window come to.
    assert windows[0].offered_rps == pytest.approx(float(wanted.design_rate), rel=0.2)
    # What the open loop before it left in flight is gone: it has a lead of its own.
    assert windows[0].start_s > found.measurement.samples[-4].end_s + 11


def test_a_budget_that_fails_has_none() -> None:
    found = check(SimRunner(FAST.engine, 1), requirement(2 * FAST.true_rate_rps), STEADY)
    assert found.outcome is Outcome.FAIL
    assert not steady(found.measurement.samples)


def test_a_measurement_has_one_at_what_the_headroom_leaves_of_its_rate() -> None:
    found = measure(SimRunner(FAST.engine, 1), requirement(1, headroom=2), STEADY)
    rate, windows = found.sustainable_rate, steady(found.samples)
    assert rate is not None
    assert windows[0].offered_rps == pytest.approx(rate.value / 2, rel=0.2)


def test_without_time_for_it_the_verdict_stays() -> None:
    wanted = requirement(FAST.true_rate_rps / 3)
    needed_s = sum(check(SimRunner(FAST.engine, 1), wanted, PLAIN).measurement.spent_s.values())
    found = check(SimRunner(FAST.engine, 1), wanted, replace(STEADY, max_time_s=needed_s + 1))
    assert found.outcome is Outcome.PASS
    assert not steady(found.measurement.samples)


class Failing(SimRunner):
    """A server whose requests begin to fail when the steady window does."""

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        if phase.duration_s == STEADY.steady_s + WARM_UP_S:
            self._error_rate = 0.3
        return super().run(phase, should_stop)


def test_requests_that_fail_in_it_fail_the_budget() -> None:
    found = check(Failing(FAST.engine, 1), requirement(FAST.true_rate_rps / 3), STEADY)
    assert found.outcome is Outcome.FAIL
    assert "at most 1.00% may fail" in found.reason
    assert (found.measurement.binding, found.gpus_required) == ("errors", None)
