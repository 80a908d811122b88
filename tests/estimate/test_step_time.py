"""The engine's speed from bins of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.estimate.bins import STAIRS, Bins, bins_of, integral, padded
from pytest_gpucap.estimate.step_time import SpeedError, fit, related
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner


def measured(width: Any, n: Any, tokens: Any, prompts: Any, held: Any, lengths: Any = 256.0) -> Bins:
    """Bins with prompts of these lengths, in which the batch stays the same."""
    return Bins(width, n, tokens, prompts, prompts * lengths, held, np.column_stack([padded(n, s) for s in STAIRS]))


def bins(
    n: Any, *, pace: Any, prefill: Any = 0.0, width: Any = 0.5, noise: Any = 0.0, stalls: Any = (), seed: Any = 0
) -> Any:
    """Bins of an engine with the pace `pace(n)`; `stalls` are bins that lose half their time."""
    rng = np.random.default_rng(seed)
    n = np.asarray(n, float)
    prompts = 256.0 * rng.poisson(6, n.size)
    seconds = np.full(n.size, width)
    seconds[list(stalls)] /= 2
    steps = (seconds - prefill * prompts) / (pace(n) * (1 + noise * rng.standard_normal(n.size)))
    return measured(np.full(n.size, width), n, steps * n, prompts, 500.0 * n)


def line(n: Any) -> Any:
    return 0.003 + 3.4e-5 * n


def test_a_straight_engine_is_found_exactly() -> None:
    speed = fit(bins(np.linspace(40, 130, 40), pace=line, prefill=4e-6))
    assert speed.at(np.array([60.0, 120.0])) == pytest.approx(line(np.array([60.0, 120.0])), rel=2e-3)
    assert speed.prefill_s == pytest.approx(4e-6, rel=0.05)


def test_noise_leaves_a_percent() -> None:
    speed = fit(bins(np.linspace(40, 130, 60), pace=line, noise=0.03))
    assert speed.at(np.array([100.0]))[0] == pytest.approx(line(100), rel=0.04)
    assert 0.001 < speed.error < 0.01


def cut_steps(seed: Any) -> Any:
    """Bins of a noisy straight engine; a step that an edge cuts is counted in one bin, and lacks in the other."""
    n = np.tile(np.linspace(60, 120, 8), 6)
    rng = np.random.default_rng(seed)
    cut = rng.uniform(-0.5, 0.5, n.size + 1)
    steps = 0.05 / line(n) * (1 + 0.02 * rng.standard_normal(n.size)) + np.diff(cut)
    return measured(np.full(n.size, 0.05), n, steps * n, np.zeros(n.size), 500.0 * n)


def test_the_error_explains_the_spread_of_fits_whose_bins_share_the_steps_at_their_edges() -> None:
    fits = [fit(cut_steps(seed)) for seed in range(200)]
    spread = np.std([np.log(f.at(np.array([90.0]))[0]) for f in fits])
    assert 0.9 < np.mean([f.error for f in fits]) / spread < 2.2


@pytest.mark.parametrize(("shared", "least", "most"), [(-0.9, 0.0, 0.3), (0.0, 0.8, 1.3), (0.9, 1.6, 2.1)])
def test_neighbours_that_cancel_or_agree_are_told_from_unrelated_ones(shared: Any, least: Any, most: Any) -> None:
    drawn = np.random.default_rng(1).standard_normal(501)
    residual = drawn[1:] + shared * drawn[:-1]
    assert least < related(residual, np.ones(500, bool)) < most


def test_tokens_held_are_known_after_requests_were_cancelled() -> None:
    profile = profiles.load("fast")
    runner = SimRunner(profile.engine, 3)
    contexts = []
    for phase in range(3):
        runner.run(schedule.closed_loop(profile.workload, 60, 3.0, 200.0, 1, 2 * phase))
        span = runner.run(schedule.closed_loop(profile.workload, 60, 10.0, 200.0, 1, 2 * phase + 1, hot=False))
        runner.settle(0.0, cancel=True)
        part = bins_of(runner.journal(), span.start_s, span.end_s, 0.5)
        contexts.append(float((part.held / part.decoding).mean()))
    assert (runner.journal().status == Status.CANCELLED).sum() >= 120
    # A prompt of 256 tokens, and half of 512 made.
    assert contexts == pytest.approx([512.0] * 3, rel=0.05)


def test_what_held_tokens_cost_is_found_and_kept_out_of_the_curve() -> None:
    rng = np.random.default_rng(2)
    n = np.tile([70.0, 90.0, 110.0], 16)
    # Contexts grow with the batch sizes that happened to be measured, as they do in so few holds.
    context = 500.0 * (1 + 0.08 * rng.standard_normal(n.size) + 0.002 * (n - 90))
    pace = line(n) + 2e-8 * n * (context - 500.0)
    seen = measured(np.full(n.size, 0.5), n, 0.5 / pace * n, np.zeros(n.size), n * context)
    at = np.array([70.0, 110.0])
    known, unknown = fit(seen, 500.0), fit(seen)
    assert known.kv_token_s == pytest.approx(2e-8, rel=0.1)
    assert known.at(at) == pytest.approx(line(at), rel=2e-3)
    assert np.abs(unknown.at(at) / line(at) - 1).max() > 5e-3
    assert known.taken_s(seen) == pytest.approx(seen.width_s, rel=5e-3)


def test_a_prompt_twice_as_long_may_take_more_than_twice_the_time() -> None:
    rng = np.random.default_rng(3)
    n = np.tile([6.0, 9.0, 12.0], 20)
    lengths = rng.uniform(3000.0, 9000.0, n.size)
    prompts = lengths * rng.poisson(3, n.size)
    linear, growth = 1e-5, 1.5e-9
    steps = (2.0 - prompts * (linear + growth * lengths)) / (line(n) * (1 + 0.02 * rng.standard_normal(n.size)))
    speed = fit(measured(np.full(n.size, 2.0), n, steps * n, prompts, 500.0 * n, lengths), 0.0, 6000.0)
    assert speed.prefill_growth_s == pytest.approx(growth, rel=0.2)
    assert speed.prefill_s == pytest.approx(linear + growth * 6000.0, rel=0.03)


@pytest.mark.parametrize("stair", STAIRS)
def test_a_staircase_of_batch_sizes_is_found(stair: Any) -> None:
    def stairs(n: Any) -> Any:
        return line(padded(n, stair))

    speed = fit(bins(np.linspace(20, 90, 60), pace=stairs, prefill=4e-6, noise=0.005))
    assert speed.stair == stair
    at = np.array([3.0, 33.0, 40.0, 65.0])
    assert speed.at(at) == pytest.approx(stairs(at), rel=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_a_smooth_curve_is_no_staircase(seed: Any) -> None:
    assert fit(bins(np.linspace(20, 90, 60), pace=line, prefill=4e-6, noise=0.02, seed=seed)).stair == 0


def test_the_padded_batch_is_averaged_over_time() -> None:
    """Against the simulated engine: the batch changes many times in each bin."""
    engine = EngineModel(
        base_s=0.006, per_seq_s=0.0002, per_prompt_token_s=1e-6, noise=0.0, drift_sd=0.0, stall_per_s=0.0,
        warm_extra=0.0, graph_step=16,
    )  # fmt: skip
    runner = SimRunner(engine, 1)
    workload = Workload(Length.fixed(64), Length.fixed(100))
    span = runner.run(schedule.open_loop(workload, 25.0, 60.0, 5, 0))
    speed = fit(bins_of(runner.journal(), 5.0, span.end_s, 0.4))
    assert speed.stair == 16
    assert speed.intercept_s == pytest.approx(engine.base_s, rel=0.05)
    assert speed.slope_s == pytest.approx(engine.per_seq_s, rel=0.05)


def test_a_stop_of_the_engine_is_counted_and_left_out() -> None:
    clean, stalled = (fit(bins(np.linspace(40, 130, 40), pace=line, stalls=s)) for s in ((), (7, 30)))
    assert len(stalled.stops_s) == 2
    assert sum(stalled.stops_s) == pytest.approx(0.5, rel=0.1)
    assert stalled.at(np.array([100.0])) == pytest.approx(clean.at(np.array([100.0])), rel=5e-3)


def test_a_bend_is_found() -> None:
    def bent(n: Any) -> Any:
        return 0.0025 + 4e-5 * np.maximum(0, n - 52)

    speed = fit(bins(np.tile([20, 40, 50, 60, 80, 100, 120], 8), pace=bent))
    for n in (40.0, 110.0):
        assert speed.at(np.array([n]))[0] == pytest.approx(bent(n), rel=0.06)


@pytest.mark.parametrize("seed", range(40))
def test_one_batch_size_whose_prompts_keep_step_with_its_tokens_has_a_pace(seed: Any) -> None:
    """A closed loop at one concurrency: what prompts cost and what tokens cost cannot be told apart."""
    rng = np.random.default_rng(seed)
    width, n, pace = np.full(12, 0.4), np.full(12, 16.0), 0.01 * (1 + 0.15 * rng.standard_normal(12))
    steps = width / pace
    prompts = 4.0 * steps * n * (1 + 0.02 * rng.standard_normal(12))
    speed = fit(measured(width, n, steps * n, prompts, 500.0 * n))
    table = speed.table(64)
    assert table.min() > 1e-5
    found = speed.at(n)[0] + speed.prefill_s * 64
    assert found == pytest.approx(0.01, rel=0.25)


def test_beyond_the_data_the_extremes_enclose_the_curve() -> None:
    speed = fit(bins(np.linspace(10, 50, 40), pace=line))
    assert speed.optimistic(200)[200] < line(200) < speed.pessimistic(200)[200]


def test_too_little_is_no_curve() -> None:
    with pytest.raises(SpeedError):
        fit(bins([10, 10, 10], pace=line))


def test_requests_under_way_are_integrated() -> None:
    starts, ends = np.array([0.0, 1.0, np.nan]), np.array([2.0, np.nan, np.nan])
    assert integral(np.array([0.0, 2.0, 3.0]), starts, ends) == pytest.approx([0.0, 3.0, 4.0])


COUNTS = st.one_of(st.just(0.0), st.floats(0.01, 500.0))


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS), min_size=4, max_size=24), st.sampled_from([0.0, 700.0]))
def test_no_bins_make_numpy_warn(drawn: Any, mean_context: float) -> None:
    """Tokens with nobody left, somebody without tokens: any warning is an error here, and would reach users."""
    n, tokens, prompts, held = np.array(drawn).T
    lines = measured(np.full(n.size, 0.4), n, tokens, prompts, held)
    try:
        speed = fit(lines, mean_context, 256.0)
    except SpeedError:
        return
    taken_s = speed.taken_s(lines)
    assert np.isnan(taken_s[n == 0.0]).all()
    assert np.isfinite(taken_s[n > 0.0]).all()
    for table in (speed.table(600), speed.pessimistic(600), speed.optimistic(600)):
        assert (table > 0.0).all()


def test_tokens_with_nobody_left_take_no_time() -> None:
    """The last request ends at the edge of a bin and its tokens are counted in the next: the curve may be 0 there."""
    n = np.append(np.linspace(40, 130, 40), 0.0)
    lines = bins(np.linspace(40, 130, 40), pace=lambda n: 3.4e-5 * n)
    alone = measured(np.full(1, 0.5), np.zeros(1), np.full(1, 3.0), np.zeros(1), np.zeros(1))
    taken_s = fit(lines).taken_s(lines.join(alone))
    assert np.isnan(taken_s[n == 0.0]).all()
    assert taken_s[n > 0.0] == pytest.approx(0.5, rel=0.01)
