"""The rivals of the study do what the tools do: on hand-made responses, and on a server whose rate is arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count, pairwise
from random import Random

import numpy as np
import pytest

from benchmarks.verdict.rivals import aiperf, guidellm, mlperf, probes, simple
from pytest_gpucap.requirement import ArrivalKind, Arrivals, LatencyLimit, Length, Slo, Workload
from pytest_gpucap.simulator.profile import EngineModel, Profile
from pytest_gpucap.simulator.runner import SimRunner

STEADY = EngineModel(
    base_s=0.010,
    per_seq_s=0.0001,
    per_prompt_token_s=1e-6,
    noise=0.0,
    drift_sd=0.0,
    stall_per_s=0.0,
    warm_extra=0.0,
)
CALM = Profile(
    "calm",
    "made up",
    False,
    STEADY,
    Workload(Length.fixed(10), Length.fixed(100), Arrivals(ArrivalKind.CONSTANT)),
    Slo((LatencyLimit.parse("e2e_p95", "2s"),)),
)
"""100 requests in flight take 100 steps of 20 ms: they just keep the limit, at 50 requests/s."""
CALM_RPS = 50.0


def recorded(response: Callable[[int], float]) -> tuple[list[int], aiperf.Probe]:
    """A probe with one limit, and the loads that it was asked for."""
    asked: list[int] = []

    def probe(load: int) -> list[float]:
        asked.append(load)
        return [response(load)]

    return asked, probe


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 64, 100, 237, 511, 512, 999])
@pytest.mark.parametrize("power", [1, 4])
def test_aiperf_comes_within_five_percent_of_a_calm_capacity(capacity: int, power: int) -> None:
    asked, probe = recorded(lambda load: (load / (capacity + 0.5)) ** power - 1)
    found = aiperf.search(probe)
    assert 0.95 * capacity <= found <= capacity
    assert len(asked) <= aiperf.MAX_PROBES


def test_aiperf_doubles_then_probes_three_loads_within_the_bracket() -> None:
    asked, probe = recorded(lambda load: load - 100.5)
    aiperf.search(probe)
    assert asked[:11] == [1, 2, 4, 8, 16, 32, 64, 128, 80, 96, 112]


@pytest.mark.parametrize(
    ("response", "probed"),
    [
        # What AIPerf 0.13.0's own planner probes with these responses after its doubling.
        (lambda load: (load / 137) ** 2 - 1 + 0.3 * math.sin(load), [80, 96, 112, 126]),
        (lambda load: math.log(load / 300) + 0.6 * math.sin(3 * load), [160, 192, 224, 245]),
        (lambda load: (-1.0 if load < 700 else 5.0) + 0.01 * math.sin(load), [634, 756, 878, 666, 689, 706]),
    ],
    ids=["waves", "noise", "cliff"],
)
def test_aiperf_probes_what_the_tool_probes(response: Callable[[int], float], probed: list[int]) -> None:
    asked, probe = recorded(response)
    aiperf.search(probe)
    assert asked[-len(probed) :] == probed
    assert asked[: -len(probed)] == [min(2**i, aiperf.HIGH) for i in range(len(asked) - len(probed))]


def test_aiperf_without_a_limit_in_range() -> None:
    _, everything_passes = recorded(lambda load: -1.0)
    assert aiperf.search(everything_passes) == aiperf.HIGH
    asked, nothing_passes = recorded(lambda load: 1.0)
    assert aiperf.search(nothing_passes) == 0
    assert asked == [1]


def test_aiperf_ends_within_its_probes_whatever_a_server_answers() -> None:
    for seed in range(200):
        random = Random(seed)
        asked, probe = recorded(lambda load, random=random: random.gauss(math.log(load / 50), 2.0))  # type: ignore[misc]
        assert 0 <= aiperf.search(probe) <= aiperf.HIGH
        assert len(asked) <= aiperf.MAX_PROBES


def test_isotonic_regression_pools_what_falls() -> None:
    noisy = np.array([-2.0, -0.9, -1.1, 1.0, 2.0])
    assert aiperf.isotonic(noisy) == pytest.approx([-2.0, -1.0, -1.0, 1.0, 2.0])
    rising = aiperf.smooth(noisy)
    assert all(a < b for a, b in pairwise(rising))
    assert rising == pytest.approx([-2.0, -1.0, -1.0, 1.0, 2.0], abs=1e-7)


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 50, 333, 1000])
def test_guidellm_comes_within_a_tenth(capacity: int) -> None:
    asked: list[int] = []

    def passes(streams: int) -> bool:
        asked.append(streams)
        return streams <= capacity

    best = guidellm.search(passes)
    assert best <= capacity <= best + max(1, guidellm.TOLERANCE * best)
    assert len(asked) <= guidellm.MAX_PROBES


def test_guidellm_doubles_or_halves_from_four_and_then_bisects() -> None:
    asked: list[int] = []

    def passes(streams: int) -> bool:
        asked.append(streams)
        return streams <= 50

    assert guidellm.search(passes) == 48
    assert asked == [4, 8, 16, 32, 64, 48, 56, 52]  # 48 to 52 is a bracket of a tenth
    assert guidellm.search(lambda streams: True) == guidellm.MAX_STREAMS
    assert guidellm.search(lambda streams: False) == 0


def least_queries(late: int, percentile: float) -> int:
    return next(n for n in count(late + 1) if mlperf.stops_early(n, late, percentile))


@pytest.mark.parametrize(
    ("percentile", "late", "queries"),
    [
        # `MinPassingQueriesFinder` of LoadGen 6.0.17, compiled, answers h; here is h + t.
        (0.90, 0, 44),
        (0.90, 1, 64),
        (0.90, 100, 1246),
        (0.95, 0, 90),
        (0.95, 1, 130),
        (0.95, 100, 2504),
        (0.99, 0, 459),
        (0.99, 1, 662),  # `*.MultiStream.min_query_count` of `mlperf.conf`
        (0.99, 20, 3304),
    ],
)
def test_early_stopping_is_loadgens(percentile: float, late: int, queries: int) -> None:
    assert least_queries(late, percentile) == queries


@pytest.mark.parametrize(
    ("percentile", "margin", "queries"),
    [(0.90, 0.0050, 24_576), (0.95, 0.0025, 57_344), (0.97, 0.0015, 90_112), (0.99, 0.0005, 270_336)],
)
def test_early_stopping_agrees_with_the_numbers_of_queries_in_mlperfs_rules(
    percentile: float, margin: float, queries: int
) -> None:
    # The rules' table, for 99% confidence and this margin of error: a share that is better by the margin is enough.
    assert mlperf.stops_early(queries, math.floor(queries * (1 - percentile - margin)), percentile)
    assert not mlperf.stops_early(queries, math.ceil(queries * (1 - percentile - 0.8 * margin)), percentile)


def test_a_run_is_valid_by_its_percentile_and_its_late_queries() -> None:
    limit = LatencyLimit.parse("e2e_p95", "1s")
    latencies = np.full(1000, 0.5)
    assert mlperf.valid(latencies, limit)
    latencies[:40] = 2.0  # 4% late are within the percentile, but could be luck
    assert mlperf.keeps_percentile(latencies, limit)
    assert not mlperf.valid(latencies, limit)
    latencies[:51] = 2.0
    assert not mlperf.keeps_percentile(latencies, limit)


@pytest.mark.parametrize("capacity", [1.37, 24.0, 311.19])
def test_loadgens_search_comes_within_a_tenth_of_a_query_a_second(capacity: float) -> None:
    found = mlperf.search(lambda qps: qps <= capacity, 0.2 * capacity)
    assert found <= capacity < found + 0.2
    assert mlperf.search(lambda qps: qps <= capacity, 1.1 * capacity) == 0.0


@pytest.mark.parametrize(
    ("run", "below", "above"),
    [
        # What each may be off by on a server without any noise: its own resolution, and a step of the engine (1%).
        (aiperf.concurrency, 0.07, 0.01),
        (aiperf.rate, 0.06, 0.01),
        (guidellm.goodput, 0.14, 0.01),
        (lambda profile, seed: mlperf.find_peak(profile, seed, 10.0), 0.02, 0.01),
        (lambda profile, seed: simple.bisection(profile, seed, 10.0, prompts=3000), 0.06, 0.01),
    ],
    ids=["aiperf", "aiperf-rate", "guidellm", "mlperf-peak", "bisection"],
)
def test_a_search_finds_the_rate_of_a_calm_server(
    run: Callable[[Profile, int], tuple[float, float]], below: float, above: float
) -> None:
    rate, gpu_s = run(CALM, 1)
    assert CALM_RPS * (1 - below) < rate < CALM_RPS * (1 + above)
    assert gpu_s > 0


def test_runs_at_the_design_rate_decide_on_a_calm_server() -> None:
    for run in (simple.fixed_run, mlperf.server_run):
        assert run(CALM, 1, 0.9 * CALM_RPS)[0]
        assert not run(CALM, 1, 1.1 * CALM_RPS)[0]


def test_gpu_seconds_count_the_load_and_the_wait_for_the_last_answer() -> None:
    _, gpu_s = mlperf.server_run(CALM, 1, 10.0)
    assert mlperf.MIN_DURATION_S < gpu_s < mlperf.MIN_DURATION_S + 3
    _, gpu_s = guidellm.goodput(CALM, 1)
    assert gpu_s == pytest.approx(guidellm.PROBE_S * round(gpu_s / guidellm.PROBE_S))


@pytest.mark.parametrize("streams", [1, 20, 300])
def test_a_closed_loop_of_some_requests_answers_them_all(streams: int) -> None:
    runner = SimRunner(STEADY, 1)
    rows = probes.closed(runner, CALM.workload, streams, 200, 1, 0)
    journal = runner.journal()
    assert rows == slice(0, 200)
    assert not np.isnan(journal.end_s[rows]).any()
    in_flight = [int(((journal.due_s <= t) & (journal.end_s > t)).sum()) for t in np.linspace(0.1, 2.0, 5)]
    assert max(in_flight) == min(streams, 300)


def test_an_open_loop_of_some_requests_answers_them_all() -> None:
    runner = SimRunner(STEADY, 1)
    rows = probes.opened(runner, CALM.workload, 5.0, 200, 1, 0)
    journal = runner.journal()
    assert rows == slice(0, 200)
    assert not np.isnan(journal.end_s).any()
    assert np.diff(journal.due_s).mean() == pytest.approx(0.2)


def test_a_request_keeps_its_limits_each_for_itself() -> None:
    runner = SimRunner(STEADY, 1)
    rows = probes.opened(runner, CALM.workload, 5.0, 10, 1, 0)
    journal = runner.journal()
    one, both = (
        Slo(tuple(LatencyLimit.parse(name, text) for name, text in limits.items()))
        for limits in ({"e2e_p95": "9s"}, {"e2e_p95": "9s", "tpot_p95": "1ms"})
    )
    assert probes.within_limits(journal, rows, one).all()
    assert not probes.within_limits(journal, rows, both).any()
