"""Values are parsed once, exactly, and a mistake names itself."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from pytest_gpucap.requirement import (
    GoodputLimit,
    LatencyLimit,
    Length,
    LengthKind,
    Metric,
    Number,
    Requirement,
    RequirementError,
    Slo,
    Threshold,
    declared_limits,
    duration_s,
    exact,
    goodput_percent,
    headroom,
    positive,
    share,
    whole,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("20s", 20), ("10m", 600), ("10min", 600), ("1h", 3600), ("250us", 2.5e-4), (20, 20), (0.5, 0.5)]
    + [("1.5s", 1.5), (".5s", 0.5), (" 2 s ", 2), ("1e-3s", 1e-3), ("7", 7)],
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert duration_s(text, "ttft_p95") == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "20 parsecs", "-1s", "0s", 0, -3, "nan", float("nan"), float("inf"), True, "5 m s"]
    # Python's regular expressions take these letters for s, s and i where capitals do not matter.
    + ["20\u017f", "20m\u017f", "20m\u0131n", "20M\u0130N", "\u0662s"],
)
def test_what_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(RequirementError, match="ttft_p95 must be"):
        duration_s(text, "ttft_p95")


@pytest.mark.parametrize("value", [61, 500, "500", "60.5", 1e3, Decimal(1500), Fraction(121, 2)])
def test_a_number_above_a_minute_asks_for_its_unit(value: Number) -> None:
    with pytest.raises(RequirementError, match=r"ttft_p95=\S+ needs a unit, since it is above a minute: "):
        duration_s(value, "ttft_p95")
    with pytest.raises(RequirementError, match="needs a unit"):
        LatencyLimit.parse("ttft_p95", value)


@pytest.mark.parametrize(("value", "seconds"), [(60, 60), ("60", 60), ("61s", 61), ("500 s", 500), ("2m", 120)])
def test_a_unit_or_a_short_time_is_enough(value: Number, seconds: float) -> None:
    assert duration_s(value, "ttft_p95") == seconds


@pytest.mark.parametrize("number", [1.1, "1.1", " 1.1 ", Fraction(11, 10)])
def test_numbers_are_exact_fractions_of_their_decimal_text(number: Any) -> None:
    assert exact(number, "headroom") == Fraction(11, 10)


@pytest.mark.parametrize("exponent", ["4008888888888888888888888888888256", "9" * 18, "9" * 19, "99999", "400"])
@pytest.mark.parametrize("sign", ["", "+", "-"])
@pytest.mark.parametrize("digits", ["81", "-1.5", ".5"])
def test_an_exponent_may_be_as_long_as_it_likes(digits: str, sign: str, exponent: str) -> None:
    with pytest.raises(RequirementError, match="must be 0, or between 1e-12 and 1e20"):
        exact(f"{digits}e{sign}{exponent}", "qps")
    with pytest.raises(RequirementError, match="1e-12 and 1e20"):
        Length.parse(f"lognormal:mean={digits}e{sign}{exponent},cv=0.8,low=1,high=20", "input_tokens")


@pytest.mark.parametrize(("written", "number"), [("1e0002", 100), ("1e-00", 1), ("15E+01", 150), ("0e9", 0)])
def test_an_exponent_may_have_zeros_before_it(written: str, number: int) -> None:
    assert exact(written, "qps") == number


@pytest.mark.parametrize("written", ["1e", "1e+", "1E-", "e5", "1e5.5", "1e 5"])
def test_an_exponent_without_digits_is_no_number(written: str) -> None:
    with pytest.raises(RequirementError, match="must be a number"):
        exact(written, "qps")


@pytest.mark.parametrize("number", ["ten", None, [], "", "nan", "inf", True, float("inf")])
def test_what_is_no_number_is_refused(number: Any) -> None:
    with pytest.raises(RequirementError, match="qps must be a"):
        exact(number, "qps")


def test_bounds() -> None:
    assert positive("0.25", "qps") == Fraction(1, 4)
    assert whole(4.0, "gpus") == 4
    assert headroom(1, "headroom") == 1
    assert share("1%", "max_error_rate") == Fraction(1, 100)
    assert share(0.5, "max_error_rate") == Fraction(1, 2)
    for refuse in (
        lambda: positive(0, "qps"),
        lambda: positive(-1, "qps"),
        lambda: whole(0, "gpus"),
        lambda: whole(2.5, "gpus"),
        lambda: headroom(0.99, "headroom"),
        lambda: share("101%", "max_error_rate"),
        lambda: share(-0.1, "max_error_rate"),
    ):
        with pytest.raises(RequirementError):
            refuse()


@pytest.mark.parametrize(
    ("keyword", "metric", "quantile"),
    [
        ("ttft_p95", Metric.TTFT, Fraction(95, 100)),
        ("tpot_p50", Metric.TPOT, Fraction(1, 2)),
        ("itl_p99", Metric.ITL, Fraction(99, 100)),
        ("e2e_p99_9", Metric.E2E, Fraction(999, 1000)),
    ],
)
def test_a_limit_is_named_by_its_keyword(keyword: str, metric: Metric, quantile: Fraction) -> None:
    limit = LatencyLimit.parse(keyword, "500ms")
    assert (limit.metric, limit.quantile, limit.limit_s, limit.name) == (metric, quantile, 0.5, keyword)


@pytest.mark.parametrize(
    ("one", "other"), [("e2e_p95", "e2e_p95_0"), ("ttft_p5", "ttft_p05"), ("itl_p1_50", "itl_p01_5")]
)
def test_two_keywords_of_one_percentile_are_refused(one: str, other: str) -> None:
    with pytest.raises(RequirementError) as refused:
        declared_limits({one: "1s", "e2e_p99": "2s", other: "3s"})
    assert str(refused.value) == f"{one} and {other} limit the same percentile: leave one of them out"


@pytest.mark.parametrize(
    "keyword", ["ttft_p101", "ttft_p100", "ttft_p0", "ttft_p", "ttft_95", "latency_p95", "ttft_p-5"]
)
def test_what_is_no_percentile_is_refused(keyword: str) -> None:
    with pytest.raises(RequirementError, match=f"{keyword} is no latency limit"):
        LatencyLimit.parse(keyword, 1)


def test_lengths() -> None:
    assert Length.parse(256, "input_tokens") == Length.fixed(256)
    assert Length.parse("256", "input_tokens") == Length.fixed(256)
    uniform = Length.parse("uniform:128-512", "input_tokens")
    assert (uniform.kind, uniform.low, uniform.high, uniform.mean) == (LengthKind.UNIFORM, 128, 512, 320)
    drawn = Length.parse("lognormal:mean=256,cv=0.8,high=2048", "input_tokens")
    assert (drawn.kind, drawn.low, drawn.high, drawn.mean, drawn.cv) == (LengthKind.LOGNORMAL, 1, 2048, 256, 0.8)


@pytest.mark.parametrize(
    "text",
    [0, -1, 2.5, "many", "uniform:5-2", "uniform:0-4", "lognormal:mean=5", "lognormal:mean=9,cv=1,high=5"]
    + ["lognormal:mean=5,cv=1,high=9,sd=1", "lognormal:mean=x,cv=1,high=9"],
)
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(RequirementError, match="input_tokens"):
        Length.parse(text, "input_tokens")


def test_the_design_rate_is_shared_by_the_replicas_that_fit() -> None:
    requirement = Requirement("chat", qps=Fraction(10), gpus=4, gpus_per_replica=2)
    assert requirement.replicas == 2
    assert requirement.design_rate == Fraction(13, 2)


@pytest.mark.parametrize(
    ("declared", "name", "thresholds"),
    [
        ({"goodput": "95%", "ttft": "500ms", "tpot": "50ms"}, "goodput_95", {"ttft": 0.5, "tpot": 0.05}),
        ({"e2e": 20, "goodput": 0.999, "ttft": "1s"}, "goodput_99_9", {"ttft": 1.0, "e2e": 20.0}),
        # A percentile's threshold counts too; of several that of the highest; a bare one comes before them.
        ({"goodput": "90%", "ttft_p50": "1s", "ttft_p99": "3s"}, "goodput_90", {"ttft": 3.0}),
        ({"goodput": "90%", "ttft_p99": "3s", "ttft_p50": "1s", "ttft": "2s"}, "goodput_90", {"ttft": 2.0}),
    ],
)
def test_goodput_has_one_threshold_per_latency(declared: dict[str, Any], name: str, thresholds: Any) -> None:
    slo = Slo(declared_limits(declared))
    found = slo.goodput
    assert found is not None
    assert (found.name, dict(found.thresholds)) == (name, thresholds)
    assert slo.good == found.thresholds
    assert goodput_percent(found.name) == found.quantile * 100
    assert [limit.name for limit in slo.percentiles] == [word for word in declared if "_p" in word]


def test_without_goodput_the_percentiles_say_what_a_good_request_keeps() -> None:
    slo = Slo(declared_limits({"itl_p99": "50ms", "e2e_p95": "20s", "ttft_p95": "1s"}))
    assert slo.goodput is None
    assert slo.good == (Threshold(Metric.TTFT, 1.0), Threshold(Metric.E2E, 20.0))
    assert Slo().good == ()


def test_a_limit_says_when_it_is_known_and_what_it_is_about() -> None:
    ttft, itl, both = (
        declared_limits({"ttft_p95": "1s"})
        + declared_limits({"itl_p95": "1s"})
        + declared_limits({"goodput": "95%", "ttft": "1s", "e2e": "9s"})
    )
    assert [each.at_first for each in (ttft, itl, both)] == [True, False, False]
    assert [each.of_gaps for each in (ttft, itl, both)] == [False, True, False]
    assert (ttft.most, both.most) == (1.0, 1.0)
    assert isinstance(both, GoodputLimit)
    assert both.apart_from(Metric.TTFT) == GoodputLimit(both.quantile, (Threshold(Metric.E2E, 9.0),))
    assert declared_limits({"goodput": "95%", "ttft": "1s"})[0].at_first


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"ttft": "500ms"}, "ttft='500ms' has no percentile: write ttft_p95='500ms', or add goodput=\"95%\""),
        ({"goodput": "95%"}, 'goodput needs what good requests keep: add ttft="500ms", tpot="50ms" or e2e="20s"'),
        ({"goodput": "95%", "itl": "50ms", "ttft": "1s"}, "itl does not go with goodput, which counts requests"),
        ({"goodput": "95%", "itl_p99": "50ms", "ttft": "1s"}, "itl_p99 does not go with goodput"),
        ({"goodput": 95, "ttft": "1s"}, "goodput must lie between 0 and 1"),
        ({"goodput": "100%", "ttft": "1s"}, "goodput must be a share above 0% and below 100%"),
        ({"goodput": 0, "ttft": "1s"}, "goodput must be a share above 0%"),
        ({"goodput": Fraction(1, 3), "ttft": "1s"}, "goodput must be a share above 0%"),
        ({"goodput": "most", "ttft": "1s"}, "goodput must be a number, not 'most'"),
        ({"goodput": "95%", "ttft": "soon"}, "ttft must be a duration"),
        ({"goodput": "95%", "ttft": 500}, "ttft=500 needs a unit"),
        ({"goodput_p95": "1s"}, "goodput_p95 is no latency limit"),
    ],
)
def test_goodput_and_thresholds_that_do_not_fit_are_refused_in_one_line(declared: Any, message: str) -> None:
    with pytest.raises(RequirementError) as refused:
        declared_limits(declared)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
