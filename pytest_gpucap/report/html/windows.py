"""A record's measuring windows as a table of raw numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pytest_gpucap.report.formatting import limit_name, percent, seconds, significant
from pytest_gpucap.report.html.spread import METRICS

Record = Mapping[str, Any]

NONE: Final = "\u2013"
"""What a cell shows that has nothing to show."""


@dataclass(frozen=True, slots=True)
class Table:
    """Raw numbers; the first cell of a row names it."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def windows(record: Record) -> Table:
    """Every window with all its percentiles, in the order of time."""
    samples = sorted(record["samples"], key=lambda sample: sample["start_s"])
    metrics = [metric for metric in METRICS if any(metric in sample["latencies"] for sample in samples)]
    limits = [name for name in record["slo"]["limits"] if any(name in sample["attainment"] for sample in samples)]
    headers = ("window", "start", "length", "load", "requests", "req/s", "tok/s", "in flight", "errors")
    latency = tuple(f"{q} {metric.upper()}" for metric in metrics for q in ("p50", "p95", "p99"))
    within = tuple(f"within {limit_name(name)}" for name in limits)
    origin_s = samples[0]["start_s"] if samples else 0.0
    rows = []
    for sample in samples:
        closed = sample["kind"] == "closed"
        load = f"{sample['concurrency']} in flight" if closed else f"{_number(sample['offered_rps'])} req/s"
        rows.append(
            (
                sample["label"],
                seconds(round(sample["start_s"] - origin_s, 1)),
                seconds(sample["end_s"] - sample["start_s"]),
                load,
                str(sample["requests"]),
                _number(sample["completed_rps"]),
                _number(sample["output_tokens_per_s"]),
                _number(sample["in_flight_mean"]),
                ", ".join(f"{count} {kind}" for kind, count in sample["errors"].items()) or "0",
                *(
                    _time(sample["latencies"].get(metric, {}).get(f"{q}_s"))
                    for metric in metrics
                    for q in ("p50", "p95", "p99")
                ),
                *(percent(value) if (value := sample["attainment"].get(name)) is not None else NONE for name in limits),
            )
        )
    return Table("Measuring windows", (*headers, *latency, *within), tuple(rows))


def _number(value: float | None) -> str:
    return NONE if value is None else significant(value)


def _time(value: float | None) -> str:
    return NONE if value is None else seconds(value)
