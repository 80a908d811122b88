"""The share of right answers: its interval, and what it does to a verdict."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
import pytest
from scipy.stats import binomtest

from pytest_gpucap.accuracy.accuracy_verdict import apply_accuracy, good_rate
from pytest_gpucap.accuracy.measurement import share_interval
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Accuracy, Interval, Measurement, Outcome, Verdict


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 7), (61, 100), (480, 480)])
def test_one_answer_to_each_question_is_the_exact_binomial_interval(right: int, n: int) -> None:
    found = share_interval([1] * right + [0] * (n - right), [1] * n)
    exact = binomtest(right, n).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.value == right / n


def test_asking_again_what_is_always_answered_the_same_adds_nothing() -> None:
    once = share_interval([1] * 30 + [0] * 10, [1] * 40)
    often = share_interval([5] * 30 + [0] * 10, [5] * 40)
    assert often.value == once.value
    assert often.high - often.low >= once.high - once.low
    every = share_interval([5] * 40, [5] * 40)
    assert every.low <= share_interval([1] * 40, [1] * 40).low


def test_answers_that_vary_from_one_asking_to_the_next_count_for_more() -> None:
    stubborn = share_interval([5] * 24 + [0] * 16, [5] * 40)
    varying = share_interval([3] * 40, [5] * 40)
    assert varying.value == stubborn.value
    assert varying.high - varying.low < (stubborn.high - stubborn.low) / 1.7


@pytest.mark.parametrize("spread", [0.3, 2.0, 50.0])
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_the_interval_holds_the_truth_as_often_as_it_says(share: float, spread: float) -> None:
    """Questions differ in how often they are answered right (a beta distribution), five answers to each of 96."""
    rng = np.random.default_rng([int(share * 100), int(spread * 10)])
    trials, held = 1500, 0
    for _ in range(trials):
        easy = rng.beta(share * spread, (1 - share) * spread, 96)
        found = share_interval(rng.binomial(5, easy).tolist(), [5] * 96)
        held += found.low <= share <= found.high
    # 1500 trials of 95% fall below 93.5% once in 200 sets.
    assert held / trials >= 0.935


@pytest.mark.parametrize(("right", "asked"), [([], []), ([1], [0]), ([2], [1]), ([-1], [1])])
def test_what_cannot_be_counted_is_refused(right: list[int], asked: list[int]) -> None:
    with pytest.raises(ValueError, match="an accuracy needs questions"):
        share_interval(right, asked)


def verdict(outcome: Outcome) -> Verdict:
    measurement = Measurement(Requirement("chat", Fraction(10), 2), (), Interval(8.0, 7.0, 9.0))
    return Verdict(outcome, measurement, 6.5, 2, (2, 2), None, "capacity says so")


def answers(value: float, low: float, high: float) -> Accuracy:
    return Accuracy(Interval(value, low, high), 480, 288, min_accuracy=0.9, questions=96)


RIGHT = answers(0.97, 0.94, 0.99)
WRONG = answers(0.61, 0.52, 0.7)
UNCLEAR = answers(0.91, 0.86, 0.95)
NONE = Accuracy(None, min_accuracy=0.9, failed=480, problem="HTTP 500")
SHORT = msgspec.structs.replace(RIGHT, problem="only 2 of 5 samples were answered within 60 s")


@pytest.mark.parametrize(
    ("capacity", "found", "outcome", "decided"),
    [
        (Outcome.PASS, RIGHT, Outcome.PASS, False),
        (Outcome.PASS, WRONG, Outcome.FAIL, True),
        (Outcome.PASS, UNCLEAR, Outcome.INCONCLUSIVE, True),
        (Outcome.PASS, NONE, Outcome.INVALID, True),
        (Outcome.PASS, SHORT, Outcome.INCONCLUSIVE, True),
        (Outcome.INCONCLUSIVE, WRONG, Outcome.FAIL, True),
        (Outcome.INCONCLUSIVE, RIGHT, Outcome.INCONCLUSIVE, False),
        (Outcome.INCONCLUSIVE, NONE, Outcome.INCONCLUSIVE, False),
        (Outcome.FAIL, RIGHT, Outcome.FAIL, False),
        (Outcome.FAIL, WRONG, Outcome.FAIL, False),
        (Outcome.FAIL, UNCLEAR, Outcome.FAIL, False),
        (Outcome.PASS, msgspec.structs.replace(WRONG, min_accuracy=None), Outcome.PASS, False),
    ],
)
def test_what_answers_do_to_a_verdict(capacity: Outcome, found: Accuracy, outcome: Outcome, decided: bool) -> None:
    judgement = apply_accuracy(verdict(capacity), found)
    assert judgement.outcome is outcome
    assert judgement.accuracy is not None
    assert judgement.accuracy.decided is decided
    assert judgement.gpus_required == 2, "no GPU makes an answer right"
    assert bool(judgement.measurement.problems) is (outcome is Outcome.INVALID)


def test_the_reasons_say_what_was_found() -> None:
    assert apply_accuracy(verdict(Outcome.PASS), WRONG).reason == "answers right 61% (52-70%), needs 90%"
    assert apply_accuracy(verdict(Outcome.PASS), UNCLEAR).reason.endswith(
        "needs 90%; 96 questions do not separate them"
    )
    assert apply_accuracy(verdict(Outcome.PASS), SHORT).reason.endswith("only 2 of 5 samples were answered within 60 s")
    assert apply_accuracy(verdict(Outcome.PASS), NONE).reason == "the answers could not be judged: HTTP 500"
    assert apply_accuracy(verdict(Outcome.FAIL), WRONG).reason == (
        "capacity says so; answers right 61% (52-70%), needs 90%"
    )
    assert apply_accuracy(verdict(Outcome.PASS), RIGHT).reason == "capacity says so"
    assert msgspec.structs.replace(RIGHT, min_accuracy=None).claim == "answers right 97% (94-99%)"


def test_good_throughput_is_what_is_answered_right() -> None:
    found = good_rate(Interval(40.0, 30.0, 50.0), Interval(0.5, 0.4, 0.6))
    assert found == Interval(20.0, 12.0, 30.0)
    assert good_rate(None, Interval(0.5, 0.4, 0.6)) is None
    assert good_rate(Interval(40.0, 30.0, 50.0), None) is None
