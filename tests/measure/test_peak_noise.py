"""How well a hold tells its throughput: a fall that its own scatter explains is no peak."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_gpucap.measure import constants
from pytest_gpucap.measure.ramp import throughput_error
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
DOUBTED = constants.FALL_SHARE / (constants.PEAK_Z * math.sqrt(2.0))
"""From this error on, chance may explain a fall of `FALL_SHARE`."""


@pytest.mark.parametrize("seconds", [1.2, constants.HOLD_S])
def test_a_hold_of_any_length_shows_its_scatter(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "LEAST_PHASE_S", 0.5)
    requirement = Requirement("peak", Fraction(10), 1, Fraction(1), 1, FAST.workload, FAST.slo)
    calm = FAST.engine.settled()
    found = []
    for engine in (calm, replace(calm, stall_per_s=2.0, stall_s=0.25)):
        run = MeasuringRun(SimRunner(engine, 1), requirement, Settings(seed=1), SilentObserver())
        hold = run.hold(WindowId(Phase.HOLD, 1), 40, seconds, discard_s=0.5)
        found.append(throughput_error(run, hold))
    steady, starved = found
    assert 0.0 < steady < DOUBTED < starved
