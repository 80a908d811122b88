"""A result -> the numbers of its charts of latency against rate and of everything over time.

The Structs are the JSON that the page embeds. The scripts in ``assets`` read them by field name, or by position if a
Struct is `array_like`. On the page a phase is one measuring window as a whole, and a window is one slice of it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import msgspec

from pytest_gpucap.report.formatting import known, percentile_name, shown_bound, significant
from pytest_gpucap.requirement import limited_percentile
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Sample
from pytest_gpucap.results.result import DeclaredSlo, Result
from pytest_gpucap.results.telemetry import TelemetryOverTime
from pytest_gpucap.results.windows import WindowId

_P95_FROM: Final = 70
"""Timelines hold medians and p95s; a limit at this percentile or above is drawn with the p95."""


class PhaseLabel(msgspec.Struct, frozen=True, array_like=True):
    """What a tooltip says of a phase: its name, its load, ``open`` or ``closed``, and mean requests in flight."""

    name: str
    load: str
    kind: str
    in_flight: float


class LimitLine(msgspec.Struct, frozen=True, array_like=True):
    """A limit in seconds, with the text beside its line."""

    limit_s: float
    text: str


class MetricLimitLine(LimitLine, frozen=True, array_like=True):
    """A limit line of the chart over time, where several metrics share one strip."""

    metric: str


class CurvePoint(msgspec.Struct, frozen=True, array_like=True):
    """Rate in requests per second, latency in seconds, and the index of the phase that both are of."""

    rate_rps: float
    latency_s: float
    phase: int


class CurveSeries(msgspec.Struct, frozen=True):
    """One percentile against rate.

    Attributes:
        points: one for each phase, by rising requests in flight.
        joined: a line runs through the points.
        windows: one point for each window; empty where every phase has only one.
    """

    name: str
    metric: str
    limits: list[LimitLine]
    points: list[CurvePoint]
    joined: bool
    windows: list[CurvePoint]


class RateBand(msgspec.Struct, frozen=True):
    """The sustainable rate with its interval, in requests per second; None is an open end."""

    value: float | None
    low: float | None
    high: float | None


class CurveChart(msgspec.Struct, frozen=True):
    """Latency against rate.

    Attributes:
        line: the phases that `CurveSeries.points` count.
        phases: the phases that `CurveSeries.windows` count. They differ from `line` in a sweep only.
        rate: the sustainable rate; None where there is none.
        design: the design rate; None without a budget.
    """

    series: list[CurveSeries]
    line: list[PhaseLabel]
    phases: list[PhaseLabel]
    rate: RateBand | None
    design: float | None


class StripLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a strip.

    Attributes:
        metric: of a latency.
        telemetry: `data` has a value for each of `StripChart.t`; otherwise for each of `StripChart.client_t`.
        data: the values, None for a gap.
        pairs: (seconds, value) where the line has times of its own, in place of `data`.
    """

    name: str
    metric: str | None = None
    telemetry: bool = False
    data: list[float | None] | None = None
    pairs: list[tuple[float, float | None]] | None = None


class Strip(msgspec.Struct, frozen=True):
    """One of the charts that share a time axis."""

    title: str
    unit: str
    series: list[StripLine]


class PhaseBand(msgspec.Struct, frozen=True, array_like=True):
    """When a phase began and ended, in seconds from the first one, and its name."""

    start_s: float
    end_s: float
    name: str


class StripChart(msgspec.Struct, frozen=True):
    """Everything over time. Times are seconds from the start of the first phase."""

    strips: list[Strip]
    limits: list[MetricLimitLine]
    t: list[float]
    client_t: list[float]
    bands: list[PhaseBand]


