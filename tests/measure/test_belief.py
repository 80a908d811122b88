"""What is believed of a rate: by a model that may be wrong, and by what was seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pytest_gpucap.measure import constants
from pytest_gpucap.measure.belief import Belief, Part, mixture
from pytest_gpucap.results.measured import Outcome


def part(value: float, error: float) -> Part:
    return Part(1.0, value, value, value, error)


def test_one_estimate_is_a_normal_distribution_of_the_logarithm() -> None:
    value, low, high = Belief((part(20.0, 0.1),)).interval()
    assert value == pytest.approx(20.0)
    assert low == pytest.approx(20 * math.exp(-0.196), rel=1e-3)
    assert high == pytest.approx(20 * math.exp(0.196), rel=1e-3)


def test_nothing_passes_or_fails_near_the_model_alone() -> None:
    """Before an open loop has shown anything, a model that is sure of itself may still be wrong by a fifth."""
    alone = mixture(part(20.0, 0.01), None)
    assert alone.outcome(18.0, 0.02) is Outcome.INCONCLUSIVE
    assert alone.outcome(22.0, 0.02) is Outcome.INCONCLUSIVE
    assert alone.outcome(10.0, 0.02) is Outcome.PASS
    assert alone.outcome(40.0, 0.02) is Outcome.FAIL


def test_a_model_that_what_was_seen_bears_out_is_believed() -> None:
    both = mixture(part(20.0, 0.015), part(20.2, 0.02))
    assert both.parts[0].weight > 0.9
    _, low, high = both.interval()
    assert high / low < (20 * math.exp(2 * 1.96 * 0.015)) / 20 * 1.02
    assert both.outcome(19.0, 0.02) is Outcome.PASS


@pytest.mark.parametrize("off", [0.7, 0.85, 1.2, 2.0])
def test_a_model_that_what_was_seen_contradicts_is_given_up(off: float) -> None:
    both = mixture(part(20.0, 0.01), part(20.0 * off, 0.02))
    value, low, high = both.interval()
    assert both.parts[0].weight < 0.01
    assert low < 20.0 * off < high
    assert value == pytest.approx(20.0 * off, rel=0.01)


def test_where_neither_is_sure_both_count() -> None:
    both = mixture(part(20.0, 0.01), part(18.6, 0.03))
    _, low, high = both.interval()
    assert low < 18.6
    assert high > 20.0
    assert both.outcome(19.2, 0.02) is Outcome.INCONCLUSIVE


def test_an_open_end_of_the_curve_counts_against_the_verdict() -> None:
    wide = Belief((replace(part(20.0, 0.01), least=10.0, greatest=40.0),))
    assert wide.outcome(15.0, 0.02) is Outcome.INCONCLUSIVE
    assert wide.outcome(30.0, 0.02) is Outcome.INCONCLUSIVE
    assert wide.outcome(9.0, 0.02) is Outcome.PASS
    assert wide.outcome(45.0, 0.02) is Outcome.FAIL
    _, low, high = wide.interval()
    assert low < 10.0
    assert high > 40.0


def test_the_chances_are_those_of_draws() -> None:
    """A server is built as the model in seven of ten cases: of those that pass, as few are wrong as is accepted."""
    random = np.random.default_rng(1)
    wrong = passed = 0
    for _ in range(20_000):
        rate = math.exp(random.normal(0.0, 0.1))
        misfit = random.random() < 0.3
        off = random.normal(0.0, 0.2) if misfit else 0.0
        model = part(rate * math.exp(off + random.normal(0.0, 0.015)), 0.015)
        seen = part(rate * math.exp(random.normal(0.0, 0.03)), 0.03)
        if mixture(model, seen).outcome(1.0, 0.02) is Outcome.PASS:
            passed += 1
            wrong += rate < 1.0
    assert passed > 5000
    assert wrong / passed < 0.01


def test_a_frequency_that_is_not_known_widens_the_belief_where_the_rate_jumps() -> None:
    calm = Belief((part(20.0, 0.02),))
    spread = calm.spread(((0.9, 0.0), (0.1, -3.0)))
    assert sum(each.weight for each in spread.parts) == pytest.approx(1.0)
    assert calm.outcome(18.0, 0.02) is Outcome.PASS
    assert spread.outcome(18.0, 0.02) is Outcome.INCONCLUSIVE
    assert spread.outcome(22.0, 0.02) is Outcome.FAIL
    assert spread.interval()[1] < 1.1


def test_the_chances_of_frequencies_are_all_of_them() -> None:
    assert sum(constants.STOP_STRATA) == pytest.approx(1.0)
    # A verdict needs every one of them, the outermost too.
    assert min(constants.STOP_STRATA) > constants.WRONG_CHANCE


def test_an_error_that_is_not_known_counts_with_its_chance() -> None:
    narrow = Belief((part(1.05, 0.012),))
    wider = narrow.widened(((0.9, 0.0), (0.1, 0.05)))
    assert math.fsum(each.weight for each in wider.parts) == pytest.approx(1.0)
    assert {each.error for each in wider.parts} == {0.012, math.hypot(0.012, 0.05)}
    assert wider.chance_below(1.0) == pytest.approx(
        0.9 * narrow.chance_below(1.0) + 0.1 * narrow.widened(((1.0, 0.05),)).chance_below(1.0)
    )
    assert wider.interval()[0] == pytest.approx(narrow.interval()[0], rel=1e-6)
    assert wider.interval()[1] < narrow.interval()[1]
