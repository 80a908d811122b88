"""A front end that holds showed to fall behind, and a cache that is not full yet."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner

WORKLOAD = Workload(Length.fixed(259), Length.fixed(316))
SLO = Slo((LatencyLimit.parse("ttft_p95", "90ms"), LatencyLimit.parse("tpot_p95", "25ms")))


def engine(**more: Any) -> EngineModel:
    return EngineModel(
        base_s=0.010, per_seq_s=3.6e-5, per_kv_token_s=2e-8, per_prompt_token_s=1.3e-5, noise=0.07,
        max_num_batched_tokens=4096, kv_tokens=430_957, **more,
    )  # fmt: skip


def checked(server: EngineModel, rate_rps: int, seed: int) -> Any:
    settings = Settings(
        max_time_s=300, seed=seed, max_num_seqs=server.max_num_seqs, kv_tokens=server.kv_tokens,
        max_num_batched_tokens=server.max_num_batched_tokens,
    )  # fmt: skip
    return check(
        SimRunner(server, seed), Requirement("x", Fraction(rate_rps), 1, Fraction(1), 1, WORKLOAD, SLO), settings
    )


def test_a_front_end_that_fell_behind_in_a_hold_is_not_forgotten() -> None:
    """It sends some 17 requests a second and its queue is seldom seen at 16.8, while the GPU would carry 29."""
    front = engine(front_token_s=1.53e-4, front_request_s=7.6e-4, front_loss=1.5, front_backlog_s=5.0)
    verdict = checked(front, 18, 2)
    assert verdict.outcome is not Outcome.PASS
    if verdict.outcome is Outcome.INCONCLUSIVE:
        rate = verdict.measurement.sustainable_rate
        assert rate.low < 17 < rate.high < 25
        assert verdict.measurement.binding == "ttft_p95", verdict.reason


def test_without_a_front_end_the_same_server_carries_more() -> None:
    assert checked(engine(), 22, 1).outcome is Outcome.PASS


def test_a_cache_that_still_fills_does_not_fail() -> None:
    """Its holds are a third slower than the server that will be used."""
    workload = Workload(Length.fixed(1500), Length.fixed(120))
    cache = EngineModel(
        base_s=0.010, per_seq_s=6e-5, per_prompt_token_s=3e-5, noise=0.04, kv_tokens=600_000, prefix_share=0.7,
        prefix_warm_s=25.0,
    )  # fmt: skip
    slo = Slo((LatencyLimit.parse("e2e_p95", "6s"),))
    settings = Settings(max_time_s=300, seed=2, max_num_seqs=cache.max_num_seqs, kv_tokens=cache.kv_tokens)
    wanted = Requirement("x", Fraction(26), 1, Fraction(1), 1, workload, slo)
    assert check(SimRunner(cache, 2), wanted, settings).outcome is not Outcome.FAIL
