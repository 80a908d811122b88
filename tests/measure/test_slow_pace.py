"""What a run tells of how the pace moves, against processes that are known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.paces import GROUP_S
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.slow_pace import AS_ASSUMED, Paces, weighed

NOISE = 0.006
"""What each pace of `GROUP_S` has of its own: a hundred engine steps of 5% each."""


def run(sd: float, memory_s: float, seconds: float, random: np.random.Generator) -> Paces:
    """A run on a server whose pace is an Ornstein-Uhlenbeck process, with two holds and then open loops."""
    count = round(seconds / GROUP_S)
    keep = math.exp(-GROUP_S / memory_s)
    moved = [random.normal(0.0, sd)]
    for _ in range(count - 1):
        moved.append(keep * moved[-1] + sd * math.sqrt(1.0 - keep**2) * random.normal())
    at_s: Floats = GROUP_S * (0.5 + np.arange(count, dtype=np.float64))
    decoding = np.where(at_s < 4.0, 30.0, 50.0 + random.normal(0.0, 5.0, count))
    return Paces(at_s, np.array(moved) + random.normal(0.0, NOISE, count), decoding)


def believed(run: Paces) -> float:
    """Standard deviation of all that is believed of the mean."""
    return math.sqrt(sum(chance * error**2 for chance, error in weighed(run).errors))


@pytest.mark.parametrize(
    ("sd", "memory_s", "seconds"),
    [(0.03, 90.0, 150.0), (0.03, 30.0, 150.0), (0.2, 2.5, 60.0), (0.12, 3.0, 60.0)],
    ids=["drift", "throttle", "wander", "wander less"],
)
def test_the_error_is_about_that_of_the_mean(sd: float, memory_s: float, seconds: float) -> None:
    random = np.random.default_rng(1)
    runs = [run(sd, memory_s, seconds, random) for _ in range(12)]
    true = float(np.sqrt(np.mean([each.log.mean() ** 2 for each in runs])))
    assert 0.7 * true < float(np.median([believed(each) for each in runs])) < 2.2 * true


def test_a_calm_server_is_known_to_be_calm() -> None:
    random = np.random.default_rng(2)
    found = [weighed(run(constants.DRIFT_SD, constants.DRIFT_TAU_S, 60.0, random)) for _ in range(20)]
    assert all(math.fsum(chance for chance, _ in each.errors) == pytest.approx(1.0) for each in found)
    surprised = [sum(chance for chance, error in each.errors if error > 0.015) for each in found]
    assert float(np.median(surprised)) < 0.03
    assert float(np.median([each.drift_sd for each in found])) == constants.DRIFT_SD


def test_a_drift_over_minutes_is_recognized() -> None:
    random = np.random.default_rng(3)
    sizes = [weighed(run(0.03, 90.0, 150.0, random)).drift_sd for _ in range(20)]
    assert np.mean([size >= 0.015 for size in sizes]) > 0.7


def test_a_few_paces_tell_nothing() -> None:
    found = weighed(run(0.2, 2.5, (constants.LEAST_PACES - 1) * GROUP_S, np.random.default_rng(4)))
    assert found == AS_ASSUMED


def test_single_slow_seconds_of_a_busy_host_are_no_process() -> None:
    random = np.random.default_rng(6)
    calm = [run(constants.DRIFT_SD, constants.DRIFT_TAU_S, 40.0, random) for _ in range(12)]
    disturbed = [replace(each, log=each.log + 0.15 * (random.random(each.log.size) < 0.12)) for each in calm]
    assert float(np.median([believed(each) for each in disturbed])) < 0.04


def test_the_mean_over_a_part_is_known_worse_than_over_the_whole() -> None:
    random = np.random.default_rng(5)
    for _ in range(5):
        seen = run(0.03, 30.0, 150.0, random)
        part, whole = weighed(seen, begin_s=120.0).errors, weighed(seen).errors
        assert sum(chance * e**2 for chance, e in part) > sum(chance * e**2 for chance, e in whole)
