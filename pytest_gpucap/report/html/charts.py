"""Records -> the numbers of the charts, as small as they can be and already in the form in which they are drawn."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from pytest_gpucap.report.formatting import limit_name, significant

Record = Mapping[str, Any]

_WINDOW_NUMBER: Final = re.compile(r" \(\d+/\d+\)$")
_KNOWN_QUANTILES: Final = (0.5, 0.9, 0.95, 0.99)
_TIMELINE_SPLIT: Final = 0.7
"""Over time there are medians and p95s; a limit from here up is drawn with the p95."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Consecutive windows of one phase: the procedure cuts each phase into a few."""

    name: str
    samples: tuple[Record, ...]

    @property
    def load(self) -> str:
        """What was asked of the server: ``64 in flight``, ``15.6 req/s``."""
        first = self.samples[0]
        if first["kind"] == "closed":
            return f"{first['concurrency']} in flight"
        offered = first["offered_rps"]
        return "open loop" if offered is None else f"{significant(offered)} req/s offered"

    @property
    def in_flight(self) -> float:
        """Requests in flight, mean."""
        return statistics.fmean(sample["in_flight_mean"] or 0.0 for sample in self.samples)


@dataclass(frozen=True, slots=True)
class Watched:
    """A latency to draw: a limit's metric and percentile, or a usual one where no limits are declared."""

    metric: str
    quantile: float
    limit_s: float | None

    @property
    def known(self) -> float:
        """The recorded percentile that stands for it: the nearest that is not below."""
        return next((q for q in _KNOWN_QUANTILES if q >= self.quantile - 1e-9), _KNOWN_QUANTILES[-1])

    @property
    def name(self) -> str:
        """``p95 E2E``."""
        return f"p{self.known * 100:.0f} {self.metric.upper()}"

    @property
    def limit_label(self) -> str:
        """``p95 E2E limit``, by the percentile that was declared."""
        return f"{limit_name(f'{self.metric}_p{self.quantile * 100:g}')} limit"

    @property
    def column(self) -> str:
        """Of a sample's timeline."""
        return f"{self.metric}_p{95 if self.known >= _TIMELINE_SPLIT else 50}_s"


def phases(samples: Iterable[Record]) -> list[Phase]:
    """The phases in the order in which they ran; a name that comes again gets a number."""
    runs: list[tuple[tuple[Any, ...], list[Record]]] = []
    for sample in sorted(samples, key=lambda each: each["start_s"]):
        name = _WINDOW_NUMBER.sub("", sample["label"])
        key = (name, sample["kind"], sample["concurrency"], sample["offered_rps"])
        restarted = sample["label"] in {each["label"] for each in runs[-1][1]} if runs else False
        if runs and runs[-1][0] == key and not restarted:
            runs[-1][1].append(sample)
        else:
            runs.append((key, [sample]))
    seen: dict[str, int] = {}
    found = []
    for (name, *_), group in runs:
        seen[name] = seen.get(name, 0) + 1
        found.append(Phase(name if seen[name] == 1 else f"{name} #{seen[name]}", tuple(group)))
    return found


def watched(record: Record) -> list[Watched]:
    """The latencies that limits are set on; p95 of TTFT and E2E when there are none."""
    limits = record["slo"]["limits"]
    found = []
    for keyword, limit_s in limits.items():
        metric, _, percent = keyword.partition("_p")
        found.append(Watched(metric, float(percent.replace("_", ".")) / 100, limit_s))
    return found or [Watched("ttft", 0.95, None), Watched("e2e", 0.95, None)]


def curve(record: Record) -> dict[str, Any] | None:
    """Latency against rate: a point a phase, a faint one a window, and what they are held against."""
    ran = phases(record["samples"])
    line = phases(record["points"]) if record.get("points") else ran
    series = []
    # Limits at percentiles that one recorded percentile stands for are held against one line.
    by_name: dict[str, list[Watched]] = {}
    for each in watched(record):
        by_name.setdefault(each.name, []).append(each)
    for name, (each, *others) in by_name.items():
        windows = [
            [short(sample["completed_rps"]), short(value), index]
            for index, phase in enumerate(ran)
            for sample in phase.samples
            if (value := _percentile(sample, each)) and sample["completed_rps"]
        ]
        points = [[*point, index] for index, phase in enumerate(line) if (point := _point(phase, each))]
        if windows or points:
            # By requests in flight, so that the line bends back where more load means less throughput.
            points.sort(key=lambda point: line[point[2]].in_flight)
            series.append(
                {
                    "name": name,
                    "metric": each.metric,
                    "limits": [[short(limit.limit_s), limit.limit_label] for limit in (each, *others) if limit.limit_s],
                    "points": points,
                    "joined": bool(record.get("points")) or _rising(points),
                    "windows": windows if any(len(phase.samples) > 1 for phase in ran) else [],
                }
            )
    if not series:
        return None
    rate = record["sustainable_rate"]
    return {
        "series": series,
        "line": [_phase_text(phase) for phase in line],
        "phases": [_phase_text(phase) for phase in ran],
        "rate": rate and {key: short(rate[key]) for key in ("value", "low", "high")},
        "design": short(record.get("design_rate_rps")),
    }


def _rising(points: Sequence[Sequence[float]]) -> bool:
    """Whether a line through them is a curve; through phases in another order than their load it is a scribble."""
    return len(points) > 2 and all(a[0] <= b[0] for a, b in pairwise(points))  # noqa: PLR2004 - two points are no curve


