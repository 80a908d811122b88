"""The queue simulation, against laws that are known without it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.estimate import queue_model, sustainable_rate
from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load import schedule
from pytest_gpucap.requirement import LatencyLimit, Length, Workload
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner

WORKLOAD = Workload(Length.fixed(1), Length.parse("uniform:50-150", "output"))


def processor_sharing(capacity: float) -> ServerModel:
    """An engine that makes `capacity` tokens a second whatever the batch: M/G/1 processor sharing."""
    return ServerModel(np.maximum(1.0, np.arange(1001.0)) / capacity, 0.0)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_mean_sojourn_of_processor_sharing(load: Any) -> None:
    """Kleinrock 1976: E[T | x] = x / (1 - load), whatever the distribution of x."""
    traffic = traffic_for(WORKLOAD)
    capacity = 1000.0
    rate = load * capacity / traffic.mean_output
    found = queue_model.evaluate(processor_sharing(capacity), traffic, rate)
    # Half a step is lost on average where a request meets a batch under way.
    step = load / (1 - load) / capacity
    expected = traffic.mean_output / capacity / (1 - load) + step / 2
    assert found.e2e_s.mean() == pytest.approx(expected, rel=0.04)


def test_starts_follow_the_stationary_law() -> None:
    traffic = traffic_for(WORKLOAD)
    levels, queued = queue_model.starting_levels(
        processor_sharing(1000.0), traffic, 0.5 * 1000 / traffic.mean_output, 4000
    )
    # Geometric with ratio 0.5.
    assert not queued
    assert (levels == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert levels.mean() == pytest.approx(1.0, abs=0.03)


def test_without_limits_the_bound_is_saturation() -> None:
    model = replace(processor_sharing(1000.0), max_seqs=16)
    found = sustainable_rate.sustainable(model, traffic_for(WORKLOAD), (), 1.0)
    assert found.binding == "backlog"
    assert found.rate_rps == pytest.approx(1000 / traffic_for(WORKLOAD).mean_output, rel=1e-3)


def test_the_rate_falls_as_the_engine_slows_by_its_elasticity() -> None:
    traffic = traffic_for(WORKLOAD)
    n = np.arange(1001.0)
    limits = (LatencyLimit.parse("e2e_p95", "1.5s"),)
    fast, slow = (
        sustainable_rate.sustainable(ServerModel((0.003 + 1e-4 * n) * f, 0.0), traffic, limits, 20.0)
        for f in (1.0, 1.03)
    )
    assert fast.binding == "e2e_p95"
    drop = math.log(fast.rate_rps / slow.rate_rps) / math.log(1.03)
    assert drop == pytest.approx(fast.elasticity, rel=0.35)


def test_kv_tokens_beyond_the_curve_s_own_cost_time() -> None:
    traffic = traffic_for(WORKLOAD)
    context = traffic.mean_context
    limits = (LatencyLimit.parse("e2e_p95", "1.5s"),)
    curve = ServerModel(0.003 + (5e-5 + 1e-6 * context) * np.arange(1001.0), 0.0)
    models = [curve, *(replace(curve, kv_token_s=1e-6, mean_context=m * context) for m in (1.0, 0.8, 1.2))]
    plain, same, heavier, lighter = (sustainable_rate.sustainable(m, traffic, limits, 20.0).rate_rps for m in models)
    # Requests as heavy as the curve's change nothing but how evenly the batch runs.
    assert same == pytest.approx(plain, rel=0.03)
    assert heavier < 0.98 * same
    assert lighter > 1.02 * same


def test_an_examined_slope_predicts_what_a_slower_engine_costs() -> None:
    traffic = traffic_for(WORKLOAD)
    n = np.arange(1001.0)
    limits = (LatencyLimit.parse("e2e_p95", "1.5s"),)
    models = [ServerModel((0.003 + 1e-4 * n) * f, 0.0) for f in (0.97, 1.0, 1.03)]
    found = [sustainable_rate.sustainable(model, traffic, limits, 20.0) for model in models]
    looks = [sustainable_rate.examine(f, model, traffic, limits) for f, model in zip(found, models, strict=True)]
    fast, _, slow = (math.log(f.rate_rps) + look.correction for f, look in zip(found, looks, strict=True))
    # Times longer by d move the root by d (1 + 1 / slope).
    assert (fast - slow) / math.log(1.03 / 0.97) == pytest.approx(1 + 1 / looks[1].slope, rel=0.15)
    assert abs(looks[1].correction) < 0.03


def test_a_request_decodes_from_its_second_token_on() -> None:
    """Against the simulated engine, step by step: with short answers, two steps more a request would be seen."""
    workload = Workload(Length.fixed(300), Length.fixed(16))
    engine = EngineModel(
        base_s=0.002, per_seq_s=0.0005, per_prompt_token_s=0.00001, noise=0.0, drift_sd=0.0, stall_per_s=0.0,
        warm_extra=0.0,
    )  # fmt: skip
    rate = 65.0
    runner = SimRunner(engine, 1)
    runner.run(schedule.open_loop(workload, rate, 20.0, 5, 0))
    span = runner.run(schedule.open_loop(workload, rate, 400.0, 5, 1))
    runner.settle(60.0)
    observed = runner.journal().e2e_s[span.first_row : span.end_row].mean()
    n = np.maximum(1.0, np.arange(257.0))
    model = ServerModel(engine.base_s + engine.per_seq_s * n, engine.per_prompt_token_s, max_seqs=256)
    found = queue_model.evaluate(model, traffic_for(workload), rate, thorough=True)
    assert found.e2e_s.mean() == pytest.approx(observed, rel=0.04)


def test_a_limit_that_nothing_can_keep_gives_next_to_no_rate() -> None:
    limits = (LatencyLimit.parse("e2e_p95", "10ms"),)
    model, traffic = processor_sharing(1000.0), traffic_for(WORKLOAD)
    found = sustainable_rate.sustainable(model, traffic, limits, 5.0)
    assert found.rate_rps == pytest.approx(sustainable_rate.alone_rps(model, traffic))
    assert found.rate_rps < 0.2


def test_a_full_kv_cache_makes_requests_wait() -> None:
    traffic = traffic_for(WORKLOAD)
    n = np.arange(1001.0)
    roomy = ServerModel(0.01 + 1e-5 * n, 0.0)
    tight = replace(roomy, kv_tokens=2000.0)
    limits = (LatencyLimit.parse("ttft_p95", "200ms"),)
    rates = [sustainable_rate.sustainable(model, traffic, limits, 10.0).rate_rps for model in (tight, roomy)]
    assert rates[0] < 0.6 * rates[1]


def test_stops_that_come_more_often_leave_the_engine_some_time() -> None:
    """It stood still for 60% of the time that was seen; three times as often would be more than all of it."""
    model = replace(processor_sharing(1000.0), stall_per_s=1.0, stall_s=(0.6,))
    traffic = traffic_for(WORKLOAD)
    seen, twice, thrice = (queue_model.saturation_rps(model.stopping(f), traffic) for f in (1.0, 1.4, 3.0))
    assert seen == pytest.approx(queue_model.saturation_rps(model, traffic))
    assert seen > twice > thrice > 0.0
