"""The ratio from pairs of windows: what drift does to it, and how often its interval holds."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from pytest_gpucap.decisions.paired import (
    LEAST_PAIRS,
    MOST_PAIRS,
    PAIR_START_SD,
    PaceDifference,
    Pair,
    pace_of,
    pairs_to_settle,
    ratio_from_pace,
)
from pytest_gpucap.decisions.regression import decide
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval


def pairs(differences: list[float], drift: float = 0.0) -> list[Pair]:
    """Pairs in the order measured; within a pair the second window gains `drift`."""
    return [
        Pair(0.0, value + (drift if number % 2 == 0 else -drift), base_first=number % 2 == 0)
        for number, value in enumerate(differences)
    ]


def test_a_drift_within_pairs_cancels_and_is_no_scatter() -> None:
    noise = [0.010, 0.012, 0.008, 0.010, 0.011, 0.009]
    calm, drifting = pace_of(pairs(noise)), pace_of(pairs(noise, drift=0.05))
    assert drifting.difference == pytest.approx(calm.difference) == pytest.approx(0.010)
    assert drifting.error == pytest.approx(calm.error)
    assert calm.freedom == 4


def test_a_drift_of_the_machine_moves_both_windows_and_nothing_else() -> None:
    still = [Pair(1.0, 0.95 + 0.001 * (i // 2), base_first=i % 2 == 0) for i in range(6)]
    moved = [Pair(p.base + 0.1 * i, p.head + 0.1 * i, p.base_first) for i, p in enumerate(still)]
    assert pace_of(moved).difference == pytest.approx(pace_of(still).difference)
    assert pace_of(moved).error == pytest.approx(pace_of(still).error)


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_too_few_or_unbalanced_pairs_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match="half of them base first"):
        pace_of(pairs([0.0] * count))


def test_the_ratio_has_the_elasticity_and_the_starts_in_it() -> None:
    exact = PaceDifference(math.log(0.95), 0.0, 2)
    assert ratio_from_pace(exact, 1.0).value == pytest.approx(0.95)
    assert ratio_from_pace(exact, 2.0).value == pytest.approx(0.95**2)
    low = ratio_from_pace(exact, 1.0).low
    assert math.log(0.95 / low) == pytest.approx(1.96 * math.sqrt(2) * PAIR_START_SD)
    # What is known of the elasticity is worth less, the further the two are apart.
    widths = [
        math.log(r.high / r.low) for r in (ratio_from_pace(PaceDifference(d, 0.0, 2), 2.0) for d in (0.0, -0.05, -0.2))
    ]
    assert all(narrow < wide for narrow, wide in pairwise(widths))


@pytest.mark.parametrize(("true", "sd"), [(0.0, 0.01), (0.0, 0.05), (math.log(0.95), 0.03), (math.log(0.9), 0.05)])
def test_stopping_at_the_first_look_that_decides_keeps_the_interval(true: float, sd: float) -> None:
    rng = np.random.default_rng(7)
    runs, missed, wrong = 400, 0, 0
    for _ in range(runs):
        start = math.sqrt(2) * PAIR_START_SD * rng.standard_normal()
        noise = list(true + start + sd * rng.standard_normal(MOST_PAIRS))
        ratio, change = Interval(1, 0, 2), RegressionDecision.INCONCLUSIVE
        for count in range(LEAST_PAIRS, MOST_PAIRS + 1, 2):
            ratio = ratio_from_pace(pace_of(pairs(noise[:count])), 1.0)
            change = decide(ratio, 0.05)
            if change is not RegressionDecision.INCONCLUSIVE:
                break
        missed += not ratio.low <= math.exp(true) <= ratio.high
        wrong += change is (RegressionDecision.REGRESSED if true > -0.01 else RegressionDecision.IMPROVED)
    assert missed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert wrong / runs <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / runs)


def test_how_many_pairs_more_would_settle_it() -> None:
    def undecided(error: float) -> int | None:
        pace = PaceDifference(-0.02, error, 2)
        assert decide(ratio_from_pace(pace, 1.0), 0.05) is RegressionDecision.INCONCLUSIVE
        return pairs_to_settle(pace, 4, 1.0, 0.05)

    few, many = undecided(0.01), undecided(0.03)
    assert few is not None
    assert many is not None
    assert 0 < few < many
    # At the very limit no number of pairs helps.
    assert pairs_to_settle(PaceDifference(math.log(0.95) + 0.002, 0.01, 2), 4, 1.0, 0.05) is None
