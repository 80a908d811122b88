"""Goodput as the limit: thresholds that a request keeps together, on servers that keep each of them alone."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.estimate.queue_model import Evaluation, ServerModel, evaluate
from pytest_gpucap.estimate.samples import sample_of
from pytest_gpucap.estimate.sustainable_rate import sustainable
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load.protocol import ClosedLoop, Histogram, PhaseSpan, SelfCheck
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.direct import block_shares
from pytest_gpucap.measure.estimate import critical_concurrency
from pytest_gpucap.measure.pace import NoPace, unjudgeable
from pytest_gpucap.measure.procedure import check, measure, sample
from pytest_gpucap.measure.run import Window
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Limit, Requirement, Slo, declared_limits
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import FleetSimRunner
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.simulator.truth import long_run
from tests.load.test_latencies import GOOD, GOODPUT, REQUESTS, journal

LONG = profiles.load("longprompt")
SETTINGS = Settings(
    max_num_seqs=LONG.engine.max_num_seqs,
    kv_tokens=LONG.engine.kv_tokens,
    max_num_batched_tokens=LONG.engine.max_num_batched_tokens,
)
ALONE = {"ttft_p95": "350ms", "e2e_p95": "12s"}
TOGETHER = {"goodput": "95%", "ttft": "350ms", "e2e": "12s"}
BETWEEN_RPS = 9.15
"""Each percentile alone holds at it, but not both: late first tokens and long answers are of other requests."""


def slo(declared: dict[str, str]) -> Slo:
    return Slo(declared_limits(declared))


def requirement(qps: float, declared: dict[str, str]) -> Requirement:
    return Requirement("x", Fraction(qps), 1, Fraction(1), 1, LONG.workload, slo(declared))


def test_the_goodput_of_a_window_counts_failed_requests_as_not_good() -> None:
    tokens = np.ones(len(REQUESTS), np.int32)
    gaps = Histogram(1e-4, 1.02, np.zeros(10, np.int64))
    span = PhaseSpan(ClosedLoop(20.0, 4, tokens, tokens), 0.0, 20.0, 0, 11, stopped=False, check=SelfCheck(), gaps=gaps)
    which = WindowId(Phase.HOLD)
    found = sample_of(journal(), span, which, Slo((GOODPUT,)), 0.0, 20.0)
    ended = GOOD[:7]  # the others are in flight
    assert found.goodput == found.attainment["goodput_60"] == pytest.approx(sum(map(bool, ended)) / 7)
    # The same thresholds as percentiles: a figure, and no limit. Those leave failed requests to the error rate.
    percentiles = slo({"ttft_p95": "1s", "tpot_p95": "100ms", "e2e_p95": "5s"})
    plain = sample_of(journal(), span, which, percentiles, 0.0, 20.0)
    assert plain.goodput == found.goodput
    assert plain.attainment["tpot_p95"] == pytest.approx(3 / 4)
    assert sample_of(journal(), span, which, Slo(), 0.0, 20.0).goodput is None


def test_the_share_of_late_requests_in_a_direct_run() -> None:
    tokens = np.ones(len(REQUESTS), np.int32)
    gaps = Histogram(1e-4, 1.02, np.zeros(10, np.int64))
    span = PhaseSpan(ClosedLoop(20.0, 4, tokens, tokens), 0.0, 20.0, 0, 11, stopped=False, check=SelfCheck(), gaps=gaps)
    run: Any = type("Run", (), {"journal": journal()})()
    shares = block_shares(run, Window(span, 0.0, ()), GOODPUT)
    due = np.array([each[0] for each in REQUESTS])
    blocks = np.minimum((due / 20.0 * c.DIRECT_BLOCKS).astype(int), c.DIRECT_BLOCKS - 1)
    by_hand = [
        np.mean([not good for good, block in zip(GOOD, blocks, strict=True) if block == b and good is not None])
        for b in range(c.DIRECT_BLOCKS)
        if any(good is not None and block == b for good, block in zip(GOOD, blocks, strict=True))
    ]
    assert shares == pytest.approx(by_hand)


def evaluation(failed: float = 0.0) -> Evaluation:
    rng = np.random.default_rng(1)
    ttft, tpot = rng.exponential(0.4, 20_000), rng.exponential(0.03, 20_000)
    ttft[:50] = math.inf
    tpot[100:130] = math.nan
    nothing = np.zeros(1)
    return Evaluation(1.0, ttft, tpot, ttft + 9 * np.nan_to_num(tpot), nothing, nothing, failed=failed)


def quantile_of(share: float) -> Limit:
    (limit,) = declared_limits({"goodput": str(share), "ttft": "1s", "tpot": "100ms"})
    return limit


@pytest.mark.parametrize("failed", [0.0, 0.02])
def test_the_models_goodput_is_the_brute_force_count(failed: float) -> None:
    found = evaluation(failed)
    kept = sum(not (a > 1.0 or b > 0.1) for a, b in zip(found.ttft_s, found.tpot_s, strict=True)) / found.ttft_s.size
    good = round(kept * (1.0 - failed), 6)
    assert (
        found.of_limit(quantile_of(round(good - 0.002, 6))) <= 1.0 < found.of_limit(quantile_of(round(good + 0.002, 6)))
    )


def test_more_failures_than_may_be_late_leave_no_goodput() -> None:
    assert math.isinf(evaluation(failed=0.06).of_limit(quantile_of(0.95)))
    assert evaluation(failed=0.06).of_limit(declared_limits({"e2e_p50": "9s"})[0]) < 1.0


def test_the_root_of_the_model_lies_below_those_of_each_limit_alone() -> None:
    profile = profiles.load("fast")
    n = np.arange(600.0)
    model = ServerModel(0.012 + 0.0002 * n, 2e-5)
    traffic = traffic_for(profile.workload)
    declared = {"goodput": "95%", "ttft": "60ms", "tpot": "20ms"}
    (both,) = declared_limits(declared)
    roots = {
        each.metric: sustainable(model, traffic, declared_limits({f"{each.metric}_p95": each.limit_s}), 10.0).rate_rps
        for each in both.thresholds
    }
    found = sustainable(model, traffic, (both,), 10.0)
    assert found.binding == "goodput_95"
    assert found.rate_rps < min(roots.values()) * 1.0005
    at = evaluate(model, traffic, found.rate_rps, thorough=True)
    share = float(((at.ttft_s <= 0.06) & ~(at.tpot_s > 0.02)).mean())
    assert share == pytest.approx(0.95, abs=0.01)


@cache
def checked(joint: bool, ratio: float = 1.0) -> Any:
    declared = TOGETHER if joint else ALONE
    return check(SimRunner(LONG.engine, 3), requirement(BETWEEN_RPS / ratio, declared), SETTINGS)


def test_a_server_that_keeps_each_limit_alone_may_fail_them_together() -> None:
    alone = checked(joint=False)
    assert alone.outcome is Outcome.PASS, alone.reason
    together = checked(joint=True)
    assert together.outcome is Outcome.FAIL, together.reason
    assert together.measurement.binding == "goodput_95"
    assert "bound by goodput_95" in together.reason
    assert together.measurement.sustainable_rate.high < BETWEEN_RPS < alone.measurement.sustainable_rate.value
    windows = [each for each in together.measurement.samples if each.window.phase is Phase.DESIGN_RATE]
    assert all(each.attainment["goodput_95"] == each.goodput for each in windows)
    assert 0.5 < np.mean([each.goodput for each in windows]) < 0.95


def test_each_limit_alone_keeps_its_percentile_in_long_runs_and_both_together_do_not() -> None:
    ratios = {
        name: long_run(LONG.engine, LONG.workload, slo(declared), BETWEEN_RPS, 2)[name]
        for name, declared in (("goodput_95", TOGETHER), ("ttft_p95", ALONE), ("e2e_p95", ALONE))
    }
    assert max(ratios["ttft_p95"], ratios["e2e_p95"]) < 1.0 < ratios["goodput_95"]


def test_measure_and_sample_know_the_limit() -> None:
    found = measure(SimRunner(LONG.engine, 5), requirement(BETWEEN_RPS, TOGETHER), SETTINGS)
    assert found.binding == "goodput_95"
    assert found.sustainable_rate is not None
    seen = sample(SimRunner(LONG.engine, 5), requirement(1.0, TOGETHER), SETTINGS, rate_rps=2.0, duration_s=20.0)
    assert seen.goodput is not None
    assert seen.goodput > 0.99


def test_one_request_alone_that_breaks_them_says_how_many_keep_them() -> None:
    declared = {"goodput": "95%", "ttft": "1s", "tpot": "1ms"}
    verdict = check(SimRunner(LONG.engine, 1), requirement(2.0, declared), SETTINGS)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason.startswith("of requests that run alone, 0.0% keep all of TTFT 1 s, TPOT 1 ms; 95% must")
    assert "no number of GPUs helps" in verdict.reason


def test_what_cannot_be_judged_without_a_pace() -> None:
    assert [limit.name for limit in unjudgeable(Slo((GOODPUT,)), NoPace.AT_ONCE)] == ["goodput_60"]
    assert not unjudgeable(slo(TOGETHER), NoPace.AT_ONCE)


def test_the_batch_to_be_measured_is_the_one_of_the_tightest_threshold() -> None:
    both = {"goodput": "95%", "ttft": "1s", "tpot": "30ms", "e2e": "30s"}
    alone = {"tpot_p95": "30ms", "e2e_p95": "30s"}
    counts = {critical_concurrency(requirement(10.0, each), SETTINGS, 10.0) for each in (both, alone)}
    assert len(counts) == 1


def test_a_fleet_is_judged_by_the_goodput_of_all_its_replicas() -> None:
    fleet = replace(requirement(12.0, TOGETHER), gpus=2, fleet=2)
    verdict = check(FleetSimRunner([LONG.engine] * 2, "least_outstanding", 4), fleet, SETTINGS)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    windows = [each for each in verdict.measurement.samples if each.window.phase is Phase.DESIGN_RATE]
    shares = [each.goodput for each in windows if each.goodput is not None]
    assert len(shares) == len(windows) > 0
    # Requests that the holds before left behind end in the first of them.
    assert max(shares) > 0.95


def test_stops_that_holds_seem_to_have_fail_no_server_for_late_first_tokens() -> None:
    """With these seeds the holds alone have the 95th percentile of TTFT far beyond its threshold at any rate."""
    mixed = profiles.load("mixed")
    declared = declared_limits({"goodput": "95%", "ttft": "180ms", "tpot": "61ms"})
    wanted = Requirement("x", Fraction(3.29), 1, Fraction(1), 1, mixed.workload, Slo(declared))
    engine = mixed.engine
    settings = Settings(600.0, 4_600_023, engine.max_num_seqs, engine.kv_tokens, engine.max_num_batched_tokens)
    verdict = check(SimRunner(engine, 4_610_023), wanted, settings)
    assert verdict.outcome is not Outcome.FAIL, verdict.reason
    assert any(each.window.phase is Phase.DESIGN_RATE for each in verdict.measurement.samples)
