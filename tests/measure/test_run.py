"""One phase after another, within the time limit."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import MeasuringRun, OutOfTime
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

SLOW = profiles.load("slow")


def test_only_the_time_limit_ends_a_measurement_before_a_phase() -> None:
    requirement = Requirement("short", Fraction(1), 1, Fraction(1), 1, SLOW.workload, SLOW.slo)
    run = MeasuringRun(SimRunner(SLOW.engine, 1), requirement, Settings(max_time_s=10.0, seed=1), SilentObserver())
    window = WindowId(Phase.WARM_UP)
    # A phase may be asked to be shorter than any that the limit cuts short.
    short = run.hold(window, 4, 0.5 * c.LEAST_PHASE_S)
    assert short.end_s - short.start_s == pytest.approx(0.5 * c.LEAST_PHASE_S, abs=0.01)
    cut = run.hold(window, 4, 60.0)
    assert cut.end_s - short.start_s == pytest.approx(10.0, abs=0.1)
    with pytest.raises(OutOfTime):
        run.hold(window, 4, 0.5 * c.LEAST_PHASE_S)
