"""What windows show: the bound where more was not measured, and limits that one request alone breaks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Requirement, Slo
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")
SETTINGS = Settings(max_num_seqs=FAST.engine.max_num_seqs, kv_tokens=FAST.engine.kv_tokens)


def requirement(qps: Any, slo: Slo = FAST.slo) -> Requirement:
    return Requirement("x", Fraction(qps), 1, Fraction(1), 1, FAST.workload, slo)


@pytest.mark.parametrize("ratio", [3.0, 6.0])
def test_far_above_the_bound_that_was_shown_takes_the_place_of_an_extrapolation(ratio: float) -> None:
    wanted = requirement(FAST.true_rate_rps / ratio)
    verdict: Any = check(SimRunner(FAST.engine, 1), wanted, SETTINGS)
    found = verdict.measurement
    assert verdict.outcome is Outcome.PASS
    assert float(wanted.design_rate) < found.at_least_rps < FAST.true_rate_rps
    # It is shown: a window delivered it.
    mean_output = FAST.workload.output_tokens.mean
    assert found.at_least_rps <= 1.02 * max(s.output_tokens_per_s for s in found.samples) / mean_output
    assert "sustains at least" in verdict.reason
    assert "times the design rate" in verdict.reason
    assert "bound by" not in f"{verdict.reason} {verdict!r}"


def test_near_the_requirement_the_estimate_stays() -> None:
    verdict = check(SimRunner(FAST.engine, 1), requirement(FAST.true_rate_rps / 1.1), SETTINGS)
    assert verdict.outcome is Outcome.PASS
    assert verdict.measurement.at_least_rps is None


@pytest.mark.parametrize("limit", ["e2e_p95", "tpot_p95", "ttft_p95"])
def test_a_limit_that_one_request_alone_breaks_says_so(limit: str) -> None:
    slo = Slo((LatencyLimit.parse(limit, "10ms" if limit == "e2e_p95" else "1ms"),))
    verdict = check(SimRunner(FAST.engine, 1), requirement(5, slo), SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert "no number of GPUs helps" in verdict.reason, verdict.reason
    assert verdict.reason.startswith("one request alone takes")
    assert verdict.gpus_required is None
    assert verdict.measurement.binding == limit
    assert any(sample.window.phase is Phase.ALONE for sample in verdict.measurement.samples)
    found = measure(SimRunner(FAST.engine, 1), requirement(5, slo), SETTINGS)
    assert found.sustainable_rate is None
    assert "no number of GPUs helps" in found.reason


def test_a_server_that_is_only_too_slow_is_counted_in_gpus() -> None:
    verdict = check(SimRunner(FAST.engine, 1), requirement(3 * FAST.true_rate_rps), SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.gpus_required is not None
    assert 2 <= verdict.gpus_required <= 5


def test_a_measurement_that_has_no_time_for_a_rate_says_so() -> None:
    found = measure(SimRunner(FAST.engine, 1), requirement(10), replace(SETTINGS, max_time_s=14.0))
    assert found.sustainable_rate is None
    assert "time limit of 14 s" in found.reason