@dataclass(frozen=True, slots=True)
class ChartPhase:
    """One measuring window as a whole: the slices that it was recorded in, in the order of time."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def window(self) -> WindowId:
        """Which window it was."""
        return self.samples[0].window.whole

    @property
    def kind(self) -> str:
        """``open`` or ``closed``."""
        return self.samples[0].kind

    @property
    def load(self) -> str:
        """What was asked of the server: ``64 in flight``, ``15.6 req/s offered``."""
        first = self.samples[0]
        if first.kind == "closed":
            return f"{first.concurrency} in flight"
        return "open loop" if first.offered_rps is None else f"{significant(first.offered_rps)} req/s offered"

    @property
    def in_flight(self) -> float:
        """Requests in flight, mean."""
        return statistics.fmean(known(sample.in_flight_mean) or 0.0 for sample in self.samples)

    @property
    def label(self) -> PhaseLabel:
        """For the tooltip."""
        return PhaseLabel(self.name, self.load, self.kind, four_figures(self.in_flight))


@dataclass(frozen=True, slots=True)
class DrawnLatency:
    """A latency to draw: that of a limit, or a usual one where no limits are declared.

    Attributes:
        percent: the percentile that was declared, such as 99.9.
        limit_s: None where no limit is declared.
    """

    metric: str
    percent: float
    limit_s: float | None

    @property
    def recorded(self) -> int:
        """The recorded percentile that stands for it: the nearest one that is not below, or the highest."""
        return next((kept for kept in KEPT_PERCENTILES if kept >= self.percent - 1e-7), max(KEPT_PERCENTILES))

    @property
    def name(self) -> str:
        """``p95 E2E``."""
        return percentile_name(self.metric, self.recorded)

    @property
    def limit_text(self) -> str:
        """``p95 E2E limit``, by the percentile that was declared."""
        return f"{percentile_name(self.metric, self.percent)} limit"

    @property
    def name_over_time(self) -> str:
        """``p95 E2E``, by the percentile that stands for it in a timeline."""
        return percentile_name(self.metric, self._percent_over_time)

    @property
    def column(self) -> str:
        """Its column in `Sample.timeline`."""
        return f"{self.metric}_p{self._percent_over_time}_s"

    @property
    def _percent_over_time(self) -> int:
        return 95 if self.recorded >= _P95_FROM else 50

    def of(self, sample: Sample) -> float | None:
        """In seconds; None where the sample has none."""
        latency = sample.latencies.get(self.metric)
        return None if latency is None else known(latency.percentile(self.recorded))


def chart_phases(samples: Iterable[Sample]) -> list[ChartPhase]:
    """The phases in the order in which they ran. A repeated name gets a number."""
    runs: list[list[Sample]] = []
    for sample in sorted(samples, key=lambda each: each.start_s):
        if runs and _continues(runs[-1][-1], sample):
            runs[-1].append(sample)
        else:
            runs.append([sample])
    seen: Counter[str] = Counter()
    found = []
    for run in runs:
        name = run[0].window.whole.text
        seen[name] += 1
        found.append(ChartPhase(name if seen[name] == 1 else f"{name} #{seen[name]}", tuple(run)))
    return found


def _continues(before: Sample, after: Sample) -> bool:
    """Both are slices of one window. Where a window runs again, its slices count from 1 again."""
    return (
        before.window.whole == after.window.whole
        and before.window.slice < after.window.slice
        and before.kind == after.kind
        and before.concurrency == after.concurrency
        and before.offered_rps == after.offered_rps
    )


def drawn_latencies(slo: DeclaredSlo) -> list[DrawnLatency]:
    """The latencies that limits and goodput are set on; p95 of TTFT and E2E when there are none."""
    found = []
    for keyword, limit_s in slo.percentiles.items():
        if limited := limited_percentile(keyword):
            found.append(DrawnLatency(limited.metric, float(limited.percent), limit_s))
    return found or [DrawnLatency("ttft", 95.0, None), DrawnLatency("e2e", 95.0, None)]


def curve_chart(result: Result) -> CurveChart | None:
    """Latency against rate: a point for each phase, a faint one for each window; None where there is no point."""
    phases = chart_phases(result.samples)
    line = chart_phases(result.points) if result.points else phases
    # One recorded percentile can represent several limits. They share a line.
    by_name: dict[str, list[DrawnLatency]] = {}
    for each in drawn_latencies(result.slo):
        by_name.setdefault(each.name, []).append(each)
    series = [_curve_series(limits, line, phases, joined=bool(result.points)) for limits in by_name.values()]
    # A limit without a figure keeps its line: it may be the one that binds.
    series = [each for each in series if each.points or each.windows or each.limits]
    if not any(each.points or each.windows for each in series):
        return None
    # No estimate is drawn where nothing was measured.
    rate = result.sustainable_rate if shown_bound(result) is None else None
    return CurveChart(
        series=series,
        line=[phase.label for phase in line],
        phases=[phase.label for phase in phases],
        rate=None if rate is None else RateBand(compact(rate.value), compact(rate.low), compact(rate.high)),
        design=compact(result.design_rate_rps),
    )


def _curve_series(
    limits: Sequence[DrawnLatency], line: Sequence[ChartPhase], phases: Sequence[ChartPhase], *, joined: bool
) -> CurveSeries:
    """One recorded percentile, with all the limits that it stands for."""
    latency = limits[0]
    points = [
        # A phase shows the mean rate of its windows, and the median of their percentiles.
        CurvePoint(
            four_figures(statistics.fmean(rate for rate, _ in pairs)),
            four_figures(statistics.median(value for _, value in pairs)),
            index,
        )
        for index, phase in enumerate(line)
        if (pairs := _pairs(phase, latency))
    ]
    # By requests in flight, so that the line bends back where more load means less throughput.
    points.sort(key=lambda point: line[point.phase].in_flight)
    several = any(len(phase.samples) > 1 for phase in phases)
    return CurveSeries(
        name=latency.name,
        metric=latency.metric,
        limits=[LimitLine(four_figures(each.limit_s), each.limit_text) for each in limits if each.limit_s],
        points=points,
        joined=joined or _rising(points),
        windows=[
            CurvePoint(four_figures(rate), four_figures(value), index)
            for index, phase in enumerate(phases if several else ())
            for rate, value in _pairs(phase, latency)
        ],
    )


def _pairs(phase: ChartPhase, latency: DrawnLatency) -> list[tuple[float, float]]:
    """(req/s, seconds) of each window that has both."""
    return [
        (rate, value)
        for sample in phase.samples
        if (value := latency.of(sample)) and (rate := known(sample.completed_rps))
    ]


def _rising(points: Sequence[CurvePoint]) -> bool:
    """Whether a line through them is a curve. Phases that are not in order of load give no curve."""
    return len(points) > 2 and all(a.rate_rps <= b.rate_rps for a, b in pairwise(points))  # noqa: PLR2004 - two points are no curve


def strip_chart(result: Result) -> StripChart | None:
    """Everything over time on one axis. A strip without figures is left out; None if no strip is left."""
    phases = chart_phases(result.samples)
    if not phases:
        return None
    start_s = phases[0].samples[0].start_s
    client = _client_timeline(phases, start_s)
    latencies = drawn_latencies(result.slo)
    strips = [strip for strip in _strips(client, latencies, result.series, phases) if strip.series]
    if not strips:
        return None
    return StripChart(
        strips=strips,
        limits=[
            MetricLimitLine(four_figures(each.limit_s), each.limit_text, each.metric)
            for each in latencies
            if each.limit_s
        ],
        t=[] if result.series is None else [_moment(t - start_s) for t in result.series.t_s],
        client_t=client.t,
        bands=[
            PhaseBand(
                _moment(phase.samples[0].start_s - start_s), _moment(phase.samples[-1].end_s - start_s), phase.name
            )
            for phase in phases
        ],
    )


@dataclass(frozen=True, slots=True)
class _ClientTimeline:
    """What the load generator saw.

    Attributes:
        t: seconds from the start of the first phase.
        columns: by name, each as long as `t`; columns without a figure are left out.
    """

    t: list[float]
    columns: dict[str, list[float | None]]


def _strips(
    client: _ClientTimeline,
    latencies: Sequence[DrawnLatency],
    telemetry: TelemetryOverTime | None,
    phases: Sequence[ChartPhase],
) -> list[Strip]:
    """All strips, those without figures too."""
    columns = {} if telemetry is None else telemetry.columns

    def read(factor: float = 1, **names: str) -> list[StripLine]:
        """The columns that telemetry has, each under the name that is shown."""
        return [
            StripLine(shown, telemetry=True, data=[compact(None if v is None else v * factor) for v in columns[name]])
            for name, shown in names.items()
            if name in columns
        ]

    seen = [
        StripLine(each.name_over_time, metric=each.metric, data=client.columns[each.column])
        for each in {each.column: each for each in latencies}.values()
        if each.column in client.columns
    ]
    in_flight = [StripLine("in flight", data=client.columns["in_flight"])] if "in_flight" in client.columns else []
    return [
        Strip("Latency", "s", seen),
        Strip("Requests", "", [*in_flight, *read(running="running", waiting="waiting")]),
        Strip("Output", "tok/s", read(output_tokens_per_s="output tokens") or [_output_tokens(phases)]),
        Strip("KV cache", "%", read(100, kv_cache_usage="KV cache used")),
        Strip("GPU use", "%", read(100, gpu_utilisation="GPU utilisation")),
        Strip("SM clock", "MHz", read(sm_clock_mhz="SM clock")),
        Strip("Power", "W", read(power_w="power")),
        Strip(
            "CPU",
            "cores",
            read(server_cpu_cores="server CPU", other_cpu_cores="other processes", host_cpu_cores="whole host"),
        ),
        Strip("CPU pressure", "%", read(100, cpu_pressure="a task waited for a core")),
    ]


def _client_timeline(phases: Sequence[ChartPhase], start_s: float) -> _ClientTimeline:
    """The windows' timelines one after the other, with a gap where phases do not touch."""
    lines = [(each, _timeline(each)) for phase in phases for each in phase.samples]
    names = sorted({name for _, line in lines for name in line if name != "t_s"})
    times: list[float] = []
    columns: dict[str, list[float | None]] = {name: [] for name in names}
    before_s = -math.inf
    for sample, line in lines:
        if math.isfinite(before_s) and sample.start_s - before_s > 1e-3:  # noqa: PLR2004 - a clock's jitter
            times.append(_moment((before_s + sample.start_s) / 2 - start_s))
            for column in columns.values():
                column.append(None)
        here = [t for t in line.get("t_s", ()) if t is not None]
        times += [_moment(t - start_s) for t in here]
        for name, column in columns.items():
            column += [compact(value) for value in line.get(name) or [None] * len(here)]
        before_s = sample.end_s
    return _ClientTimeline(
        times, {name: column for name, column in columns.items() if any(value is not None for value in column)}
    )


