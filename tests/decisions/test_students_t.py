"""Quantiles of Student's t are those of SciPy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from pytest_gpucap.decisions.students_t import t_quantile

FREEDOMS = [
    0.3,
    0.74,
    1,
    1.5,
    2,
    3,
    4.4,
    7,
    12.3,
    29,
    49.9,
    50,
    51,
    88.8,
    250,
    1_000,
    31_000.5,
    1e6,
    3e8,
    1e12,
    math.inf,
]
CONFIDENCES = [0.025, 0.4, 0.5, 0.6, 0.8, 0.9, 0.95, 0.975, 0.99, 0.9975, 0.999, 0.99999]


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_it_is_that_of_scipy(freedom: float) -> None:
    for confidence in CONFIDENCES:
        assert t_quantile(confidence, freedom) == pytest.approx(stats.t.ppf(confidence, freedom), rel=2e-10, abs=1e-12)


def test_between_them_too() -> None:
    draws = np.random.default_rng(5)
    for confidence, freedom in zip(draws.uniform(0.5, 0.9999, 200), np.exp(draws.uniform(-1, 12, 200)), strict=True):
        assert t_quantile(confidence, freedom) == pytest.approx(stats.t.ppf(confidence, freedom), rel=2e-10)


@pytest.mark.parametrize("freedom", [0, -1, math.nan])
def test_there_is_none_without_freedom(freedom: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert math.isnan(stats.t.ppf(0.9, freedom))
    assert math.isnan(t_quantile(0.9, freedom))
