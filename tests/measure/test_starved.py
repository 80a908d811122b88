"""Open loops that starve: an estimate was there, and they have too few tokens for one of their own."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_gpucap.estimate.step_time import SpeedError
from pytest_gpucap.measure import checking, measuring, procedure, reconciling
from pytest_gpucap.measure.estimate import estimate, server_seen
from pytest_gpucap.measure.pace import NoPace
from pytest_gpucap.measure.reconciling import reconciled
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
REQUIREMENT = Requirement("starves", Fraction(12), 1, Fraction(1), 1, FAST.workload, FAST.slo)


def test_windows_are_left_out_only_as_long_as_the_others_show_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    run = MeasuringRun(SimRunner(FAST.engine, 1), REQUIREMENT, Settings(seed=1), SilentObserver())
    windows = [run.hold(WindowId(Phase.RAMP, concurrency=n), n, 4.0, discard_s=4.0) for n in (20, 60)]
    before = estimate(run, windows, 12.0)
    run.settle()
    windows.append(run.open_loop(WindowId(Phase.DESIGN_RATE, 1), 1e-3, 4.0, overload=None))
    with pytest.raises(SpeedError):
        server_seen(run, windows[-1:])

    def last(_run: MeasuringRun, found: list[Window]) -> list[Window]:
        return found[-1:]

    monkeypatch.setattr(reconciling, "since_filled", last)
    found = reconciled(run, windows, before)
    assert found.rate.value == pytest.approx(before.rate.value, rel=0.1)


def test_without_an_estimate_what_was_seen_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(*_: object) -> None:
        raise SpeedError("fewer than 4 bins")

    for module in (checking, measuring):
        monkeypatch.setattr(module, "reconciled", starved)
    verdict = procedure.check(SimRunner(FAST.engine, 1), REQUIREMENT, Settings(seed=1))
    assert verdict.outcome is Outcome.PASS
    assert "a direct run at the design rate" in verdict.reason
    assert NoPace.TOO_FEW_TOKENS.value in verdict.reason
    measurement = procedure.measure(SimRunner(FAST.engine, 1), REQUIREMENT, Settings(seed=1))
    assert measurement.sustainable_rate is None
    assert measurement.reason == NoPace.TOO_FEW_TOKENS.value
