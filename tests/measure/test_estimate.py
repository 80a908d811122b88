"""What the interval is made of: how a server's pace moves, and what replays say of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_gpucap.measure import constants
from pytest_gpucap.measure.estimate import WindowPaces, error_of_mean


def wandering(correlation: float, windows: int, random: np.random.Generator) -> np.ndarray:
    """A first-order autoregression of standard deviation 0.1."""
    paces = [random.normal(0, 0.1)]
    for _ in range(windows - 1):
        paces.append(correlation * paces[-1] + math.sqrt(1 - correlation**2) * random.normal(0, 0.1))
    return np.array(paces)


@pytest.mark.parametrize("windows", [6, 9, 15])
@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.7])
def test_the_error_of_the_mean_covers_it(correlation: float, windows: int) -> None:
    random = np.random.default_rng(1)
    runs = [wandering(correlation, windows, random) for _ in range(2000)]
    held = np.mean([abs(run.mean()) <= 1.96 * error_of_mean(run, 0.0) for run in runs])
    assert held >= (0.93 if correlation < 0.5 else 0.85)


def test_fresh_draws_cost_less_than_a_drift_and_never_more_than_their_scatter() -> None:
    random = np.random.default_rng(2)
    draws = wandering(0.0, 15, random)
    drift = np.sort(draws)
    assert error_of_mean(draws, 0.0) < 0.8 * error_of_mean(drift, 0.0)
    assert error_of_mean(drift, 0.0) == pytest.approx(float(np.std(drift, ddof=1)))


def test_what_the_windows_own_noise_explains_is_no_drift() -> None:
    paces = wandering(0.0, 9, np.random.default_rng(3))
    assert error_of_mean(paces, float(np.var(paces, ddof=1))) == 0.0
    assert 0.0 < error_of_mean(paces, 0.5 * float(np.var(paces, ddof=1))) < error_of_mean(paces, 0.0)


def paces(log: list[float], error: float = 0.005) -> WindowPaces:
    values = np.array(log)
    return WindowPaces(np.linspace(0.0, 60.0, values.size), values, np.full(values.size, error**2))


def test_a_server_that_gets_faster_shows_a_trend() -> None:
    assert paces([0.08, 0.05, 0.03, 0.01, 0.0]).falls(constants.TREND_Z)


@pytest.mark.parametrize(
    "log",
    [[0.08, 0.0], [0.0, 0.0, 0.001, 0.0], [0.0, 0.01, 0.03, 0.05], [0.1, -0.1, 0.12, -0.08, 0.05, -0.1]],
    ids=["two windows", "steady", "slower", "wandering"],
)
def test_other_servers_show_none(log: list[float]) -> None:
    assert not paces(log).falls(constants.TREND_Z)


@pytest.mark.parametrize("windows", [3, 5, 9])
def test_chance_seldom_looks_like_a_trend(windows: int) -> None:
    random = np.random.default_rng(3)
    seen = [paces(list(0.02 * random.standard_normal(windows)), 0.02).falls(constants.TREND_Z) for _ in range(2000)]
    assert np.mean(seen) < 0.02
