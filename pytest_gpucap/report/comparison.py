"""Comparisons with a baseline as text: of a record that has one, of a session's records, of two whole runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

from pytest_gpucap.report import rows as facts
from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.escape import prose, table_row
from pytest_gpucap.report.formatting import NOT_MEASURED, limit_name, percent, rate, seconds
from pytest_gpucap.report.terminal import SIMULATED, details, wrapped

_QUIET: Final = frozenset({"SAME", "IMPROVED"})
_WORST_FIRST: Final = ("REGRESSED", "INCONCLUSIVE", "NOT COMPARABLE", "SAME", "IMPROVED")
_ICONS: Final = {"REGRESSED": "🔻", "IMPROVED": "🔺", "SAME": "✅", "INCONCLUSIVE": "❔", "NOT COMPARABLE": "⚪"}

Line = Mapping[str, Any]


def headline(record: Line) -> str:
    """The decision with its arithmetic, in one line.

    ``REGRESSED: chat sustains 22.6 req/s, baseline main 25.1 req/s: -10.0% (-14.2% to -5.5%), 5.0% allowed``
    """
    found = record["comparison"]
    name, decision, baseline = record["name"], found["decision"], found["baseline"]["name"]
    if found["ratio"] is None:
        return f"{decision}: {name} against {baseline}: {found['reason']}"
    rates = f"{rate(found['head_rate']['value'])}, baseline {baseline} {rate(found['base_rate']['value'])}"
    allowed = f"{percent(found['max_regression'])} allowed"
    return f"{decision}: {name} sustains {rates}: {_change(found)}, {allowed}"


def failure(record: Line) -> str:
    """The text of a test that fails for a regression: the decision first, then what it rests on."""
    record = cleaned(record)
    found = record["comparison"]
    lines = [headline(record), *([SIMULATED] if record["simulated"] else []), "", found["reason"]]
    lines += [f"- {each}" for each in latencies(found)]
    return "\n".join([*lines, "", details(record)])


def latencies(comparison: Line) -> list[str]:
    """Latencies at equal load, a line each: ``p95 E2E at 71 in flight 3 s -> 4 s, +33% (+21% to +48%): REGRESSED``."""
    return [
        f"{limit_name(each['limit'])} at {each['load']} {seconds(each['base_s'])} -> {seconds(each['head_s'])}"
        f"{facts.change(each)}: {each['decision']}"
        for each in comparison["latencies"]
    ]


def summary(records: Sequence[Line]) -> list[str]:
    """A session's comparisons in a few lines: what needs a look one by one, the rest counted; empty where none is."""
    compared = _worst_first([cleaned(record) for record in records if record.get("comparison")])
    lines: list[str] = []
    for record in compared:
        found = record["comparison"]
        if found["decision"] not in _QUIET:
            lines += wrapped(headline(record), indent="", hang="  ")
            # The headline of what cannot be compared is its reason.
            reasons = [] if found["ratio"] is None else [found["reason"]]
            lines += [line for text in [*reasons, *found["differs"]] for line in wrapped(text, "  ", "    ")]
        slower = [each for each in found["latencies"] if each["decision"] == "REGRESSED"]
        for said in latencies({"latencies": slower}):
            lines += wrapped(f"{record['name']}: {said}, which fails no test", indent="", hang="  ")
    quiet = Counter(record["comparison"]["decision"] for record in compared)
    counts = ", ".join(f"{quiet[decision]} {decision}" for decision in _WORST_FIRST if quiet[decision])
    names = " and ".join(dict.fromkeys(record["comparison"]["baseline"]["name"] for record in compared))
    return [*lines, f"against baseline {names}: {counts}"] if compared else []


def text(records: Sequence[Line], base: str, head: str) -> str:
    """The comparison of two runs for a terminal: a table, and what stands behind every row."""
    ordered = _worst_first([cleaned(record) for record in records])
    headers = ["decision", "requirement", "base req/s", "head req/s", "change (95% interval)"]
    table = tabulate([_row(record) for record in ordered], headers=headers, disable_numparse=True)
    lines = [f"base: {base}", f"head: {head}", "", table, ""]
    for record in ordered:
        lines += wrapped(f"{record['name']}: {record['comparison']['reason']}", "- ", "  ")
        lines += [line for each in _behind(record) for line in wrapped(each, "  ", "    ")]
    if any(record["simulated"] for record in records):
        lines.append(SIMULATED)
    return "\n".join(lines)


def markdown(records: Sequence[Line], base: str, head: str) -> str:
    """The same for a pull request; every text of the files is escaped."""
    ordered = _worst_first([cleaned(record) for record in records])
    counts = Counter(record["comparison"]["decision"] for record in ordered)
    said = ", ".join(
        f"{_ICONS[decision]} {counts[decision]} {decision}" for decision in _WORST_FIRST if counts[decision]
    )
    head_row = ["decision", "requirement", "base → head, req/s a replica (95% interval)", "change (95% interval)"]
    blocks = [f"**{said or 'Nothing to compare'}**"]
    if any(record["simulated"] for record in records):
        blocks.append(f"> **SIMULATED**: {NOT_MEASURED}.")
    rows = [table_row(head_row), table_row(["---"] * len(head_row))]
    for record in ordered:
        decision, name, before, after, change = _row(record)
        rates = f"{prose(before)} → {prose(after)}" if before and after else prose(before or after)
        rows.append(table_row([f"{_ICONS[decision]} {decision}", prose(name, 120), rates, prose(change)]))
    blocks.append("\n".join(rows))
    behind = []
    for record in ordered:
        behind.append(f"- {prose(record['name'], 120)}: {prose(record['comparison']['reason'])}")
        behind += [f"  - {prose(each)}" for each in _behind(record)]
    blocks.append("\n".join(behind))
    blocks.append(f"Base: {prose(base)}; head: {prose(head)}.")
    return "\n\n".join(blocks) + "\n"


def _row(record: Line) -> list[str]:
    found = record["comparison"]
    return [
        found["decision"],
        record["name"],
        facts.interval(found["base_rate"]),
        facts.interval(found["head_rate"] or record["sustainable_rate"]),
        _change(found),
    ]


def _behind(record: Line) -> list[str]:
    found = record["comparison"]
    return [
        *(f"differs: {each}" for each in found["differs"]),
        *(f"changed: {each}" for each in found["changed"]),
        *latencies(found),
    ]


def _change(comparison: Line) -> str:
    return facts.change(comparison).removeprefix(", ")


def _worst_first(records: Sequence[Line]) -> list[Line]:
    return sorted(records, key=lambda record: _WORST_FIRST.index(record["comparison"]["decision"]))
