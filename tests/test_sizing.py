"""GPUs from rates, exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.requirement import Requirement, RequirementError
from pytest_gpucap.sizing import (
    GpuRange,
    ReplicaRate,
    gpu_range,
    gpu_table,
    gpus_for_rate,
    gpus_interval,
    gpus_required,
    headroom_left,
    largest_qps,
)


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
    assert gpus_interval(requirement, low_rps=39.0, high_rps=61.0) == (2, 4)


def test_the_inverse_is_the_largest_rate_that_the_budget_carries() -> None:
    most = largest_qps(4, 3.85, 1.3)
    assert most == Fraction(154, 13)
    assert gpus_required(most, "1.3", "3.85") == 4
    assert gpus_required(most + Fraction(1, 10**9), "1.3", "3.85") == 5
    assert largest_qps(5, 2, 1, gpus_per_replica=2) == 4  # the fifth GPU holds no replica
    assert largest_qps(1, 2, 1, gpus_per_replica=2) == 0


@pytest.mark.parametrize("qps", [1, "2.5", 10, 99.9])
@pytest.mark.parametrize("headroom", ["1", "1.3", 2])
@pytest.mark.parametrize("rate", ["0.37", 3.85, 52.1])
@pytest.mark.parametrize("gpus_per_replica", [1, 4])
def test_sizing_and_its_inverse_agree(qps: Any, headroom: Any, rate: Any, gpus_per_replica: int) -> None:
    gpus = gpus_required(qps, headroom, rate, gpus_per_replica)
    assert largest_qps(gpus, rate, headroom, gpus_per_replica) >= Fraction(str(qps))
    assert headroom_left(qps, gpus, rate, gpus_per_replica) >= Fraction(str(headroom))
    if gpus > gpus_per_replica:
        fewer = gpus - gpus_per_replica
        assert largest_qps(fewer, rate, headroom, gpus_per_replica) < Fraction(str(qps))
        assert headroom_left(qps, fewer, rate, gpus_per_replica) < Fraction(str(headroom))


def test_headroom_left() -> None:
    assert headroom_left(10, 4, 3.85) == Fraction("1.54")
    assert headroom_left(20, 4, 3.85) < 1  # does not even carry the target


def test_a_rate_without_an_interval_gives_one_number_of_gpus() -> None:
    assert gpu_range(ReplicaRate("3.85"), 10, "1.3") == GpuRange(4, 4, 4)
    assert gpu_range(ReplicaRate("3.85", "3.0", "4.4"), 10, "1.3") == GpuRange(4, 3, 5)


def test_floats_are_rounded_before_they_are_taken_as_exact() -> None:
    assert ReplicaRate.of_floats(12.1, 12.000000000001) == ReplicaRate("12.1", "12", None)


def test_a_table_over_rates_and_targets() -> None:
    rates = {"a10g": ReplicaRate("3.85"), "h200 x2": ReplicaRate(44.0, 40.0, 48.0, gpus_per_replica=2)}
    cells = gpu_table(rates, [10, 15, 200], "1.3")
    assert cells["a10g"] == [GpuRange(4, 4, 4), GpuRange(6, 6, 6), GpuRange(68, 68, 68)]
    assert cells["h200 x2"] == [GpuRange(2, 2, 2), GpuRange(2, 2, 2), GpuRange(12, 12, 14)]
