"""The engine's speed from bins of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pytest_gpucap.capacity.speed import Bins, SpeedError, fit, integral


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
    return Bins(np.full(n.size, width), n, steps * n, prompts)


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


def test_a_stop_of_the_engine_is_counted_and_left_out() -> None:
    clean, stalled = (fit(bins(np.linspace(40, 130, 40), pace=line, stalls=s)) for s in ((), (7, 30)))
    assert stalled.stalls == 2
    assert stalled.stalled_s == pytest.approx(0.5, rel=0.1)
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
    speed = fit(Bins(width, n, steps * n, 4.0 * steps * n * (1 + 0.02 * rng.standard_normal(12))))
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
