"""Efficiency, its interval, where it comes from, and which replica is called slow."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pytest_gpucap.fleet.efficiency import scaling_efficiency
from pytest_gpucap.fleet.known_efficiency import known_efficiency
from pytest_gpucap.fleet.shares import weakest
from pytest_gpucap.history.compare import PER_GPU, compare_variants
from pytest_gpucap.history.store import Run
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results import result_file
from pytest_gpucap.results.fleet import FleetResult, ReplicaShare
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.result import Result
from pytest_gpucap.sizing import gpus_for_rate, gpus_required
from tests.results import made


def interval(value: float, half: float) -> Interval:
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def test_the_interval_of_the_efficiency_holds_both_errors() -> None:
    found = scaling_efficiency(interval(8.6, 0.03), interval(10.0, 0.04))
    assert found.value == pytest.approx(0.86)
    assert math.log(found.high / found.value) == pytest.approx(0.05)
    assert math.log(found.value / found.low) == pytest.approx(0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two independent log-normal rates, each with the interval that its error calls for."""
    rng = np.random.default_rng(7)
    error, truth, runs = 0.02, 0.9, 4000
    each, alone = (np.exp(error * rng.standard_normal(runs)) for _ in range(2))
    ends = [
        scaling_efficiency(interval(truth * float(a), 1.96 * error), interval(float(b), 1.96 * error))
        for a, b in zip(each, alone, strict=True)
    ]
    covered = np.mean([end.low <= truth <= end.high for end in ends])
    assert 0.935 < covered < 0.965


def test_an_open_end_stays_open() -> None:
    found = scaling_efficiency(Interval(8.0, 0.0, 9.0), Interval(10.0, 9.0, math.inf))
    assert found.low == 0.0
    assert found.high < math.inf


def test_a_known_efficiency_takes_more_gpus() -> None:
    assert gpus_required(10, "1.3", "3.85") == 4
    assert gpus_required(10, "1.3", "3.85", 1, "0.8") == 5
    assert gpus_required(10, "1.3", "3.85", 2, "0.8") == 10
    requirement = Requirement("chat", qps=Fraction(10), gpus=5, efficiency=Fraction(4, 5))
    assert gpus_for_rate(requirement, 3.85) == 5
    assert requirement.design_rate == Fraction(10) * Fraction(13, 10) / 5 / Fraction(4, 5)
    # What just holds the design rate just holds the budget.
    assert gpus_for_rate(requirement, float(requirement.design_rate)) == 5


def test_a_fleet_must_sustain_its_part_of_the_budget() -> None:
    whole = Requirement("chat", qps=Fraction(40), gpus=4, headroom=Fraction(1), fleet=4)
    assert [float(each) for each in (whole.design_rate, whole.driven_rate)] == [10, 40]
    part = Requirement("chat", qps=Fraction(40), gpus=4, headroom=Fraction(1), fleet=2)
    assert [float(each) for each in (part.design_rate, part.driven_rate)] == [10, 20]


def share(number: int, tpot_s: float | None) -> ReplicaShare:
    return ReplicaShare(number, f"gpu {number - 1}", tpot_s=tpot_s)


@pytest.mark.parametrize(
    ("paces", "number"),
    [
        ([0.010, 0.010, 0.0112, 0.010], 3),
        ([0.010, 0.0112], 2),
        ([0.0100, 0.0102, 0.0101], None),
        ([0.010], None),
        ([0.010, None, 0.02], 3),
        ([None, None], None),
        ([], None),
    ],
)
def test_only_a_replica_that_is_clearly_slow_is_named(paces: list[float | None], number: int | None) -> None:
    found, why = weakest([share(place, pace) for place, pace in enumerate(paces, 1)])
    assert found == number
    assert (f"replica {number} on gpu {(number or 0) - 1}: " in why) == (number is not None)


def fleet(replicas: int, efficiency: float | None, model: str = "org/model") -> Result:
    found = None if efficiency is None else interval(efficiency, 0.02)
    environment = msgspec.structs.replace(made.measured().environment, model=model)
    about = FleetResult(replicas=replicas, router="client:round_robin", efficiency=found)
    return msgspec.structs.replace(made.measured(), fleet=about, environment=environment)


def written(tmp_path: Path, *results: Result) -> Path:
    path = tmp_path / "fleet.json"
    result_file.write(path, made.session(*results))
    return path


def test_the_efficiency_of_the_nearest_fleet_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, fleet(2, 0.97), fleet(4, 0.86), fleet(8, 0.7), fleet(4, 0.5, "other"), fleet(3, None))
    assert known_efficiency(path, 4, "org/model") == Fraction("0.86")
    assert known_efficiency(path, 3, "org/model") == Fraction("0.86"), "of two, the larger one"
    assert known_efficiency(path, 100, "org/model") == Fraction("0.7")
    assert known_efficiency(path, 4, "other") == Fraction("0.5")
    assert known_efficiency(written(tmp_path, fleet(2, 1.02)), 2, "org/model") == 1


def test_a_file_without_an_efficiency_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, made.measured(), fleet(2, None))
    with pytest.raises(ValueError, match=r"fleet.json has no measured efficiency of a fleet of org/model: "):
        known_efficiency(path, 2, "org/model")


def test_layouts_are_compared_in_requests_per_gpu(tmp_path: Path) -> None:
    """20.6 req/s on two GPUs are 10.3 of each, and 12.3 on one are more."""

    def laid_out(name: str, gpus: int, rate: float) -> Result:
        declared = msgspec.structs.replace(made.measured().requirement, gpus_per_replica=gpus)
        return msgspec.structs.replace(
            made.measured(), name=name, test=name, requirement=declared, sustainable_rate=interval(rate, 0.01)
        )

    path = written(tmp_path, laid_out("tp 2", 2, 20.6), laid_out("tp 1", 1, 12.3))
    run = Run(path, result_file.read(path))
    (found,) = compare_variants((run, "tp 1"), (run, "tp 2"), 0.05)
    assert found.comparison is not None
    assert found.comparison.ratio is not None
    assert found.comparison.ratio.value == pytest.approx(10.3 / 12.3, rel=1e-3)
    assert found.comparison.reason.startswith(PER_GPU)
    assert any("GPUs per replica" in each for each in found.comparison.changed)
