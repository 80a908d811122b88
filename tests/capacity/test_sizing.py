"""GPUs from rates, exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.capacity.results import Interval
from pytest_gpucap.capacity.sizing import gpus_for_rate, gpus_interval, gpus_required
from pytest_gpucap.requirement import Requirement, RequirementError


def test_the_guide_example() -> None:
    assert gpus_required(10, 1.3, 3.85) == 4


def test_floats_do_not_round_up() -> None:
    assert math.ceil(11 * 1.1 / 12.1) == 2
    assert gpus_required(11, 1.1, 12.1) == 1


def test_a_replica_of_several_gpus() -> None:
    assert gpus_required(10, 1.3, 3.85, 2) == 8


@pytest.mark.parametrize("bad", [(0, 1.3, 3), (10, -1, 3), (10, 1.3, 0), (10, 1.3, "nan"), (10, 1.3, "fast")])
def test_nonsense_is_refused(bad: Any) -> None:
    with pytest.raises(RequirementError):
        gpus_required(*bad)


def test_measured_rates_keep_their_decimal_text() -> None:
    requirement = Requirement("x", Fraction(11), 1, Fraction(11, 10))
    assert gpus_for_rate(requirement, 12.1) == 1
    assert gpus_for_rate(requirement, 12.099) == 2


def test_an_interval_gives_fewest_and_most() -> None:
    requirement = Requirement("x", Fraction(100), 3, Fraction(6, 5))
    assert gpus_interval(requirement, Interval(52.1, 39.0, 61.0)) == (2, 4)
