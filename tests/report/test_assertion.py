"""A failed comparison of a measured figure says what the figure is."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import msgspec
import pytest

from pytest_gpucap.report.assertion import explain
from pytest_gpucap.results.measured import Curve, Interval, Outcome
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind
from tests.results import made


def test_a_count_of_gpus_gives_the_arithmetic() -> None:
    lines = explain("<=", 3, 2, [made.check()])
    assert lines == [
        "3 <= 2: gpus_required of chat: 100 req/s x 1.3 / 52.1 req/s = 2.50",
        "sustainable rate 52.1 (50.9-53.4) req/s per replica (95% interval)",
        "bound by: p95 E2E, limit 20 s",
        "bottleneck: KV cache: KV cache 99% full",
        "try: --kv-cache-dtype fp8",
    ]


def test_it_fits_what_pytest_shows() -> None:
    bottleneck = Bottleneck(BottleneckKind.KV_CACHE, ("e" * 500,) * 9, "a" * 500)
    result = msgspec.structs.replace(made.check(name="n" * 300), bottleneck=bottleneck)
    lines = explain("<=", 3, 2, [result])
    assert lines is not None
    assert len(lines) <= 8
    assert sum(map(len, lines)) <= 640


@pytest.mark.parametrize(
    ("figure", "name"),
    [
        (50.9, "sustainable_rate.low"),
        (52.1, "sustainable_rate.value"),
        (-0.178, "slack.high"),
        (65.0, "design_rate_rps"),
        (0.48, "ttft p95_s (10 req/s (1/3))"),
    ],
)
def test_a_float_is_known_by_its_value(figure: float, name: str) -> None:
    lines = explain(">=", figure * (1 + 1e-12), 1000.0, [made.check()])
    assert lines is not None
    assert f": {name} of chat" in lines[0]


def test_either_side_may_be_the_figure() -> None:
    lines = explain("<", 99.0, 50.9, [made.check()])
    assert lines is not None
    assert lines[0].startswith("99.0 < 50.9: sustainable_rate.low of chat")


def test_the_latest_measurement_is_asked_first() -> None:
    lines = explain("<=", 3, 2, [made.check(name="first"), made.check(name="second")])
    assert lines is not None
    assert "of second" in lines[0]


def test_a_simulated_figure_says_so() -> None:
    lines = explain("<=", 3, 2, [msgspec.structs.replace(made.check(), simulated=True)])
    assert lines is not None
    assert "(SIMULATED)" in lines[0]


@pytest.mark.parametrize(
    ("operator", "left", "right"),
    [
        ("in", 3, [1, 2]),  # no comparison of figures
        ("is", 3, None),
        ("==", 7, 8),  # no figure of this test
        ("==", 52.2, 52.3),
        ("==", True, False),
        ("<", float("nan"), 1.0),
        ("==", "3", "2"),
        ("==", [3], [2]),
    ],
)
def test_other_comparisons_are_left_to_pytest(operator: str, left: object, right: object) -> None:
    assert explain(operator, left, right, [made.check()]) is None


def test_a_test_that_measured_nothing_is_left_to_pytest() -> None:
    assert explain("<=", 3, 2, []) is None


def test_results_stay_plain() -> None:
    measurement = made.MEASUREMENT
    assert type(measurement.gpus_required) is int
    assert json.dumps(
        [measurement.gpus_required, measurement.sustainable_rate.low if measurement.sustainable_rate else 0]
    )
    for result in (measurement, made.FAILED, made.SAMPLES[0], Curve(measurement, made.SAMPLES, None, None)):
        assert pickle.loads(pickle.dumps(result)) == result
        assert copy.deepcopy(result) == result


def test_results_name_themselves_in_a_few_words() -> None:
    measurement = made.MEASUREMENT
    assert repr(measurement) == "<Measurement of chat: 52.1 (50.9-53.4) req/s per replica, bound by e2e_p95>"
    assert repr(replace(measurement, sustainable_rate=None)) == "<Measurement of chat: no sustainable rate>"
    assert repr(made.FAILED).startswith("<Verdict on chat: FAIL, 3 GPUs needed, budget 2; 52.1 (50.9-53.4) req/s")
    assert repr(made.SAMPLES[0]) == "<Sample 10 req/s (1/3): 10 req/s, 40 in flight>"
    assert repr(Curve(measurement, made.SAMPLES, None, None)).startswith("<Curve of chat: 12 points, 52.1 (50.9")


def test_gpus_are_counted_only_where_a_rate_was_declared_and_found() -> None:
    assert made.MEASUREMENT.gpus_required == 3
    assert Curve(made.MEASUREMENT, (), None, None).gpus_required == 3
    assert replace(made.MEASUREMENT, sustainable_rate=Interval(65.0, 60.0, 70.0)).gpus_required == 2
    with pytest.raises(ValueError, match=r"chat: gpus_required needs a rate: gpucap\(qps=\.\.\.\) or --target-qps"):
        _ = replace(made.MEASUREMENT, budgeted=False).gpus_required
    with pytest.raises(ValueError, match="no sustainable rate was found"):
        _ = replace(made.MEASUREMENT, sustainable_rate=None).gpus_required
    assert made.measured().gpus_required is None
    assert made.check(Outcome.INVALID).gpus_required is None
