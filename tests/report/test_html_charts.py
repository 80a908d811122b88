"""What the charts draw is what the records say."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

pytest.importorskip("jinja2")

from pytest_gpucap.report.formatting import limit_name
from pytest_gpucap.report.html import charts
from pytest_gpucap.report.html.hero import title
from pytest_gpucap.report.html.spread import spread
from pytest_gpucap.report.html.trend import trends
from tests.report import pages


def record(kind: str = "check", name: str = "chat") -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in pages.watched()["results"] if each["kind"] == kind and each["name"] == name
    )
    return found


def test_windows_of_a_phase_come_together_and_a_phase_that_comes_again_gets_a_number() -> None:
    sample = record()["samples"][0]

    def window(label: str, start_s: float, **more: Any) -> dict[str, Any]:
        return {**sample, "label": label, "start_s": start_s, "end_s": start_s + 1, **more}

    found = charts.phases(
        [
            window("hold 1 (2/3)", 1),
            window("hold 1 (1/3)", 0),
            window("hold 1 (3/3)", 2),
            window("open loop (1/2)", 3, kind="open", offered_rps=4.0),
            window("open loop (2/2)", 4, kind="open", offered_rps=4.0),
            window("hold 1 (1/3)", 6),
            window("hold 1 (1/3)", 7),
        ]
    )
    assert [(phase.name, len(phase.samples)) for phase in found] == [
        *(("hold 1", 3), ("open loop", 2), ("hold 1 #2", 1), ("hold 1 #3", 1)),
    ]
    assert found[0].load == f"{sample['concurrency']} in flight"
    assert found[1].load == "4 req/s offered"


def test_the_curve_has_a_point_a_phase_and_one_a_window() -> None:
    drawn = charts.curve(record())
    assert drawn is not None
    samples = record()["samples"]
    ran = charts.phases(samples)
    (e2e,) = [series for series in drawn["series"] if series["metric"] == "e2e"]
    assert e2e["limits"] == [[3, "p95 E2E limit"]]
    assert len(e2e["windows"]) == len(samples)
    for rate, latency, index in e2e["points"]:
        phase = ran[index]
        assert rate == pytest.approx(statistics.fmean(s["completed_rps"] for s in phase.samples), rel=1e-3)
        assert latency == pytest.approx(
            statistics.median(s["latencies"]["e2e"]["p95_s"] for s in phase.samples), rel=1e-3
        )


def test_a_sweep_draws_its_points() -> None:
    swept = record("sweep", "curve")
    drawn = charts.curve(swept)
    assert drawn is not None
    assert [label[0] for label in drawn["line"]] == [
        point["label"] for point in sorted(swept["points"], key=lambda point: point["start_s"])
    ]
    assert all(series["joined"] for series in drawn["series"])


def test_phases_out_of_order_are_not_joined() -> None:
    mixed = record()
    ran = charts.phases(mixed["samples"])
    for factor, phase in zip((5.0, 1.0, 3.0, 2.0), sorted(ran, key=lambda phase: phase.in_flight), strict=False):
        for sample in phase.samples:
            sample["completed_rps"] = factor  # type: ignore[index]
    drawn = charts.curve(mixed)
    assert drawn is not None
    assert not any(series["joined"] for series in drawn["series"])


@pytest.mark.parametrize(
    ("keyword", "name"),
    [("e2e_p95", "p95 E2E"), ("itl_p99_9", "p99 ITL"), ("ttft_p80", "p90 TTFT"), ("tpot_p50", "p50 TPOT")],
)
def test_a_limit_is_drawn_with_the_recorded_percentile_that_is_not_below_it(keyword: str, name: str) -> None:
    (found,) = charts.watched({"slo": {"limits": {keyword: 1.0}}})
    assert found.name == name
    assert found.limit_label == f"{limit_name(keyword)} limit"


def test_limits_that_share_a_recorded_percentile_share_a_line() -> None:
    seen = record()
    seen["slo"]["limits"] = {"e2e_p99": 3.0, "e2e_p99_9": 5.0, "e2e_p50": 1.0}
    drawn = charts.curve(seen)
    assert drawn is not None
    assert [series["name"] for series in drawn["series"]] == ["p99 E2E", "p50 E2E"]
    assert drawn["series"][0]["limits"] == [[3, "p99 E2E limit"], [5, "p99.9 E2E limit"]]


def test_windows_and_telemetry_share_one_time_axis() -> None:
    seen = record()
    start_s = seen["samples"][0]["start_s"]
    drawn = charts.strips(seen)
    assert drawn is not None
    assert drawn["t"] == pytest.approx([t - start_s for t in seen["series"]["t_s"]], abs=0.01)
    length_s = seen["samples"][-1]["end_s"] - start_s
    assert 0 < drawn["client_t"][0] < drawn["client_t"][-1] < length_s
    assert drawn["bands"][0][0] == 0
    assert drawn["bands"][-1][1] == pytest.approx(length_s, abs=0.01)
    for strip in drawn["strips"]:
        for series in strip["series"]:
            assert len(series["data"]) == len(drawn["t"] if series.get("telemetry") else drawn["client_t"])


def test_between_phases_there_is_a_hole_in_what_clients_saw() -> None:
    seen = record()
    drawn = charts.strips(seen)
    assert drawn is not None
    latency = drawn["strips"][0]["series"][0]["data"]
    for (_, end, _), (start, _, _) in zip(drawn["bands"], drawn["bands"][1:], strict=False):
        if start - end > 0.01:
            between = [at for at, t in enumerate(drawn["client_t"]) if end <= t <= start]
            assert [latency[at] for at in between] == [None]


@pytest.mark.parametrize("name", ["chat", "launch day"])
def test_distributions_hold_every_request_once(name: str) -> None:
    seen = record(name=name)
    drawn = spread(seen)
    assert drawn is not None
    for metric, found in drawn.items():
        for series, phase in zip(found["series"], charts.phases(seen["samples"]), strict=True):
            assert sum(series["shares"]) == pytest.approx(1, abs=0.01)
            assert series["edges"] == sorted(series["edges"])
            assert len(series["edges"]) == len(series["shares"]) + 1
            counted = [sample["latencies"][metric]["count"] for sample in phase.samples]
            assert series["count"] == (counted[0] if metric == "itl" else sum(counted))
            low = min(sample["latencies"][metric]["p50_s"] for sample in phase.samples)
            high = max(sample["latencies"][metric]["p50_s"] for sample in phase.samples)
            assert series["edges"][0] <= low <= high <= series["edges"][-1]


def test_few_values_are_counted_in_wider_bins() -> None:
    seen = record()
    before = spread(seen)
    for sample in seen["samples"]:
        histogram = sample["histograms"]["e2e"]
        histogram["counts"] = [min(1, count) for count in histogram["counts"]]
    after = spread(seen)
    assert before is not None
    assert after is not None
    assert len(after["e2e"]["series"][0]["shares"]) < len(before["e2e"]["series"][0]["shares"])
    assert after["e2e"]["step"] == "26%"
    assert sum(after["e2e"]["series"][0]["shares"]) == pytest.approx(1, abs=0.01)


def test_a_trend_says_when_it_changed_by_how_much_and_what_else_changed() -> None:
    document = pages.simulated()
    other = pages.trend(3, "somebody else's", "tests/other.py::test")
    first, second = trends([other, pages.trend(30)], document["results"])
    assert (first.name, second.name) == ("chat", "somebody else's")
    assert first.chart["design"] == 390
    assert second.chart["design"] is None
    (change,) = first.changes
    assert change.name == "21 Jan 2024, 03:17 UTC"
    assert change.value == "-12.0% (-13.0% to -11.0%); changed there: server vLLM 0.26.0 -> vLLM 0.27.0"
    assert first.chart["levels"] == [[0, 19, 500.0], [20, 29, 440.0]]
    assert trends([{**other, "points": []}]) == []


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["PASS"], ("The budget holds", "pass")),
        (["PASS", "PASS"], ("All 2 budgets hold", "pass")),
        (["PASS", "FAIL", "FAIL"], ("2 of 3 budgets do not hold", "fail")),
        (["FAIL", "INVALID"], ("1 of 2 budgets could not be measured", "invalid")),
        (["INCONCLUSIVE"], ("The budget is undecided", "inconclusive")),
        ([None, None], ("2 measurements", "none")),
        ([], ("0 measurements", "none")),
    ],
)
def test_the_title_says_the_worst(outcomes: list[str | None], said: tuple[str, str]) -> None:
    assert title([{"outcome": outcome} for outcome in outcomes]) == said
