"""A server whose step times are a staircase, of which the batches measured leave several possible."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.bins import STAIRS, Bins, padded
from pytest_gpucap.estimate.queue_model import ServerModel
from pytest_gpucap.estimate.step_time import Speed, fit
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.measure.staircase import larger_batch, rival_shifts
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner

WORKLOAD = Workload(Length.parse("uniform:59-237", "input_tokens"), Length.parse("uniform:41-163", "output_tokens"))
SLO = Slo((LatencyLimit.parse("ttft_p95", "78.2ms"), LatencyLimit.parse("tpot_p95", "10.4ms")))
TRAFFIC = traffic_for(WORKLOAD)


def measured(most: float, stair: int = 16, least: float = 14.0) -> Speed:
    """The curve of a server with graphs of multiples of `stair`, from batches of `least` to `most` requests."""
    n = np.linspace(least, most, 80)
    noise = 1 + 0.003 * np.random.default_rng(3).standard_normal(n.size)
    step_s = (0.0052 + 1.165e-4 * padded(n, stair)) * noise
    width = np.ones(n.size)
    sizes = np.column_stack([padded(n, each) for each in STAIRS])
    none = np.zeros(n.size)
    return fit(Bins(width, n, n / step_s, none, none, 150.0 * n, sizes))


def model_of(speed: Speed) -> ServerModel:
    return ServerModel(speed.table(256), speed.prefill_s, 256)


def test_batches_that_do_not_tell_staircases_apart_leave_rivals() -> None:
    """Up to 32 requests, graphs of 16 and of 32 are the same; the next batch takes 48 or 64."""
    speed = measured(31.0)
    (chance, rival), *_ = speed.rivals
    assert {speed.stair, rival.stair} == {16, 32}
    assert 0.0 < chance <= 1.0
    higher, lower = sorted((speed, rival), key=lambda each: each.stair)
    assert lower.at(np.array([40.0]))[0] > 1.1 * higher.at(np.array([40.0]))[0]


def test_a_larger_batch_tells_them_apart() -> None:
    speed = measured(40.0)
    assert speed.stair == 16
    assert not speed.rivals


def test_a_smooth_curve_has_no_rivals() -> None:
    assert not measured(31.0, stair=1).rivals


def test_a_flat_curve_may_be_one_step_of_a_staircase() -> None:
    """From 17 to 31 requests a graph of 32 takes them all; the next batch takes 64."""
    speed = measured(31.0, stair=32, least=17.0)
    ((chance, rival),) = speed.rivals
    assert (speed.stair, rival.stair) == (0, 32)
    assert 0.3 < chance <= 1.0
    inside, beyond = np.array([25.0]), np.array([40.0])
    assert rival.at(inside) == pytest.approx(speed.at(inside), rel=0.01)
    assert rival.at(beyond)[0] > 1.2 * speed.at(beyond)[0]


@pytest.mark.parametrize(
    ("stair", "least", "most"),
    [(1, 17.0, 31.0), (32, 17.0, 40.0), (32, 5.0, 7.5)],
    ids=["times that rise", "two steps", "few requests"],
)
def test_a_step_is_no_rival_where_it_would_have_been_seen(stair: int, least: float, most: float) -> None:
    speed = measured(most, stair, least)
    assert speed.stair or not speed.rivals


def fitted(n: Floats, stair: int) -> Speed:
    """As `measured`, of a slower engine, from batches of `n` requests."""
    noise = 1 + 0.02 * np.random.default_rng(3).standard_normal(n.size)
    step_s = (0.0099 + 9.5e-5 * padded(n, stair)) * noise
    sizes = np.column_stack([padded(n, each) for each in STAIRS])
    none = np.zeros(n.size)
    return fit(Bins(np.full(n.size, 0.4), n, 0.4 * n / step_s, none, none, 150.0 * n, sizes))


GAP = np.concatenate([np.linspace(35.0, 60.0, 60), np.full(10, 124.0)])
"""Batches on one step of a staircase of 32, and a few on the next but one: nobody looked where the time rises."""


def test_a_curve_that_bends_where_nobody_looked_may_be_a_staircase() -> None:
    speed = fitted(GAP, 32)
    ((chance, rival),) = speed.rivals
    assert (speed.stair, rival.stair) == (0, 32)
    assert 0.02 < chance < 1.0
    between = np.array([70.0])
    assert rival.at(between)[0] > 1.1 * speed.at(between)[0]


@pytest.mark.parametrize(
    "n", [GAP, np.linspace(35.0, 124.0, 70), np.linspace(20.0, 60.0, 60)], ids=["gap", "all", "few"]
)
def test_a_smooth_curve_is_not_taken_for_a_staircase(n: Floats) -> None:
    speed = fitted(n, 1)
    assert (speed.stair, speed.rivals) == (0, ())


def test_rivals_have_other_rates() -> None:
    speed = measured(31.0)
    (first, none), *others = rival_shifts(speed, model_of(speed), TRAFFIC, SLO.limits, 24.0)
    assert none == 0.0
    assert first + sum(chance for chance, _ in others) == pytest.approx(1.0)
    assert max(abs(shift) for _, shift in others) > 0.005
    alone = replace(speed, rivals=())
    assert rival_shifts(alone, model_of(speed), TRAFFIC, SLO.limits, 24.0) == ((1.0, 0.0),)


def test_the_larger_batch_fits_the_server() -> None:
    assert larger_batch(Settings(), TRAFFIC, 32.0, 31) == 40
    assert larger_batch(Settings(max_num_seqs=36), TRAFFIC, 32.0, 31) == 36
    assert larger_batch(Settings(kv_tokens=10 * round(TRAFFIC.mean_context)), TRAFFIC, 32.0, 31) < 10


def test_a_staircase_of_a_batch_that_was_not_measured_does_not_fail_the_server() -> None:
    """It sustains 2% more. With graphs of 32, which the first batches leave possible, it would sustain 8% less."""
    engine = EngineModel(
        base_s=0.005198, per_seq_s=1.165e-4, per_kv_token_s=2.848e-8, per_prompt_token_s=7.103e-6, noise=0.02652,
        drift_sd=0.00896, drift_tau_s=91.13, stall_per_s=0.00679, stall_s=0.2743, warm_tau_s=3.88,
        max_num_batched_tokens=4096, kv_tokens=418_206, graph_step=16,
    )  # fmt: skip
    seed = 91_000_004
    settings = Settings(60.0, seed, engine.max_num_seqs, engine.kv_tokens, engine.max_num_batched_tokens)
    requirement = Requirement("x", Fraction(24.129 / 1.02), 1, Fraction(1), 1, WORKLOAD, SLO)
    verdict = check(SimRunner(engine, seed), requirement, settings)
    assert verdict.outcome is not Outcome.FAIL, verdict.reason
    rate = verdict.measurement.sustainable_rate
    assert rate is not None
    assert rate.low < 24.129 < rate.high
    held = [s.window.concurrency or 0 for s in verdict.measurement.samples if s.window.phase is Phase.RAMP]
    assert max(held) > 32


def test_a_server_does_not_pass_on_the_one_step_that_was_measured() -> None:
    """It sustains 5% too little. Batches of 17 to 32 take one time, which as a flat curve promises 40% more."""
    engine = EngineModel(
        base_s=0.00714, per_seq_s=2.858e-4, per_kv_token_s=1.607e-8, per_prompt_token_s=1.558e-5, noise=0.06007,
        drift_sd=0.006733, drift_tau_s=135.6, stall_per_s=0.01156, stall_s=0.271, warm_tau_s=2.67,
        max_num_batched_tokens=8192, kv_tokens=418_997, graph_step=32,
    )  # fmt: skip
    workload = Workload(
        Length.parse("uniform:215-859", "input_tokens"), Length.parse("uniform:84-334", "output_tokens")
    )
    slo = Slo((LatencyLimit.parse("ttft_p95", "114ms"), LatencyLimit.parse("tpot_p95", "19.8ms")))
    requirement = Requirement("x", Fraction(5.6715 / 0.95), 1, Fraction(1), 1, workload, slo)
    settings = Settings(60.0, 9_100_004, engine.max_num_seqs, engine.kv_tokens, engine.max_num_batched_tokens)
    verdict = check(SimRunner(engine, 9_110_004), requirement, settings)
    assert verdict.outcome is Outcome.FAIL, verdict.reason
    held = [s.window.concurrency or 0 for s in verdict.measurement.samples if s.window.phase is Phase.RAMP]
    assert max(held) > 32
