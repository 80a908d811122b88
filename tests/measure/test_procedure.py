"""The measuring procedure: endings, limits, books."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.measure.procedure import check, measure, sample, sweep
from pytest_gpucap.measure.run import CalledOff, MeasuringRun
from pytest_gpucap.measure.settings import Settings, SilentObserver
from pytest_gpucap.requirement import LatencyLimit, Requirement, Slo
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

FAST = profiles.load("fast")


def requirement(ratio: Any = 1.1, profile: Any = FAST, slo: Any = None) -> Any:
    rate = Fraction(profile.true_rate_rps / ratio)
    return Requirement("x", rate, 1, Fraction(1), 1, profile.workload, profile.slo if slo is None else slo)


def settings(profile: Any = FAST, **rest: Any) -> Any:
    return Settings(**{"max_num_seqs": profile.engine.max_num_seqs, "kv_tokens": profile.engine.kv_tokens, **rest})


def test_a_verdict_carries_its_arithmetic_and_samples() -> None:
    wanted = requirement()
    verdict: Any = check(SimRunner(FAST.engine, 1), wanted, settings())
    measurement = verdict.measurement
    assert verdict.outcome is Outcome.PASS
    assert verdict.gpus_required == 1
    assert verdict.slack.low < verdict.slack.value < verdict.slack.high
    assert measurement.simulated
    assert len(measurement.samples) >= 5
    assert measurement.binding == "e2e_p95"
    assert {"warm-up", "hold", "open loop"} <= set(measurement.spent_s)
    assert [s.start_s for s in measurement.samples] == sorted(s.start_s for s in measurement.samples)


def test_the_same_seed_gives_the_same_verdict() -> None:
    first, second = (check(SimRunner(FAST.engine, 3), requirement(), settings(seed=5)) for _ in range(2))
    assert first == second


def test_the_time_limit_ends_inconclusive() -> None:
    verdict = check(SimRunner(FAST.engine, 1), requirement(1.0), settings(max_time_s=20))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "time limit" in verdict.reason
    assert sum(verdict.measurement.spent_s.values()) <= 20.5


def test_a_disturbed_host_is_told_once_whatever_its_figures_are_in_other_windows() -> None:
    def trust(start_s: float, end_s: float) -> list[Problem]:
        kinds = (ProblemKind.OTHERS, ProblemKind.SLOWED_DOWN)
        return [Problem(ProblemSource.HOST, kind, f"{kind} from {start_s:g} to {end_s:g} s") for kind in kinds]

    run = MeasuringRun(SimRunner(FAST.engine, 1), requirement(), settings(trust=trust), SilentObserver())
    windows = [run.hold(WindowId(Phase.HOLD, cycle), 4, 4.0) for cycle in (1, 2)]
    assert [each.kind for each in run.problems] == [
        ProblemKind.OTHERS,
        ProblemKind.SLOWED_DOWN,
        ProblemKind.SLOWED_DOWN,
    ]
    # The window itself keeps its own.
    assert all(len(sample.problems) == 2 for window in windows for sample in window.samples)


def test_distrust_is_invalid_and_gives_no_rate() -> None:
    problem = Problem(ProblemSource.GPU, ProblemKind.SLOWED_DOWN, "clocks throttled")
    verdict = check(SimRunner(FAST.engine, 1), requirement(), settings(trust=lambda _start, _end: [problem]))
    assert verdict.outcome is Outcome.INVALID
    assert verdict.reason == "clocks throttled"
    assert verdict.measurement.sustainable_rate is None
    assert verdict.gpus_required is None


def test_a_server_that_ends_takes_the_fault_of_its_device_along() -> None:
    """A GPU that fails ends its server, whose end alone would not say why."""
    fault = Problem(ProblemSource.GPU, ProblemKind.XID, "XID 79")
    busy = Problem(ProblemSource.HOST, ProblemKind.OTHERS, "other processes")
    asked: list[tuple[float, float]] = []

    def trust(start_s: float, end_s: float) -> list[Problem]:
        asked.append((start_s, end_s))
        return [fault, busy]

    runner = SimRunner(FAST.engine, 1)
    begun_s = runner.clock.now()
    ended = settings(trust=trust, ended=lambda _: "it ended")
    run = MeasuringRun(runner, requirement(), ended, SilentObserver())
    with pytest.raises(CalledOff):
        run.hold(WindowId(Phase.HOLD, 1), 4, 4.0)
    assert [each.kind for each in run.problems] == [ProblemKind.ENDED, ProblemKind.XID]
    assert asked[0][0] >= begun_s
    run.settle()
    assert [each.kind for each in run.problems] == [ProblemKind.ENDED, ProblemKind.XID]


def test_load_that_cannot_be_produced_is_invalid() -> None:
    tiny = replace(FAST.engine, kv_tokens=300)
    verdict = check(SimRunner(tiny, 1), requirement(), settings())
    assert verdict.outcome is Outcome.INVALID
    assert "KV cache" in verdict.reason


def test_errors_beyond_the_limit_fail() -> None:
    verdict = check(SimRunner(FAST.engine, 1, error_rate=0.05), requirement(1.5), settings())
    assert verdict.outcome is Outcome.FAIL
    assert "requests failed" in verdict.reason


def test_errors_within_the_limit_do_not() -> None:
    verdict = check(SimRunner(FAST.engine, 1, error_rate=0.002), requirement(1.5), settings())
    assert verdict.outcome is Outcome.PASS


@pytest.mark.parametrize(("ratio", "outcome"), [(0.85, Outcome.FAIL), (1.2, Outcome.PASS)])
def test_without_any_latency_limit_the_backlog_decides(ratio: Any, outcome: Any) -> None:
    profile = profiles.load("cpu_tiny")
    wanted = replace(requirement(ratio, profile, Slo()), qps=Fraction(91.5 / ratio))
    verdict = check(SimRunner(profile.engine, 1), wanted, settings(profile))
    assert verdict.outcome is outcome
    assert verdict.measurement.binding == "backlog"


def test_a_drowning_server_is_not_drowned_for_long() -> None:
    verdict = check(SimRunner(FAST.engine, 1), requirement(0.3), settings())
    assert verdict.outcome is Outcome.FAIL
    assert max(s.in_flight_end for s in verdict.measurement.samples) <= 400


@pytest.mark.parametrize("name", ["ttft_p95", "tpot_p95", "itl_p99"])
def test_every_kind_of_limit_can_bind(name: Any) -> None:
    limit = {"ttft_p95": "30ms", "tpot_p95": "7ms", "itl_p99": "10ms"}[name]
    slo = Slo((LatencyLimit.parse(name, limit),))
    found: Any = measure(SimRunner(FAST.engine, 1), requirement(1.0, FAST, slo), settings())
    assert found.problems == ()
    assert found.binding == name
    assert 1 < found.sustainable_rate.value < 45


def test_sample_at_a_rate_and_at_a_concurrency() -> None:
    at_rate = sample(SimRunner(FAST.engine, 1), requirement(), settings(), rate_rps=20, duration_s=60)
    assert at_rate.kind == "open"
    assert at_rate.completed_rps == pytest.approx(20, rel=0.15)
    held = sample(SimRunner(FAST.engine, 1), requirement(), settings(), concurrency=64, duration_s=30)
    assert held.kind == "closed"
    assert held.in_flight_mean == pytest.approx(64, abs=1)
    assert held.attainment["e2e_p95"] == 1.0
    with pytest.raises(ValueError, match="exactly one"):
        sample(SimRunner(FAST.engine, 1), requirement(), settings())


def test_a_sweep_rises_to_saturation_with_a_knee_before_it() -> None:
    curve: Any = sweep(SimRunner(FAST.engine, 1), requirement(), settings())
    rates = [p.completed_rps for p in curve.points]
    assert rates == sorted(rates)
    assert len(rates) >= 6
    assert 0 < curve.knee_rps < max(rates) * 1.05
    assert curve.sustainable_rate.low < FAST.true_rate_rps < curve.sustainable_rate.high
    # Sustainable 30.3 over 0.64 one at a time.
    assert curve.batching_gain.low < 30.3 / 0.64 < curve.batching_gain.high * 1.05
    lightest, heaviest = curve.points[0].latencies["ttft"], curve.points[-1].latencies["ttft"]
    assert heaviest.p50_s > lightest.p50_s


H200 = profiles.load("h200")
"""Its throughput falls beyond about 120 requests in flight, far below what its limit of 4 s would allow."""


@pytest.mark.parametrize(("ratio", "outcome"), [(0.1, Outcome.FAIL), (0.9, Outcome.FAIL), (1.1, Outcome.PASS)])
def test_a_server_is_not_driven_past_its_best(ratio: Any, outcome: Any) -> None:
    verdict: Any = check(SimRunner(H200.engine, 1), requirement(ratio, H200), settings(H200))
    assert verdict.outcome is outcome
    assert max(s.concurrency for s in verdict.measurement.samples) <= 300
    rate = verdict.measurement.sustainable_rate
    assert rate.low < H200.true_rate_rps < rate.high
    assert rate.high / rate.low < 1.5
    assert sum(verdict.measurement.spent_s.values()) <= 120


@pytest.mark.parametrize("seed", [86, 193])
def test_a_best_that_was_luck_is_no_fall(seed: int) -> None:
    """Low holds that happened to draw short prompts: what is held next is slower by more than a tenth, twice."""
    profile = profiles.load("longprompt")
    verdict = check(SimRunner(profile.engine, 10_000 + seed), requirement(0.95, profile), settings(profile, seed=seed))
    assert any(window.window.phase is Phase.BELOW_PEAK for window in verdict.measurement.samples)
    assert verdict.measurement.sustainable_rate is not None
    assert verdict.measurement.sustainable_rate.value == pytest.approx(profile.true_rate_rps, rel=0.05)


def test_far_above_needs_no_high_concurrency() -> None:
    slo = Slo((LatencyLimit.parse("e2e_p95", "20s"),))
    verdict: Any = check(SimRunner(H200.engine, 1), requirement(2.0, H200, slo), settings(H200))
    assert verdict.outcome is Outcome.PASS
    assert max(s.concurrency for s in verdict.measurement.samples) < 200
    assert sum(verdict.measurement.spent_s.values()) <= 60


@pytest.mark.parametrize("start", [0.3, 4.0])
def test_a_sweep_of_such_a_server_finds_its_knee(start: Any) -> None:
    curve: Any = sweep(SimRunner(H200.engine, 2), requirement(1 / start, H200), settings(H200))
    assert curve.sustainable_rate.low < H200.true_rate_rps < curve.sustainable_rate.high
    assert curve.sustainable_rate.high / curve.sustainable_rate.low < 1.6
    assert 40 < curve.knee_rps < 62
    assert 45 < curve.measurement.saturated_rate.value < 62
    assert len(curve.points) >= 5


def test_the_runner_is_left_with_nothing_in_flight() -> None:
    runner = SimRunner(FAST.engine, 1)
    check(runner, requirement(), settings())
    assert runner.in_flight == 0


class Broken(SimRunner):
    """A runner whose worker dies in its third phase."""

    def run(self, phase: Any, should_stop: Any = None) -> Any:
        self.phases = getattr(self, "phases", 0) + 1
        if self.phases == 3:
            raise LoadError("a load worker died")
        return super().run(phase, should_stop)


def test_a_worker_that_dies_is_invalid_in_every_entry_point() -> None:
    verdict = check(Broken(FAST.engine, 1), requirement(), settings())
    assert (verdict.outcome, verdict.reason) == (Outcome.INVALID, "a load worker died")
    died = Problem(ProblemSource.LOAD_GENERATOR, ProblemKind.NO_LOAD, "a load worker died")
    assert measure(Broken(FAST.engine, 1), requirement(), settings()).problems == (died,)
    assert sweep(Broken(FAST.engine, 1), requirement(), settings()).measurement.problems == (died,)
