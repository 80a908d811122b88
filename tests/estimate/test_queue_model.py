"""The queue simulation, against laws that are known without it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_gpucap.estimate import queue_model, sustainable_rate
from pytest_gpucap.estimate.bins import padded
from pytest_gpucap.estimate.queue_model import ServerModel, server_of
from pytest_gpucap.estimate.queue_simulation import QueueArrivals, QueueLatencies, QueueStart, simulate
from pytest_gpucap.estimate.traffic import Traffic, traffic_for
from pytest_gpucap.load import schedule
from pytest_gpucap.requirement import LatencyLimit, Length, Workload
from pytest_gpucap.simulator import profile as profiles
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


DRAWN = Path(__file__).parents[2] / "benchmarks" / "verdict" / "servers"


def model_of(engine: EngineModel, traffic: Traffic) -> ServerModel:
    """The queue model with the constants of a simulated engine, as if a fit had found them."""
    n = np.maximum(1.0, np.arange(1025.0))
    batch = padded(n, engine.graph_step) if engine.graph_step else n
    growth_s = engine.per_prompt_context_s / 2
    return ServerModel(
        engine.base_s + engine.per_seq_s * batch + engine.per_kv_token_s * traffic.mean_context * n,
        engine.per_prompt_token_s + growth_s * traffic.even_prompt,
        max_seqs=engine.max_num_seqs,
        kv_tokens=float(engine.kv_tokens),
        drift_sd=engine.drift_sd,
        stall_per_s=engine.stall_per_s,
        stall_s=(engine.stall_s,),
        kv_token_s=engine.per_kv_token_s,
        mean_context=traffic.mean_context,
        prefill_growth_s=growth_s,
        even_prompt=traffic.even_prompt,
        step_tokens=float(engine.max_num_batched_tokens),
    )


@pytest.mark.parametrize("name", ["calm", "tails", "staircase", "long", "tiny"])
def test_with_a_servers_own_constants_the_model_has_its_true_rate(name: Any) -> None:
    """What is left is the model's own error; the truth is from the simulated engine, step by step."""
    drawn = profiles.load(DRAWN / f"seen-{name}.toml")
    traffic = traffic_for(drawn.workload)
    model = model_of(drawn.engine, traffic)
    found = sustainable_rate.sustainable(model, traffic, drawn.slo.limits, drawn.true_rate_rps)
    more = sustainable_rate.examine(found, model, traffic, drawn.slo.limits).correction
    assert found.rate_rps * math.exp(more) == pytest.approx(drawn.true_rate_rps, rel=0.02)


def test_held_tokens_do_not_add_up_over_a_long_replay() -> None:
    """Requests alike, evenly spaced: the thousandth is served like the hundredth, though held tokens cost time."""
    count = 4000
    model = ServerModel(np.full(101, 0.01), 1e-5, kv_token_s=2e-6, mean_context=110.0)
    arrivals = QueueArrivals(
        np.linspace(0.0, 0.02 * (count - 1), count), np.full(count, 100), np.full(count, 20), np.zeros(count, np.int64)
    )
    found = QueueLatencies(np.full(count, np.nan), np.full(count, np.nan), np.zeros(count))
    nobody = QueueStart(np.zeros(0, np.int64), np.zeros(0, np.int64))
    simulate(server_of(model), 1.0, 0.0, arrivals, nobody, (0, count), found, np.zeros(0), 1e9)
    early, late = found.e2e_s[100:600].mean(), found.e2e_s[-600:-100].mean()
    assert late == pytest.approx(early, rel=1e-3)


def test_a_prompt_that_comes_before_a_step_begins_delays_its_first_tokens() -> None:
    """Three prompts of 600 tokens at once, in steps of 1,000: the second ends in the second step, with the third."""
    model = ServerModel(np.full(101, 1e-6), 1e-3, step_tokens=1000.0)
    arrivals = QueueArrivals(np.array([0.0, 1e-4, 2e-4]), np.full(3, 600), np.full(3, 50), np.zeros(3, np.int64))
    found = QueueLatencies(np.full(3, np.nan), np.full(3, np.nan), np.zeros(3))
    nobody = QueueStart(np.zeros(0, np.int64), np.zeros(0, np.int64))
    simulate(server_of(model), 1.0, 0.0, arrivals, nobody, (0, 3), found, np.zeros(0), 1e9)
    assert found.ttft_s == pytest.approx([0.6, 1.6, 1.8], abs=0.05)


def test_a_request_that_is_preempted_before_its_first_token_has_no_more_to_go_than_it_had() -> None:
    """One that is all but cached waits for a long prompt: else less than nothing of it is left to prefill."""
    model = ServerModel(np.full(101, 0.01), 1e-5, kv_tokens=7040.0, step_tokens=100.0)
    arrivals = QueueArrivals(np.array([0.0, 1e-3]), np.array([6000, 20]), np.full(2, 50), np.array([0, 19]))
    found = QueueLatencies(np.full(2, np.nan), np.full(2, np.nan), np.zeros(2))
    running = QueueStart(np.full(10, 100), np.full(10, 90))
    simulate(server_of(model), 1.0, 0.0, arrivals, running, (0, 2), found, np.zeros(0), 1e9)
    # The last 49 tokens come with a step each, and the first one of both after the long prompt was prefilled again.
    assert found.e2e_s - found.ttft_s == pytest.approx([0.49, 0.49], abs=0.02)
    assert found.ttft_s[0] > 1.5
