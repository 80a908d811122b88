"""What an open loop corrects: the tightest limit decides, and the others are not searched for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.estimate.sustainable_rate import Sustainable, sustainable
from pytest_gpucap.measure import reconciling
from pytest_gpucap.measure.estimate import RateEstimate
from pytest_gpucap.measure.observed import Departure
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import Requirement, Slo, declared_limits
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
LIMITS = declared_limits({"ttft_p95": "2s", "e2e_p95": "20s"})
"""The second one binds. The first holds up to where requests queue, far above."""


def test_the_tightest_limit_decides_and_no_other_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rate_rps = FAST.true_rate_rps
    asked = Requirement("x", Fraction(rate_rps), 1, Fraction(1), 1, FAST.workload, Slo(LIMITS))
    run = MeasuringRun(SimRunner(FAST.engine, 11), asked, Settings(seed=11), SilentObserver())
    windows = [run.hold(WindowId(Phase.HOLD, i + 1), level, 8.0, discard_s=4.0) for i, level in enumerate((40, 90))]
    windows.append(run.open_loop(WindowId(Phase.DESIGN_RATE, 1), rate_rps, 40.0, overload=None))
    searched: list[str] = []
    rates: list[list[float]] = []
    tightest = reconciling._tightest

    def counted(model: Any, traffic: Any, limits: Any, *args: Any, **options: Any) -> Sustainable:
        searched.extend(limit.name for limit in limits)
        return sustainable(model, traffic, limits, *args, **options)

    def compared(
        run: MeasuringRun, found: RateEstimate, known: dict[str, Departure], rate_rps: float
    ) -> tuple[Sustainable, float]:
        decided = tightest(run, found, known, rate_rps)
        assert searched == ["e2e_p95"]
        each = [reconciling._as_seen(run, found, limit, known.get(limit.name), rate_rps)[0] for limit in LIMITS]
        rates.append([decided[0].rate_rps, *(root.rate_rps for root in each)])
        return decided

    monkeypatch.setattr(reconciling, "sustainable", counted)
    monkeypatch.setattr(reconciling, "_tightest", compared)
    found = reconciling.reconciled(run, windows, None)
    assert found.binding == "e2e_p95"
    ((decided, first_token, whole),) = rates
    assert decided == whole < first_token
