"""Records -> the words and tables of the page; the template only places them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pytest_gpucap.report import rows as facts
from pytest_gpucap.report.formatting import bound_by, gpus, headline, limit_name, percent, rate, seconds, significant
from pytest_gpucap.report.html.windows import NONE, Table, windows

Record = Mapping[str, Any]

_SIGNS: Final = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?", "INVALID": "!", None: "·"}
_OPEN_AT_FIRST: Final = 6
_LEAST_SHOWN_S: Final = 0.05
_RATIO_ENDS: Final = (0.1, 10.0)
"""Ends of the axis that shows capacity against the design rate; beyond them an arrow says so."""


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict as it is shown: never by its colour alone."""

    text: str
    sign: str
    tone: str


@dataclass(frozen=True, slots=True)
class Span:
    """Capacity over design rate on a logarithmic axis, in per cent of its width."""

    value: float
    low: float
    high: float
    clipped_low: bool
    clipped_high: bool
    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure with its name and what qualifies it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class BarShare:
    """A part of a whole, for a bar."""

    name: str
    value: str
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know beside the figures; `tone` is ``bad``, ``warn``, ``good`` or ``plain``."""

    title: str
    lines: tuple[str, ...]
    tone: str = "plain"
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One record as the page shows it."""

    anchor: str
    name: str
    test: str
    badge: Badge
    headline: str
    reason: str
    simulated: bool
    opened: bool
    rate: str
    interval: str
    design: str
    needed: str
    slack: str
    span: Span | None
    facts: tuple[Fact, ...]
    notes: tuple[Note, ...]
    spent: tuple[BarShare, ...]
    declared: tuple[Fact, ...]
    windows: Table
    environment: tuple[Fact, ...]
    command: str
    charts: Mapping[str, bool] = field(default_factory=dict)
    curve_text: str = ""


def badge(record: Record) -> Badge:
    """The verdict, or what was done where none was asked for."""
    outcome = record["outcome"]
    if facts.expected(record):
        return Badge(f"{outcome} expected", _SIGNS[outcome], "expected")
    if outcome in {"PASS", None} and facts.regressed(record):
        return Badge("REGRESSED", "↓", "fail")
    return Badge(outcome or record["kind"], _SIGNS[outcome], (outcome or "none").lower())


def results(records: Sequence[Record]) -> list[Result]:
    """Every record, in the order given."""
    return [_result(record, number) for number, record in enumerate(records, 1)]


def _result(record: Record, number: int) -> Result:
    found = record["sustainable_rate"]
    slack, design = record.get("slack"), record.get("design_rate_rps")
    needed = record.get("gpus_required")
    return Result(
        anchor=f"result-{number}",
        name=record["name"],
        test=record["test"],
        badge=badge(record),
        headline=headline(record),
        reason=record.get("reason") or "",
        simulated=record["simulated"],
        opened=number <= _OPEN_AT_FIRST,
        rate=NONE if found is None else significant(found["value"]),
        interval="" if found is None else _range(found),
        design=significant(design) if design else NONE,
        needed=f"{needed} of {record['requirement']['gpus']}" if needed is not None else NONE,
        slack=percent(slack["value"], signed=True) if slack else NONE,
        span=_span(found, design),
        facts=tuple(_facts(record)),
        notes=tuple(_notes(record)),
        spent=tuple(_spent(record["spent_s"])),
        declared=tuple(_declared(record)),
        windows=windows(record),
        environment=tuple(_environment(record)),
        command=str(record["environment"].get("command") or ""),
        curve_text=_curve_text(record),
    )


def _range(found: Mapping[str, Any]) -> str:
    if found["low"] is None or found["high"] is None:
        return ""
    return f"{significant(found['low'])} to {significant(found['high'])}"


def _facts(record: Record) -> list[Fact]:
    found, declared, slack = record["sustainable_rate"], record["requirement"], record.get("slack")
    figures = []
    if found is not None:
        figures.append(
            Fact(
                "Sustainable rate", rate(found["value"]), f"{_range(found)}, {found['confidence'] * 100:.0f}% interval"
            )
        )
    if record.get("design_rate_rps"):
        figures.append(
            Fact(
                "Design rate",
                rate(record["design_rate_rps"]),
                f"{declared['qps']:g} req/s x {declared['headroom']:g}, per replica",
            )
        )
    if slack:
        low, high = percent(slack["low"], signed=True), percent(slack["high"], signed=True)
        figures.append(Fact("Slack", percent(slack["value"], signed=True), f"{low} to {high}"))
    if record.get("gpus_required") is not None:
        ends = record.get("gpus_interval")
        note = f"{ends[0]} to {ends[1]} over the interval" if ends and ends[0] != ends[1] else ""
        figures.append(
            Fact("GPUs needed", str(record["gpus_required"]), f"budget {declared['gpus']}; {note}".rstrip("; "))
        )
    if bound_by(record):
        bound, _, detail = bound_by(record).partition(", ")
        figures.append(Fact("Bound by", bound, detail))
    for key, name in (("saturated_rate", "Saturated"), ("single_rate", "One at a time")):
        if record[key] is not None:
            figures.append(Fact(name, rate(record[key]["value"]), _range(record[key])))
    if gain := record.get("batching_gain"):
        figures.append(Fact("Batching gain", f"{significant(gain['value'])} times", _range(gain)))
    return figures + _physics(record)


