"""What an undecided check says of more time holds when the time is given."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_gpucap.accuracy.accuracy_verdict import apply_accuracy
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure import procedure
from pytest_gpucap.measure.more_time import more_time
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Accuracy, Interval, Outcome, Verdict
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.simulator import profile
from pytest_gpucap.simulator.runner import SimRunner
from tests.results import made

CHAT = Requirement(
    "chat",
    qps=Fraction(20),
    gpus=1,
    workload=Workload(Length.fixed(256), Length.fixed(512)),
    slo=Slo((LatencyLimit.parse("e2e_p95", "4s"),)),
)


def checked(requirement: Requirement, max_time_s: float) -> Verdict:
    engine = profile.load("fast").engine
    settings = Settings(max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens, max_time_s=max_time_s)
    return procedure.check(SimRunner(engine), requirement, settings)


def test_the_time_that_it_names_decides() -> None:
    """The rate is near the budget: two holds and a part of an open loop do not tell, the rest of the cycle does."""
    verdict = checked(CHAT, 26.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.more_time is not None
    assert verdict.more_time.seconds is not None
    again = checked(CHAT, 26.0 + 1.5 * verdict.more_time.seconds)
    assert again.outcome in {Outcome.PASS, Outcome.FAIL}
    assert again.more_time is None


def undecided(rate: Interval, design_rps: float, *windows: WindowId) -> Verdict:
    """A verdict from windows of 30 s."""
    samples = tuple(made.sample(window, 50.0, 9.0, start_s=30.0 * at) for at, window in enumerate(windows))
    measurement = replace(made.MEASUREMENT, samples=samples, sustainable_rate=rate)
    return replace(made.FAILED, outcome=Outcome.INCONCLUSIVE, measurement=measurement, design_rate_rps=design_rps)


def cycles(count: int) -> list[WindowId]:
    return [WindowId(Phase.HOLD, 1), *(WindowId(Phase.DESIGN_RATE, number) for number in range(1, count + 1))]


def test_noise_falls_with_the_root_of_the_time() -> None:
    wide, narrow = (
        more_time(undecided(Interval(51.5, 51.5 / by, 51.5 * by), 50.0, *cycles(1)), 100.0).seconds
        for by in (1.036, 1.034)
    )
    assert wide is not None
    assert narrow is not None
    assert narrow < wide


@pytest.mark.parametrize(
    ("verdict", "cause"),
    [
        # All cycles are made.
        (undecided(Interval(51.0, 49.0, 53.0), 50.0, *cycles(c.MOST_CYCLES)), "drift"),
        # Nearer to the budget than the model itself is right.
        (undecided(Interval(50.1, 49.0, 51.2), 50.0, *cycles(1)), f"all {c.MOST_CYCLES} cycles"),
        (undecided(Interval(51.0, 49.0, 53.0), 50.0, *[WindowId(Phase.DIRECT)] * 10), "direct run"),
        (undecided(Interval(51.0, 49.0, float("inf")), 50.0, *cycles(1)), f"all {c.MOST_CYCLES} cycles"),
    ],
)
def test_where_time_does_not_help_it_says_what_binds(verdict: Verdict, cause: str) -> None:
    found = more_time(verdict, 100.0)
    assert found.seconds is None
    assert cause in found.text


def test_without_an_estimate_it_says_what_one_takes() -> None:
    verdict = checked(CHAT, 4.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.more_time is not None
    assert (verdict.more_time.seconds or 0) > 20


def test_answers_need_questions_and_no_time() -> None:
    passed = replace(made.FAILED, outcome=Outcome.PASS)
    answers = Accuracy(Interval(0.8, 0.7, 0.88), answers=100, right=80, questions=20, min_accuracy=0.75)
    verdict = apply_accuracy(passed, answers)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.more_time is not None
    assert verdict.more_time.seconds is None
    assert "about 80 questions in place of 20" in verdict.more_time.text
