"""Answers without tokens: a direct run decides, and a busy period is no overload."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest

from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import ApiKind, Length, Requirement, Slo, Workload, declared_limits
from pytest_gpucap.results.measured import Outcome, Verdict
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner

ENGINE = EngineModel(base_s=0.002508, per_seq_s=1.986e-05, per_prompt_token_s=1.782e-05, noise=0.04884)
WORKLOAD = Workload(Length.parse("uniform:114-455", "input_tokens"), Length.fixed(1), endpoint=ApiKind.POOLING)
LIMIT = {"e2e_p90": "38.5ms"}
TRUE_RPS = 123.8
"""Where long runs show the 90th percentile at about 38 ms."""


def requirement(qps: float) -> Requirement:
    return Requirement("x", Fraction(qps), 1, Fraction(1), 1, WORKLOAD, Slo(declared_limits(LIMIT)))


@cache
def checked(ratio: float, seed: int, max_time_s: float = 600.0) -> Verdict:
    settings = Settings(max_time_s, seed, ENGINE.max_num_seqs, ENGINE.kv_tokens, ENGINE.max_num_batched_tokens)
    return check(SimRunner(ENGINE, seed), requirement(TRUE_RPS / ratio), settings)


def direct_s(verdict: Verdict) -> float:
    """Seconds of direct runs."""
    samples = [each for each in verdict.measurement.samples if each.window.phase is Phase.DIRECT]
    return sum(each.end_s - each.start_s for each in samples)


@pytest.mark.parametrize("ratio", [1.1, 1.15])
@pytest.mark.parametrize("seed", range(3))
def test_a_busy_period_of_a_server_that_keeps_its_limit_does_not_fail_it(ratio: float, seed: int) -> None:
    verdict = checked(ratio, seed)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert verdict.measurement.at_least_rps == pytest.approx(TRUE_RPS / ratio)


def test_a_server_that_is_much_too_slow_is_called_off() -> None:
    verdict = checked(0.5, 1)
    assert verdict.outcome is Outcome.FAIL
    assert "overloaded the server" in verdict.reason
    assert direct_s(verdict) < c.DIRECT_LEAST_S / 2


def test_what_does_not_separate_goes_on_and_is_judged_as_a_whole() -> None:
    verdicts = [checked(1.0, seed) for seed in range(4)]
    further = [each for each in verdicts if any(s.window.cycle == 2 for s in each.measurement.samples)]
    assert further
    for verdict in further:
        assert direct_s(verdict) > c.DIRECT_LEAST_S
        if verdict.outcome is Outcome.INCONCLUSIVE:
            assert direct_s(verdict) == pytest.approx(c.DIRECT_S, abs=1.0)
            assert verdict.more_time is not None
            assert verdict.more_time.seconds is None


def test_more_time_is_advised_where_it_ended_before_the_whole_run() -> None:
    seed = next(s for s in range(4) if any(w.window.cycle == 2 for w in checked(1.0, s).measurement.samples))
    verdict = checked(1.0, seed, max_time_s=90.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.more_time is not None
    assert "would complete the direct run" in verdict.more_time.text


def test_no_rate_is_estimated() -> None:
    found = measure(SimRunner(ENGINE, 1), requirement(TRUE_RPS), Settings())
    assert found.sustainable_rate is None
    assert "answers without tokens have no pace" in found.reason