def _timeline(sample: Sample) -> Mapping[str, Sequence[float | None]]:
    """The window's timeline. If the result file has none: one level, from the window's percentiles."""
    if sample.timeline:
        return sample.timeline
    line: dict[str, Sequence[float | None]] = {
        "t_s": [sample.start_s, sample.end_s],
        "in_flight": [sample.in_flight_mean] * 2,
    }
    for metric, latency in sample.latencies.items():
        if metric != "itl":
            line |= {f"{metric}_p50_s": [latency.p50_s] * 2, f"{metric}_p95_s": [latency.p95_s] * 2}
    return line


def _output_tokens(phases: Sequence[ChartPhase]) -> StripLine:
    """Output tokens per second as the client counted them: one level for each window."""
    start_s = phases[0].samples[0].start_s
    pairs: list[tuple[float, float | None]] = []
    for phase in phases:
        for each in phase.samples:
            level = compact(each.output_tokens_per_s)
            pairs += [(_moment(each.start_s - start_s), level), (_moment(each.end_s - start_s), level)]
        pairs.append((_moment(phase.samples[-1].end_s - start_s), None))
    return StripLine("output tokens", pairs=pairs)


def compact(value: float | None) -> float | None:
    """The figure as a chart holds it; None for one that is not known."""
    found = known(value)
    return None if found is None else four_figures(found)


def four_figures(value: float) -> float:
    """Rounded to four significant figures, which is finer than a pixel."""
    rounded = float(f"{value:.4g}")
    # Without ".0", which would occur thousands of times on a large page.
    return int(rounded) if rounded.is_integer() else rounded


def _moment(seconds: float) -> float:
    return round(seconds, 2)
