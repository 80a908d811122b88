"""What the charts draw is what the results say."""

from __future__ import annotations

import statistics

import msgspec
import pytest

pytest.importorskip("jinja2")

from pytest_gpucap.report.formatting import limit_name
from pytest_gpucap.report.html.charts import (
    ChartPhase,
    CurveChart,
    StripChart,
    chart_phases,
    curve_chart,
    drawn_latencies,
    strip_chart,
)
from pytest_gpucap.report.html.distributions import SHOWN_PHASES, DistributionChart, distribution_charts
from pytest_gpucap.report.html.trend import trend_panels
from pytest_gpucap.results.measured import LatencyHistogram, Sample
from pytest_gpucap.results.result import DeclaredSlo, Result, ResultKind
from pytest_gpucap.results.windows import LEADING_UP, Phase, WindowId
from tests.report import pages


def result(kind: ResultKind = ResultKind.CHECK, name: str = "chat") -> Result:
    return next(each for each in pages.watched().results if each.kind is kind and each.name == name)


def curve_of(seen: Result) -> CurveChart:
    drawn = curve_chart(seen)
    assert drawn is not None
    return drawn


def strips_of(seen: Result) -> StripChart:
    drawn = strip_chart(seen)
    assert drawn is not None
    return drawn


def distributions_of(seen: Result) -> dict[str, DistributionChart]:
    drawn = distribution_charts(seen)
    assert drawn is not None
    return drawn


def with_limits(seen: Result, **limits: float) -> Result:
    return msgspec.structs.replace(seen, slo=msgspec.structs.replace(seen.slo, limits=limits))


def test_windows_of_a_phase_come_together_and_a_phase_that_comes_again_gets_a_number() -> None:
    sample = result().samples[0]
    hold, open_loop = WindowId(Phase.HOLD, 1), WindowId(Phase.OPEN_LOOP)

    def window(window: WindowId, start_s: float, kind: str = "closed", rate_rps: float | None = None) -> Sample:
        return msgspec.structs.replace(
            sample, window=window, start_s=start_s, end_s=start_s + 1, kind=kind, offered_rps=rate_rps
        )

    found = chart_phases(
        [
            window(hold.part(2, 3), 1),
            window(hold.part(1, 3), 0),
            window(hold.part(3, 3), 2),
            window(open_loop.part(1, 2), 3, "open", 4.0),
            window(open_loop.part(2, 2), 4, "open", 4.0),
            window(hold.part(1, 3), 6),
            window(hold.part(1, 3), 7),
            window(WindowId(Phase.SATURATION), 8),
            window(WindowId(Phase.SATURATION), 9),
        ]
    )
    assert [(phase.name, len(phase.samples)) for phase in found] == [
        *(("hold 1", 3), ("open loop", 2), ("hold 1 #2", 1), ("hold 1 #3", 1)),
        *(("saturation", 1), ("saturation #2", 1)),
    ]
    assert found[0].load == f"{sample.concurrency} in flight"
    assert found[1].load == "4 req/s offered"


def test_the_curve_has_a_point_for_each_phase_and_one_for_each_window() -> None:
    seen = result()
    drawn = curve_of(seen)
    phases = chart_phases(seen.samples)
    (e2e,) = [series for series in drawn.series if series.metric == "e2e"]
    assert [(limit.limit_s, limit.text) for limit in e2e.limits] == [(3, "p95 E2E limit")]
    assert len(e2e.windows) == len(seen.samples)
    assert len(e2e.points) == len(phases)
    for point in e2e.points:
        samples = phases[point.phase].samples
        assert point.rate_rps == pytest.approx(statistics.fmean(each.completed_rps for each in samples), rel=1e-3)
        median_s = statistics.median(each.latencies["e2e"].p95_s for each in samples)
        assert point.latency_s == pytest.approx(median_s, rel=1e-3)


def test_a_figure_that_nobody_knows_is_no_point() -> None:
    seen = result()
    first, *others = seen.samples
    unknown = msgspec.structs.replace(first, completed_rps=float("nan"))
    drawn = curve_of(msgspec.structs.replace(seen, samples=(unknown, *others)))
    assert len(drawn.series[0].windows) == len(others)


def test_a_sweep_draws_its_points() -> None:
    swept = result(ResultKind.SWEEP, "curve")
    drawn = curve_of(swept)
    points = sorted(swept.points, key=lambda point: point.start_s)
    assert [label.name for label in drawn.line] == [point.window.text for point in points]
    assert all(series.joined for series in drawn.series)


def test_phases_out_of_order_are_not_joined() -> None:
    seen = result()
    by_load = sorted(chart_phases(seen.samples), key=lambda phase: phase.in_flight)
    factors = (5.0, 1.0, 3.0, 2.0)
    assert len(by_load) >= len(factors)

    def at_rate(phase: ChartPhase, rate_rps: float) -> list[Sample]:
        return [msgspec.structs.replace(each, completed_rps=rate_rps) for each in phase.samples]

    mixed = [sample for pair in zip(by_load, factors, strict=False) for sample in at_rate(*pair)]
    drawn = curve_of(msgspec.structs.replace(seen, samples=tuple(mixed)))
    assert not any(series.joined for series in drawn.series)


