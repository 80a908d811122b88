"""One verdict from several starts: what it rests on, and how often it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gpucap.decisions.pooling import decided, pooled, pooled_measurement, pooled_verdict
from pytest_gpucap.decisions.verdict import verdict_of
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.failures import FailedRequests, Failure, FailureKind
from pytest_gpucap.results.measured import Interval, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId

OWN_SD = 0.012
DESIGN = 100.0
REQUIREMENT = Requirement(
    "chat",
    qps=Fraction(100),
    gpus=1,
    headroom=Fraction(1),
    workload=Workload(Length.fixed(256), Length.fixed(512)),
    slo=Slo((LatencyLimit.parse("e2e_p95", "20s"),)),
)
MOST_VIOLATIONS = 0.3


def interval(value: float, own_sd: float = OWN_SD) -> Interval:
    return Interval(value, value * math.exp(-1.96 * own_sd), value * math.exp(1.96 * own_sd))


def at_design_rate(broken: float, phase: Phase = Phase.DESIGN_RATE) -> Sample:
    return Sample(
        kind="open",
        window=WindowId(phase, 1).part(1, 3),
        start_s=0.0,
        end_s=10.0,
        offered_rps=DESIGN,
        concurrency=0,
        requests=1000,
        completed_rps=DESIGN,
        output_tokens_per_s=1.0,
        in_flight_mean=1.0,
        in_flight_end=1,
        attainment={"e2e_p95": 1 - broken},
    )


def start(
    rate: float | None,
    outcome: Outcome = Outcome.INCONCLUSIVE,
    *,
    own_sd: float = OWN_SD,
    at_least: float | None = None,
    problems: tuple[Problem, ...] = (),
    samples: tuple[Sample, ...] = (),
    failed: FailedRequests | None = None,
    seed: int = 0,
) -> Verdict:
    found = Measurement(
        REQUIREMENT,
        samples,
        None if rate is None else interval(rate, own_sd),
        binding=None if rate is None else "e2e_p95",
        spent_s={"hold": 10.0, "open loop": 5.0},
        problems=problems,
        failed_requests=failed,
        at_least_rps=at_least,
        seed=seed,
    )
    return verdict_of(outcome, found, problems[0].text if problems else f"said {outcome}")


def together(verdicts: Sequence[Verdict], planned: int | None = None) -> Verdict:
    return pooled_verdict(verdicts, planned or len(verdicts), MOST_VIOLATIONS)


def test_the_rate_is_the_geometric_mean_and_its_interval_holds_the_spread() -> None:
    alike, apart = pooled([interval(100.0)] * 3), pooled([interval(90.0), interval(100.0), interval(111.1111)])
    assert alike.rate.value == pytest.approx(100.0)
    assert apart.rate.value == pytest.approx(100.0)
    assert apart.spread == pytest.approx(math.log(111.1111 / 90) / 2, rel=1e-3)
    assert apart.rate.low < 90 < alike.rate.low < 100 < alike.rate.high < 111 < apart.rate.high


def test_one_start_is_no_surer_than_starts_spread_beforehand() -> None:
    one = pooled([interval(100.0)])
    assert one.spread is None
    assert one.rate.low < interval(100.0).low
    assert one.rate.high > interval(100.0).high


@given(st.lists(st.floats(80, 125), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_the_order_of_the_starts_does_not_matter_and_the_unit_neither(rates: list[float], own_sd: float) -> None:
    found = pooled([interval(rate, own_sd) for rate in rates])
    turned = pooled([interval(1000 * rate, own_sd) for rate in reversed(rates)])
    assert found.rate.low < found.rate.value < found.rate.high
    for end in ("low", "value", "high"):
        assert getattr(turned.rate, end) == pytest.approx(1000 * getattr(found.rate, end))


def test_an_open_end_stays_open_and_decides_nothing_there() -> None:
    found = pooled([Interval(200.0, 0.0, 210.0), interval(200.0)])
    assert found.rate.low == 0.0
    assert 200 < found.rate.high < 300
    assert decided(found, DESIGN) is Outcome.INCONCLUSIVE
    assert decided(found, 1000.0) is Outcome.FAIL


def test_what_all_starts_get_wrong_alike_does_not_average_out() -> None:
    wide = pooled([interval(100.0, 0.1)] * 20)
    assert math.log(wide.rate.high / 100) > 1.96 * 0.1 / 2


@pytest.mark.parametrize(
    ("count", "spread", "covers", "wrong"),
    [
        (2, 0.012, 0.95, 0.05),
        (3, 0.012, 0.95, 0.05),
        (5, 0.012, 0.94, 0.06),
        (2, 0.025, 0.90, 0.09),  # twice the spread that is expected, and only two starts to show it
        (3, 0.025, 0.91, 0.075),
        (5, 0.025, 0.92, 0.07),
    ],
)
def test_the_interval_covers_and_a_verdict_is_seldom_wrong(
    count: int, spread: float, covers: float, wrong: float
) -> None:
    rng = np.random.default_rng(count)
    runs = 2000
    covered = 0
    said: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    for _ in range(runs):
        shared, own = rng.normal(0, OWN_SD * math.sqrt(0.5)), rng.normal(0, OWN_SD * math.sqrt(0.5), count)
        # The truth is the design rate itself, so that either verdict is as wrong as it can be without being right.
        found = pooled([interval(value) for value in DESIGN * np.exp(shared + own + rng.normal(0, spread, count))])
        covered += found.rate.low <= DESIGN <= found.rate.high
        said[decided(found, DESIGN)] += 1
    assert covered / runs > covers
    assert said[Outcome.PASS] / runs < wrong
    assert said[Outcome.FAIL] / runs < wrong


def test_the_rates_decide_and_not_the_verdicts_of_single_starts() -> None:
    lucky = together([start(103.5, Outcome.PASS), start(97.0, Outcome.FAIL), start(100.0)])
    assert lucky.outcome is Outcome.INCONCLUSIVE
    assert "of the starts alone, 1 PASS and 1 FAIL and 1 INCONCLUSIVE" in lucky.reason
    near = together([start(102.2)] * 5)
    assert near.outcome is Outcome.PASS
    assert near.gpus_required == 1
    below = together([start(97.0), start(96.0), start(96.5, Outcome.FAIL)])
    assert below.outcome is Outcome.FAIL
    assert below.gpus_required == 2
    assert below.reason.startswith("one replica sustains 96.5 req/s over 3 starts (95% interval")


def test_what_each_start_showed_is_kept() -> None:
    found = together([start(100.0 + each, seed=each) for each in (4, 0, 2)]).measurement
    assert [each.seed for each in found.starts] == [4, 0, 2]
    assert [each.detailed for each in found.starts] == [False, False, True]
    assert found.seed == 4
    assert found.spent_s == {"hold": 30.0, "open loop": 15.0}
    assert [each.spent_s for each in found.starts] == [15.0] * 3
    assert found.start_spread == pytest.approx(0.0196, abs=1e-3)


def test_a_start_that_cannot_be_trusted_makes_all_invalid_and_is_named() -> None:
    shared = Problem(ProblemSource.HOST, ProblemKind.OTHERS, "other processes used 1.1 of 2 cores")
    found = together([start(150.0, Outcome.PASS), start(None, Outcome.INVALID, problems=(shared,))], planned=3)
    assert found.outcome is Outcome.INVALID
    assert found.reason == "start 2 of 3: other processes used 1.1 of 2 cores"
    assert [problem.text for problem in found.measurement.problems] == [found.reason]
    assert found.measurement.sustainable_rate is None
    assert found.gpus_required is None


def test_fewer_starts_than_planned_decide_nothing() -> None:
    found = together([start(150.0, Outcome.PASS)] * 2, planned=3)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "2 of 3 starts were measured" in found.reason


def test_where_a_start_has_no_rate_only_starts_that_agree_decide() -> None:
    broken = start(None, Outcome.FAIL)
    assert together([broken] * 3).outcome is Outcome.FAIL
    assert together([broken] * 3).reason == "all 3 starts say so; the first: said FAIL"
    mixed = together([broken, start(150.0, Outcome.PASS)])
    assert mixed.outcome is Outcome.INCONCLUSIVE
    assert mixed.reason == "a start was judged without a rate, and of the starts alone, 1 FAIL and 1 PASS"
    assert mixed.more_time is not None
    assert mixed.more_time.seconds is None


def test_a_start_judged_without_the_queue_model_does_not_lend_its_rate() -> None:
    direct = start(150.0, Outcome.FAIL, samples=(at_design_rate(0.5, Phase.DIRECT),))
    assert together([direct, start(150.0, Outcome.PASS)]).outcome is Outcome.INCONCLUSIVE
    assert together([direct, direct]).outcome is Outcome.FAIL


def test_nothing_passes_on_the_queue_model_alone() -> None:
    seen = start(130.0, samples=(at_design_rate(0.1),))
    broke = start(130.0, samples=(at_design_rate(0.9),))
    assert together([seen, seen]).outcome is Outcome.PASS
    assert together([broke, broke]).outcome is Outcome.INCONCLUSIVE


def test_a_bound_that_every_start_showed_is_told_and_only_of_passes() -> None:
    far = [start(400.0, Outcome.PASS, own_sd=0.3, at_least=rate) for rate in (130.0, 128.0)]
    found = together(far)
    assert found.outcome is Outcome.PASS
    assert found.measurement.at_least_rps == 128.0
    assert "at least 128 req/s in every one of 2 starts" in found.reason
    assert together([*far, start(140.0, Outcome.PASS)]).measurement.at_least_rps == 128.0
    assert together([*far, start(140.0)]).measurement.at_least_rps is None
    shown = together([start(None, Outcome.PASS, at_least=100.0)] * 2)  # no pace: seen to keep the design rate
    assert (shown.outcome, shown.measurement.at_least_rps) == (Outcome.PASS, 100.0)


def test_undecided_says_how_many_more_starts_would_decide() -> None:
    found = together([start(98.0), start(98.5), start(99.0)])
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.more_time is not None
    assert found.more_time.seconds is not None
    more = round(found.more_time.seconds / 15)
    assert f"--gpucap-repeat={3 + more}" in found.more_time.text
    hopeless = together([start(99.99), start(100.02)])
    assert hopeless.more_time is not None
    assert hopeless.more_time.seconds is None
    assert "no more starts would decide" in hopeless.more_time.text


def test_failed_requests_of_all_starts_are_counted() -> None:
    def failed(count: int, kind: FailureKind = FailureKind.TIMEOUT) -> FailedRequests:
        return FailedRequests(count, 1000, (Failure(kind, count, text="slow"),))

    found = together([start(100.0, failed=failed(3)), start(100.0), start(100.0, failed=failed(4))]).measurement
    assert found.failed_requests == FailedRequests(7, 2000, (Failure(FailureKind.TIMEOUT, 7, text="slow"),))


def test_a_measurement_without_a_rate_says_which_start_has_none() -> None:
    found = pooled_measurement([start(100.0).measurement, start(None).measurement])
    assert found.sustainable_rate is None
    assert found.reason.startswith("start 2 of 2: ")
    part = pooled_measurement([start(100.0).measurement], planned=3)
    assert part.reason == "1 of 3 starts were measured"