def strips(record: Record) -> dict[str, Any] | None:
    """Everything over time on one axis; a strip whose figures nobody took is left out."""
    ran = phases(record["samples"])
    if not ran:
        return None
    start_s = ran[0].samples[0]["start_s"]
    client = _client(ran, start_s)
    seen = record.get("series") or {"t_s": [], "columns": {}}
    server = seen["columns"]
    latencies = [
        {"name": f"{each.column[-5:-2]} {each.metric.upper()}", "metric": each.metric, "data": client[each.column]}
        for each in {each.column: each for each in watched(record)}.values()
        if each.column in client
    ]
    limits = [[short(each.limit_s), each.limit_label, each.metric] for each in watched(record) if each.limit_s]
    wanted: list[tuple[str, str, float, list[dict[str, Any]]]] = [
        ("Latency", "s", 1, latencies),
        (
            "Requests",
            "",
            1,
            [
                *([{"name": "in flight", "data": client["in_flight"]}] if "in_flight" in client else []),
                *_of(server, 1, running="running", waiting="waiting"),
            ],
        ),
        ("Output", "tok/s", 1, _of(server, 1, output_tokens_per_s="output tokens") or _tokens(ran, start_s)),
        ("KV cache", "%", 1, _of(server, 100, kv_cache_usage="KV cache used")),
        ("GPU use", "%", 1, _of(server, 100, gpu_utilisation="GPU utilisation")),
        ("SM clock", "MHz", 1, _of(server, 1, sm_clock_mhz="SM clock")),
        ("Power", "W", 1, _of(server, 1, power_w="power")),
        ("CPU", "cores", 1, _of(server, 1, server_cpu_cores="server CPU")),
    ]
    drawn = [{"title": title, "unit": unit, "series": rows} for title, unit, _, rows in wanted if rows]
    if not drawn:
        return None
    return {
        "strips": drawn,
        "limits": limits,
        "t": [_moment(t - start_s) for t in seen["t_s"]],
        "client_t": client["t"],
        "bands": [
            [_moment(phase.samples[0]["start_s"] - start_s), _moment(phase.samples[-1]["end_s"] - start_s), phase.name]
            for phase in ran
        ],
    }


def _client(ran: Sequence[Phase], start_s: float) -> dict[str, list[Any]]:
    """The windows' timelines one after the other, with a hole where phases do not touch.

    A result file without timelines gets a level a window, from the window's own percentiles.
    """
    lines = [(each, _timeline(each)) for phase in ran for each in phase.samples]
    names = sorted({name for _, line in lines for name in line if name != "t_s"})
    columns: dict[str, list[Any]] = {"t": [], **{name: [] for name in names}}
    before_s = float("-inf")
    for sample, line in lines:
        if math.isfinite(before_s) and sample["start_s"] - before_s > 1e-3:  # noqa: PLR2004 - a clock's jitter
            columns["t"].append(_moment((before_s + sample["start_s"]) / 2 - start_s))
            for name in names:
                columns[name].append(None)
        times = line.get("t_s", [])
        columns["t"] += [_moment(t - start_s) for t in times if t is not None]
        for name in names:
            columns[name] += [short(value) for value in line.get(name) or [None] * len(times)]
        before_s = sample["end_s"]
    return {name: column for name, column in columns.items() if name == "t" or any(v is not None for v in column)}


def _timeline(sample: Record) -> Mapping[str, Sequence[float | None]]:
    if sample.get("timeline"):
        return sample["timeline"]  # type: ignore[no-any-return]
    line: dict[str, list[float | None]] = {"t_s": [sample["start_s"], sample["end_s"]]}
    line["in_flight"] = [sample["in_flight_mean"]] * 2
    for metric, latency in sample["latencies"].items():
        if metric != "itl":
            line |= {f"{metric}_{q}_s": [latency[f"{q}_s"]] * 2 for q in ("p50", "p95")}
    return line


def _tokens(ran: Sequence[Phase], start_s: float) -> list[dict[str, Any]]:
    """Output tokens a second as the client counted them, a level a window."""
    data: list[list[float | None]] = []
    for phase in ran:
        for each in phase.samples:
            level = short(each["output_tokens_per_s"])
            data += [[_moment(each["start_s"] - start_s), level], [_moment(each["end_s"] - start_s), level]]
        data.append([_moment(phase.samples[-1]["end_s"] - start_s), None])
    return [{"name": "output tokens", "pairs": data}]


def _of(columns: Mapping[str, Sequence[float | None]], factor: float, **names: str) -> list[dict[str, Any]]:
    return [
        {"name": shown, "telemetry": True, "data": [short(None if v is None else v * factor) for v in columns[name]]}
        for name, shown in names.items()
        if name in columns
    ]


def _percentile(sample: Record, each: Watched) -> float | None:
    latency = sample["latencies"].get(each.metric)
    return None if latency is None else latency[f"p{each.known * 100:.0f}_s"]


def _point(phase: Phase, each: Watched) -> list[Any] | None:
    """Mean rate and median percentile over the windows of a phase."""
    pairs = [
        (sample["completed_rps"], value)
        for sample in phase.samples
        if (value := _percentile(sample, each)) and sample["completed_rps"]
    ]
    if not pairs:
        return None
    return [short(statistics.fmean(x for x, _ in pairs)), short(statistics.median(y for _, y in pairs))]


def _phase_text(phase: Phase) -> list[Any]:
    return [phase.name, phase.load, phase.samples[0]["kind"], short(phase.in_flight)]


def short(value: float | None) -> float | int | None:
    """Four figures: more than a pixel."""
    if value is None:
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _moment(seconds: float) -> float:
    return round(seconds, 2)
