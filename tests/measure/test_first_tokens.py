"""First tokens of a server against those of the queue model, where goodput counts them."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from pytest_gpucap.estimate.queue_model import Calibration, ServerModel, evaluate
from pytest_gpucap.estimate.step_time import Speed
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load import schedule
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import server_seen
from pytest_gpucap.measure.first_tokens import UNKNOWN, FirstTokens, _departing, first_tokens
from pytest_gpucap.measure.reconciling import reconciled
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import GoodputLimit, Requirement, Slo, declared_limits
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

BURSTY = profiles.load("bursty")
TRUE_RPS = 13.739
"""Of `bursty` under this goodput, from long runs (`benchmarks/verdict/goodput.toml`)."""
TOGETHER = {"goodput": "95%", "ttft": "100ms", "tpot": "30ms"}


def goodput(declared: dict[str, str]) -> GoodputLimit:
    found = Slo(declared_limits(declared)).goodput
    assert found is not None
    return found


@cache
def driven() -> tuple[MeasuringRun, tuple[Window, ...], Speed, ServerModel]:
    """A hold and three open loops at the true rate."""
    requirement = Requirement(
        "x", Fraction(TRUE_RPS), 1, Fraction(1), 1, BURSTY.workload, Slo(declared_limits(TOGETHER))
    )
    engine = BURSTY.engine
    settings = Settings(
        seed=5,
        max_num_seqs=engine.max_num_seqs,
        kv_tokens=engine.kv_tokens,
        max_num_batched_tokens=engine.max_num_batched_tokens,
    )
    run = MeasuringRun(SimRunner(engine, 5), requirement, settings, SilentObserver())
    windows = [run.hold(WindowId(Phase.HOLD, 1), 60, c.HOLD_S, discard_s=c.WARM_UP_S)]
    windows += [run.open_loop(WindowId(Phase.OPEN_LOOP, i), TRUE_RPS, c.OPEN_S, overload=400) for i in (1, 2, 3)]
    return run, tuple(windows), *server_seen(run, windows)


def test_they_come_later_than_modelled_and_by_how_much_is_seen() -> None:
    run, windows, speed, model = driven()
    spans = [(windows[1].start_s, windows[-1].end_s)]
    found = first_tokens(run.journal, spans, model, speed, goodput(TOGETHER))
    # In long runs it is 0.2.
    assert 0.2 - 4 * found.error < found.log_factor < 0.2 + 4 * found.error
    assert 0.0 < found.error < 0.05


def test_without_a_threshold_on_them_or_an_open_loop_nothing_departs() -> None:
    run, windows, speed, model = driven()
    spans = [(windows[1].start_s, windows[-1].end_s)]
    late_tokens = {"goodput": "95%", "tpot": "30ms", "e2e": "13s"}
    assert first_tokens(run.journal, spans, model, speed, goodput(late_tokens)) == FirstTokens()
    assert first_tokens(run.journal, [], model, speed, goodput(TOGETHER)) == UNKNOWN


def test_the_estimate_under_goodput_has_them_in_it() -> None:
    run, windows, _, _ = driven()
    found = reconciled(run, list(windows), None)
    assert found.model.calibration.first_token_factor > 1.1
    assert found.rate.low < TRUE_RPS < found.rate.high
    assert math.log(found.rate.value / TRUE_RPS) == pytest.approx(0.0, abs=0.06)
    traffic = traffic_for(BURSTY.workload)
    without = replace(found.model, calibration=Calibration())
    here, other = (evaluate(model, traffic, TRUE_RPS) for model in (found.model, without))
    limit = goodput(TOGETHER)
    assert here.of_limit(limit) > 1.02 * other.of_limit(limit)
    # A percentile beside it is the model's own.
    (percentile,) = declared_limits({"ttft_p95": "100ms"})
    assert here.of_limit(percentile) == other.of_limit(percentile)


def test_the_slower_ones_depart_by_one_factor() -> None:
    """The simulated engine steps, and its steps hold prompts; the queue model has no steps."""
    engine, traffic = BURSTY.engine.settled(), traffic_for(BURSTY.workload)
    runner = SimRunner(engine, 3)
    begun = schedule.open_loop(BURSTY.workload, TRUE_RPS, 60.0, 3, 0)
    runner.run(begun)
    span = runner.run(schedule.open_loop(BURSTY.workload, TRUE_RPS, 2000.0, 3, 1, begun.prompts))
    seen_s = runner.journal().ttft_s[span.first_row : span.end_row]
    n = np.arange(2049.0)
    model = ServerModel(
        engine.base_s + engine.per_seq_s * n + engine.per_kv_token_s * traffic.mean_context * n,
        engine.per_prompt_token_s,
        engine.max_num_seqs,
        float(engine.kv_tokens),
        engine.drift_sd,
        engine.stall_per_s,
        (engine.stall_s,),
        kv_token_s=engine.per_kv_token_s,
        mean_context=traffic.mean_context,
        step_tokens=float(engine.max_num_batched_tokens),
    )
    modelled_s = evaluate(model, traffic, TRUE_RPS, thorough=True).ttft_s
    levels = 1.0 - 0.05 * np.array(c.FIRST_TOKEN_TAILS)
    factors = np.log(np.nanquantile(seen_s, levels) / np.nanquantile(modelled_s, levels))
    assert factors.min() > 0.1
    assert np.ptp(factors) < 0.04


def departing(factor: float, n: int, noise: float = 0.3) -> FirstTokens:
    random = np.random.default_rng(7)
    due_s = np.cumsum(random.exponential(0.07, n))
    modelled_s = random.lognormal(-3.0, 0.4, n)
    seen_s = factor * modelled_s * random.lognormal(0.0, noise, n) * math.exp(-(noise**2))
    return _departing(due_s, np.arange(float(n)), seen_s, modelled_s, 0.95)


def test_a_factor_is_found_with_its_error() -> None:
    exact = departing(1.25, 500, noise=0.0)
    assert exact.log_factor == pytest.approx(math.log(1.25))
    assert exact.error < 1e-9
    noisy, long = departing(1.25, 500), departing(1.25, 8000)
    assert 0.0 < long.error < noisy.error


def test_of_few_requests_nothing_is_known_and_a_large_factor_is_no_departure_of_theirs() -> None:
    assert departing(1.2, 20) == UNKNOWN
    assert departing(4.0, 500) == FirstTokens()