@pytest.mark.parametrize(
    ("keyword", "name"),
    [("e2e_p95", "p95 E2E"), ("itl_p99_9", "p99 ITL"), ("ttft_p80", "p90 TTFT"), ("tpot_p50", "p50 TPOT")],
)
def test_a_limit_is_drawn_with_the_recorded_percentile_that_is_not_below_it(keyword: str, name: str) -> None:
    (found,) = drawn_latencies(DeclaredSlo({keyword: 1.0}, 0.01))
    assert found.name == name
    assert found.limit_text == f"{limit_name(keyword)} limit"


def test_limits_that_share_a_recorded_percentile_share_a_line() -> None:
    drawn = curve_of(with_limits(result(), e2e_p99=3.0, e2e_p99_9=5.0, e2e_p50=1.0))
    assert [series.name for series in drawn.series] == ["p99 E2E", "p50 E2E"]
    limits = [(limit.limit_s, limit.text) for limit in drawn.series[0].limits]
    assert limits == [(3, "p99 E2E limit"), (5, "p99.9 E2E limit")]


def test_windows_and_telemetry_share_one_time_axis() -> None:
    seen = result()
    assert seen.series is not None
    start_s = seen.samples[0].start_s
    drawn = strips_of(seen)
    assert drawn.t == pytest.approx([t - start_s for t in seen.series.t_s], abs=0.01)
    length_s = seen.samples[-1].end_s - start_s
    assert 0 < drawn.client_t[0] < drawn.client_t[-1] < length_s
    assert drawn.bands[0].start_s == 0
    assert drawn.bands[-1].end_s == pytest.approx(length_s, abs=0.01)
    for strip in drawn.strips:
        for line in strip.series:
            assert line.data is not None
            assert len(line.data) == len(drawn.t if line.telemetry else drawn.client_t)


def test_between_phases_there_is_a_gap_in_what_clients_saw() -> None:
    drawn = strips_of(result())
    latency = drawn.strips[0].series[0].data
    assert latency is not None
    for before, after in zip(drawn.bands, drawn.bands[1:], strict=False):
        if after.start_s - before.end_s > 0.01:
            between = [at for at, t in enumerate(drawn.client_t) if before.end_s <= t <= after.start_s]
            assert [latency[at] for at in between] == [None]


@pytest.mark.parametrize("name", ["chat", "launch day"])
def test_distributions_hold_every_request_once(name: str) -> None:
    seen = result(name=name)
    for metric, found in distributions_of(seen).items():
        for series, phase in zip(found.series, chart_phases(seen.samples), strict=True):
            assert sum(series.shares) == pytest.approx(1, abs=0.01)
            assert series.edges == sorted(series.edges)
            assert len(series.edges) == len(series.shares) + 1
            latencies = [sample.latencies[metric] for sample in phase.samples]
            counted = [latency.count for latency in latencies]
            assert series.count == (counted[0] if metric == "itl" else sum(counted))
            medians = [latency.p50_s for latency in latencies]
            assert series.edges[0] <= min(medians) <= max(medians) <= series.edges[-1]


def test_phases_that_lead_up_to_something_are_shown_last() -> None:
    swept = result(ResultKind.SWEEP, "curve")
    phases = {phase.name: phase for phase in chart_phases(swept.samples)}
    series = distributions_of(swept)["ttft"].series
    assert len(series) > SHOWN_PHASES
    shown = [phases[each.name].window.phase for each in series if each.shown]
    assert len(shown) == SHOWN_PHASES
    assert not LEADING_UP & set(shown)
    assert LEADING_UP & {phase.window.phase for phase in phases.values()}


def test_few_values_are_counted_in_wider_bins() -> None:
    def thinned(sample: Sample) -> Sample:
        histogram = sample.histograms["e2e"]
        few = LatencyHistogram(histogram.edges_s, tuple(min(1, count) for count in histogram.counts))
        return msgspec.structs.replace(sample, histograms={**sample.histograms, "e2e": few})

    seen = result()
    fewer = msgspec.structs.replace(seen, samples=tuple(map(thinned, seen.samples)))
    before, after = (distributions_of(each)["e2e"] for each in (seen, fewer))
    # An open loop's latencies spread over many bins.
    many, few = (next(each for each in found.series if each.name == "design rate 1") for found in (before, after))
    assert len(few.shares) < len(many.shares)
    assert after.step == "26%"
    assert sum(few.shares) == pytest.approx(1, abs=0.01)


def test_a_trend_says_when_it_changed_by_how_much_and_what_else_changed() -> None:
    other = pages.trend(3, "somebody else's", "tests/other.py::test")
    first, second = trend_panels([other, pages.trend(30)], pages.simulated().results)
    assert (first.name, second.name) == ("chat", "somebody else's")
    assert first.chart.design == 390
    assert second.chart.design is None
    (change,) = first.changes
    assert change.name == "21 Jan 2024, 03:17 UTC"
    assert change.value == "-12.0% (-13.0% to -11.0%); changed there: server vLLM 0.26.0 -> vLLM 0.27.0"
    levels = [(level.first, level.last, level.rate_rps) for level in first.chart.levels]
    assert levels == [(0, 19, 500.0), (20, 29, 440.0)]
    assert trend_panels([msgspec.structs.replace(other, points=())]) == []