def _physics(record: Record) -> list[Fact]:
    """The share of the physical limit, or why there is none; a simulated server has no physics."""
    if limit := record.get("limit"):
        at = f"{limit['bound']}: {rate(limit['rate_rps'])} at {significant(limit['batch'])} in flight"
        return [Fact("Of the physical limit", f"{limit['share'] * 100:.0f}%", at)]
    reason = record.get("no_limit")
    return [Fact("Of the physical limit", "not known", reason)] if reason and not record["simulated"] else []


def _accuracy(record: Record, accuracy: Mapping[str, Any]) -> Note:
    rows = dict(facts.rows(record))
    lines = [rows["accuracy"], *([rows["good"]] if "good" in rows else [])]
    least, high = accuracy.get("min_accuracy"), accuracy.get("high")
    short = least is not None and high is not None and high < least
    return Note("Accuracy of the answers", tuple(lines), "bad" if short else "plain")


def _notes(record: Record) -> list[Note]:
    notes = []
    if record["problems"]:
        notes.append(Note("Why the measurement cannot be trusted", tuple(record["problems"]), "bad"))
    if comparison := record.get("comparison"):
        notes.append(_comparison(comparison))
    if accuracy := record.get("accuracy"):
        notes.append(_accuracy(record, accuracy))
    if bottleneck := record["bottleneck"]:
        notes.append(
            Note(
                f"Bottleneck: {bottleneck['kind']}",
                tuple(bottleneck["evidence"]),
                advice=bottleneck.get("advice") or "",
            )
        )
    return notes


def _comparison(comparison: Mapping[str, Any]) -> Note:
    tone = {"REGRESSED": "bad", "IMPROVED": "good", "SAME": "good"}.get(comparison["decision"], "warn")
    rows = facts.comparison({"comparison": comparison})
    lines = [f"{name}: {value}" if name else value for name, value in rows[1:]]
    return Note(f"Against the baseline {rows[0][1]}", tuple(lines), tone)


def _spent(spent_s: Mapping[str, float | None]) -> list[BarShare]:
    parts = {phase: value for phase, value in spent_s.items() if (value or 0.0) >= _LEAST_SHOWN_S}
    whole = sum(value or 0.0 for value in parts.values())
    shares, start = [], 0.0
    for phase, value in parts.items():
        width = (value or 0.0) / whole * 100
        shares.append(BarShare(phase, seconds(value), round(start, 2), round(width, 2)))
        start += width
    return shares


def _declared(record: Record) -> list[Fact]:
    declared, workload, slo = record["requirement"], record["workload"], record["slo"]
    shared = f", {workload['shared_prefix_tokens']} of them shared" if workload["shared_prefix_tokens"] else ""
    limits = [f"{limit_name(name)} {seconds(limit)}" for name, limit in slo["limits"].items()]
    sampling = ", ".join(f"{key} {value}" for key, value in workload["sampling"].items())
    rows = []
    if record["kind"] == "check":
        rows.append(
            Fact(
                "Requirement",
                f"{declared['qps']:g} req/s on {gpus(declared['gpus'])}, headroom {declared['headroom']:g}",
            )
        )
    if declared["gpus_per_replica"] != 1:
        rows.append(Fact("Replica", gpus(declared["gpus_per_replica"])))
    rows += [
        Fact("Limits", ", ".join([*limits, f"errors {percent(slo['max_error_rate'])}"])),
        Fact("Prompts", f"{workload['input_tokens']} tokens{shared}"),
        Fact(
            "Answers", f"{workload['output_tokens']} tokens{', end of text ignored' if workload['ignore_eos'] else ''}"
        ),
        Fact("Arrivals", _arrivals(workload)),
        Fact("Endpoint", str(workload["endpoint"])),
    ]
    return [*rows, *([Fact("Sampling", sampling)] if sampling else [])]


def _arrivals(workload: Mapping[str, Any]) -> str:
    if workload["arrivals"] == "gamma":
        return f"gamma, burstiness {workload['burstiness']:g}"
    return f"trace {workload['trace']}" if workload["trace"] else str(workload["arrivals"])


def _environment(record: Record) -> list[Fact]:
    listed = [
        Fact(str(key).replace("_", " "), "; ".join(value))
        for key, value in record["environment"].items()
        if isinstance(value, list) and value and all(isinstance(each, str) for each in value)
    ]
    return [*(Fact(name, value) for name, value in facts.environment(record) if name != "command"), *listed]


def _span(found: Mapping[str, Any] | None, design: float | None) -> Span | None:
    if found is None or not design or not all(found[key] for key in ("value", "low", "high")):
        return None
    low_end, high_end = _RATIO_ENDS

    def place(rps: float) -> float:
        ratio = min(high_end, max(low_end, rps / design))
        return round(math.log(ratio / low_end) / math.log(high_end / low_end) * 100, 2)

    text = (
        f"{significant(found['value'] / design)} times the design rate "
        f"({significant(found['low'] / design)} to {significant(found['high'] / design)})"
    )
    return Span(
        place(found["value"]),
        place(found["low"]),
        place(found["high"]),
        found["low"] / design < low_end,
        found["high"] / design > high_end,
        text,
    )


def _curve_text(record: Record) -> str:
    """What the chart of latency against rate shows, for those who do not see it."""
    found, design = record["sustainable_rate"], record.get("design_rate_rps")
    parts = [f"{len(record['samples'])} measuring windows"]
    if found is not None:
        parts.append(f"sustainable rate {rate(found['value'])} ({_range(found)})")
    if design:
        parts.append(f"design rate {rate(design)}")
    parts += [f"{limit_name(name)} limit {seconds(limit)}" for name, limit in record["slo"]["limits"].items()]
    return ", ".join(parts)
