"""Limits beside the rate: when a figure keeps its limit, and what that does to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest

from pytest_gpucap.decisions.secondary import judged, quotient, stated, tokens_per_request, with_secondary, worst
from pytest_gpucap.decisions.verdict import verdict_of
from pytest_gpucap.requirement import Length, Requirement, Workload
from pytest_gpucap.results.measured import Accuracy, Interval, Measurement, Outcome, Sample, SecondaryResult, Verdict
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.secondary import METRICS, Bound, SecondaryFigure, SecondaryLimit, SecondaryName

RATE = Interval(4.0, 3.9, 4.1)
REQUIREMENT = Requirement("chat", qps=Fraction(10), gpus=4, workload=Workload(Length.fixed(256), Length.fixed(100)))
MEASUREMENT = Measurement(REQUIREMENT, (), RATE)

Figure = SecondaryFigure
N = SecondaryName


def one(
    name: SecondaryName, limit: float, *figures: SecondaryFigure, measurement: Measurement = MEASUREMENT
) -> SecondaryResult:
    """One limit judged by starts that showed these figures."""
    return judged(SecondaryLimit(name, limit), [{name: figure} for figure in figures], measurement)


def parts(*pairs: tuple[float, float]) -> SecondaryFigure:
    return SecondaryFigure(parts=pairs)


def test_the_interval_of_a_quotient_is_that_of_the_textbook() -> None:
    """Three windows by hand: residuals 1, -1, 0 of a quotient of 0.5, over 60."""
    found = quotient([(11.0, 20.0), (9.0, 20.0), (10.0, 20.0)])
    assert found is not None
    half = 4.302653 * math.sqrt((1 + 1) * 3 / 2) / 60
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_the_interval_of_a_quotient_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    draws, covered = 2000, 0
    for _ in range(draws):
        under = rng.poisson(400, 12).astype(float)
        over = 30.0 + 0.2 * under + rng.normal(0, 4, 12)
        found = quotient(list(zip(over.tolist(), under.tolist(), strict=True)))
        assert found is not None
        covered += found.low <= (30.0 + 0.2 * 400) / 400 <= found.high
    assert covered / draws == pytest.approx(0.95, abs=0.02)


def test_windows_that_agree_leave_no_doubt_and_a_single_one_leaves_all() -> None:
    assert quotient([(5.0, 10.0), (10.0, 20.0)]) == Interval(0.5, 0.5, 0.5)
    assert quotient([(5.0, 10.0)], most=1.0) == Interval(0.5, 0.0, 1.0)
    assert quotient([]) is None
    assert quotient([(0.0, 0.0), (0.0, 0.0)]) is None


STEADY = ((20.0, 100.0), (22.0, 100.0), (21.0, 100.0), (21.0, 100.0))


@pytest.mark.parametrize(
    ("name", "limit", "figure", "outcome"),
    [
        (N.STARTUP, 90, Figure(90.0), Outcome.PASS),
        (N.STARTUP, 90, Figure(90.1), Outcome.FAIL),
        (N.KV_TOKENS, 1000, Figure(1000.0), Outcome.PASS),
        (N.KV_TOKENS, 1000, Figure(999.0), Outcome.FAIL),
        (N.JOULES_PER_1K_TOKENS, 250, parts(*STEADY), Outcome.PASS),
        (N.JOULES_PER_1K_TOKENS, 211, parts(*STEADY), Outcome.INCONCLUSIVE),
        (N.JOULES_PER_1K_TOKENS, 190, parts(*STEADY), Outcome.FAIL),
        (N.ACCEPTANCE, 0.19, parts(*STEADY), Outcome.PASS),
        (N.ACCEPTANCE, 0.209, parts(*STEADY), Outcome.INCONCLUSIVE),
        (N.ACCEPTANCE, 0.25, parts(*STEADY), Outcome.FAIL),
        (N.PREFIX_HIT_RATE, 0.19, parts(*STEADY), Outcome.PASS),
        (N.PREFIX_HIT_RATE, 0.25, parts(*STEADY), Outcome.FAIL),
        (N.PREEMPTIONS, 0.25, parts(*STEADY), Outcome.PASS),
        (N.PREEMPTIONS, 0.19, parts(*STEADY), Outcome.FAIL),
        # None at all is exact, whatever the interval; the edge of a window may cut off a part of one outside.
        (N.PREEMPTIONS, 0, parts((0.0, 100.0), (1.0, 100.0)), Outcome.FAIL),
        (N.PREEMPTIONS, 0, parts((0.0, 100.0), (0.3, 100.0)), Outcome.PASS),
        # 4 req/s of 100 tokens are 1.44 million tokens an hour.
        (N.USD_PER_1M_TOKENS, 1.5, Figure(2.0), Outcome.PASS),
        (N.USD_PER_1M_TOKENS, 1.39, Figure(2.0), Outcome.INCONCLUSIVE),
        (N.USD_PER_1M_TOKENS, 1.2, Figure(2.0), Outcome.FAIL),
    ],
)
def test_a_limit_is_kept_broken_or_undecided_by_the_whole_interval(
    name: SecondaryName, limit: float, figure: SecondaryFigure, outcome: Outcome
) -> None:
    found = one(name, limit, figure)
    assert found.outcome is outcome
    assert found.measured is not None
    assert found.bound is METRICS[name].bound
    assert bool(found.reason) is (outcome is Outcome.INCONCLUSIVE)


def test_the_figures_are_those_of_the_arithmetic() -> None:
    energy = one(N.JOULES_PER_1K_TOKENS, 250, parts(*STEADY))
    assert energy.measured is not None
    assert energy.measured.value == pytest.approx(210.0)
    assert energy.arithmetic == "84 J / 400 output tokens x 1,000"
    cost = one(N.USD_PER_1M_TOKENS, 1.5, Figure(2.0))
    assert cost.measured is not None
    assert cost.measured.value == pytest.approx(2.0 / 1.44)
    assert cost.measured.low == pytest.approx(2.0 / (4.1 * 100 * 3600) * 1e6)
    assert cost.arithmetic == "2 USD/h / (4 req/s x 100 tokens x 3,600 s) x 1,000,000"


def test_a_bound_of_the_rate_bounds_the_cost_and_never_breaks_its_limit() -> None:
    bound = replace(MEASUREMENT, sustainable_rate=None, at_least_rps=4.0)
    assert one(N.USD_PER_1M_TOKENS, 1.5, Figure(2.0), measurement=bound).outcome is Outcome.PASS
    found = one(N.USD_PER_1M_TOKENS, 1.0, Figure(2.0), measurement=bound)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.claim == "cost at most 1.389 USD per 1,000,000 output tokens, at most 1 allowed"
    nothing = replace(MEASUREMENT, sustainable_rate=None)
    assert one(N.USD_PER_1M_TOKENS, 1.0, Figure(2.0), measurement=nothing).outcome is Outcome.INVALID


def test_of_several_starts_the_worst_is_read_and_all_blocks_are_sampled() -> None:
    slowest = one(N.STARTUP, 90, Figure(80.0), Figure(95.0), Figure(60.0))
    assert slowest.outcome is Outcome.FAIL
    assert stated(slowest) == "start-up 95 s, at most 90 s allowed: the worst of 3 starts"
    smallest = one(N.KV_TOKENS, 100, Figure(120.0, beside="12 at once"), Figure(99.0, beside="9 at once"))
    assert (smallest.outcome, smallest.beside) == (Outcome.FAIL, "9 at once")
    pooled = one(N.PREFIX_HIT_RATE, 0.1, parts((10.0, 100.0)), parts((30.0, 100.0)))
    assert pooled.measured is not None
    assert pooled.measured.value == pytest.approx(0.2)


def test_one_start_that_was_not_measured_leaves_the_limit_unmeasured() -> None:
    found = one(N.STARTUP, 90, Figure(80.0), Figure(why="nobody knows"))
    assert (found.outcome, found.measured, found.reason) == (Outcome.INVALID, None, "nobody knows")
    assert judged(SecondaryLimit(N.STARTUP, 90), [], MEASUREMENT).outcome is Outcome.INVALID
    assert one(N.PREEMPTIONS, 0, parts((0.0, 0.0))).reason == "there were no requests in the measuring windows"


def test_tokens_of_a_request_are_those_asked_for_or_those_seen() -> None:
    window = Sample(
        kind="open", window=WindowId(Phase.DESIGN_RATE, 1), start_s=0.0, end_s=10.0, offered_rps=2.0, concurrency=0,
        requests=20, completed_rps=2.0, output_tokens_per_s=60.0, in_flight_mean=1.0, in_flight_end=1,
    )  # fmt: skip
    assert tokens_per_request(REQUIREMENT.workload, [window]) == 100
    free = replace(REQUIREMENT.workload, ignore_eos=False)
    assert tokens_per_request(free, [window]) == pytest.approx(30.0)
    assert tokens_per_request(free, []) is None


def verdict(outcome: Outcome, **changes: Any) -> Verdict:
    return replace(verdict_of(outcome, MEASUREMENT, "the rate's reason"), **changes)


KEPT = one(N.STARTUP, 90, Figure(60.0))
BROKEN = one(N.KV_TOKENS, 1000, Figure(999.0))
DOUBTFUL = one(N.ACCEPTANCE, 0.209, parts(*STEADY))
UNKNOWN = one(N.PREFIX_HIT_RATE, 0.5, Figure(why="its counter was not read"))
TABLE: Mapping[tuple[Outcome, SecondaryName], Outcome] = {
    (Outcome.PASS, BROKEN.name): Outcome.FAIL,
    (Outcome.PASS, DOUBTFUL.name): Outcome.INCONCLUSIVE,
    (Outcome.PASS, UNKNOWN.name): Outcome.INVALID,
    (Outcome.PASS, KEPT.name): Outcome.PASS,
    (Outcome.INCONCLUSIVE, BROKEN.name): Outcome.FAIL,
    (Outcome.INCONCLUSIVE, DOUBTFUL.name): Outcome.INCONCLUSIVE,
    (Outcome.INCONCLUSIVE, UNKNOWN.name): Outcome.INVALID,
    (Outcome.FAIL, BROKEN.name): Outcome.FAIL,
    (Outcome.FAIL, UNKNOWN.name): Outcome.FAIL,
    (Outcome.INVALID, BROKEN.name): Outcome.INVALID,
}


@pytest.mark.parametrize(("before", "name"), TABLE)
def test_what_a_limit_does_to_a_verdict(before: Outcome, name: SecondaryName) -> None:
    found = next(each for each in (KEPT, BROKEN, DOUBTFUL, UNKNOWN) if each.name is name)
    after = with_secondary(verdict(before), [KEPT, found] if found is not KEPT else [KEPT])
    expected = TABLE[before, name]
    assert after.outcome is expected
    changed = expected is not before
    assert [each.decided for each in after.secondary if each.name is name] == [changed]
    assert after.reason.startswith(stated(found) if changed else "the rate's reason")
    assert (after.gpus_required, after.slack) == (verdict(before).gpus_required, verdict(before).slack)
    assert bool(after.measurement.problems) is (expected is Outcome.INVALID and changed)
    assert (after.more_time is not None) is (expected is Outcome.INCONCLUSIVE and changed)


def test_a_broken_limit_stands_before_what_is_unknown_or_undecided_and_before_the_answers() -> None:
    found = worst([KEPT, UNKNOWN, DOUBTFUL, BROKEN])
    assert found is BROKEN
    assert worst([KEPT]) is None
    answers = Accuracy(Interval(0.8, 0.7, 0.9), answers=10, min_accuracy=0.85, decided=True)
    after = with_secondary(verdict(Outcome.INCONCLUSIVE, accuracy=answers), [UNKNOWN, BROKEN])
    assert after.accuracy == msgspec.structs.replace(answers, decided=False)
    assert after.reason == "KV cache 999 tokens, at least 1,000 required"


def test_a_fail_tells_what_else_is_broken() -> None:
    after = with_secondary(verdict(Outcome.FAIL), [BROKEN])
    assert after.reason == "the rate's reason; KV cache 999 tokens, at least 1,000 required"


@pytest.mark.parametrize(
    ("name", "limit", "figure", "claim"),
    [
        (N.STARTUP, 90, Figure(120.04), "start-up 120 s, at most 90 s allowed"),
        (N.KV_TOKENS, 120_000, Figure(98_304.0), "KV cache 98,304 tokens, at least 120,000 required"),
        (
            N.ACCEPTANCE,
            0.6,
            parts((40.0, 100.0), (40.0, 100.0)),
            "acceptance 40%, at least 60% required",
        ),
        (
            N.PREEMPTIONS,
            0.01,
            parts((2.0, 100.0), (3.0, 100.0)),
            "preemptions 2.5% of the requests (0% to 8.853%), at most 1% allowed",
        ),
    ],
)
def test_the_claim_has_both_figures(name: SecondaryName, limit: float, figure: SecondaryFigure, claim: str) -> None:
    assert one(name, limit, figure).claim == claim


def test_every_metric_has_a_side_and_a_figure_with_its_unit() -> None:
    for name, metric in METRICS.items():
        assert metric.name is name
        assert metric.bound in Bound
        assert "{" not in metric.shown(12.0)
        assert one(name, 1.0, Figure(why="unknown")).figure == "not measured"
