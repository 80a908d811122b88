"""Records -> plain text for a terminal: the summary table and the text of a failure; 80 columns, no colour."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tabulate import tabulate

from pytest_gpucap.report import rows as facts
from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.formatting import NOT_MEASURED, headline, percent, seconds, significant

_WIDTH = 80
_LEAST_NAME = 8
"""Columns that a requirement's name gets, however wide the figures beside it are."""
_NAME = 18
"""Columns for the name of a window."""
SIMULATED: Final = f"SIMULATED: {NOT_MEASURED}"


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """One table, worst first; then what every failure rests on; then where and how long it was measured."""
    ordered = facts.worst_first([cleaned(record) for record in records])
    parts = [_table(ordered)]
    parts += ["\n".join(_reasons(record)) for record in ordered if _failed(record)]
    if limits := _limits(ordered):
        parts.append("\n".join(_bullets(limits)))
    return "\n\n".join([*parts, "\n".join(_footnotes(ordered))])


def _limits(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each result as a share of its physical limit; those without one by the reason. Simulated ones have none."""
    lines = [f"{record['name']}: {record['limit']['text']}" for record in records if record.get("limit")]
    unknown: dict[str, list[str]] = {}
    for record in records:
        if record.get("no_limit") and not record["simulated"]:
            unknown.setdefault(record["no_limit"], []).append(record["name"])
    return lines + [f"no physical limit for {', '.join(names)}: {reason}" for reason, names in unknown.items()]


def failure(record: Mapping[str, Any]) -> str:
    """The text of a failed check: the arithmetic first, then what it rests on."""
    record = cleaned(record)
    lines = [f"{record['outcome']}: {headline(record)}"]
    if record["simulated"]:
        lines.append(SIMULATED)
    if record["reason"] not in lines[0]:
        lines += ["", *wrapped(record["reason"])]
    return "\n".join([*lines, "", details(record)])


def section(record: Mapping[str, Any]) -> str:
    """What a test measured that then failed an assertion of its own."""
    head = f"{record['outcome'] or record['kind']}: {headline(cleaned(record))}"
    return "\n".join([head, *([SIMULATED] if record["simulated"] else []), "", details(record)])


def details(record: Mapping[str, Any]) -> str:
    """What a record rests on: its figures, windows, bottleneck and surroundings."""
    record = cleaned(record)
    lines = _aligned(facts.rows(record))
    if record["samples"]:
        headers, body = facts.windows(record)
        body = [[_short(name, _NAME), *figures] for name, *figures in body]
        lines += ["", str(tabulate(body, headers=headers, disable_numparse=True, tablefmt="plain"))]
    if record["problems"]:
        lines += ["", "why the measurement cannot be trusted:", *_bullets(record["problems"])]
    if record["bottleneck"]:
        lines += ["", *_bottleneck(record["bottleneck"])]
    lines += ["", *_aligned(facts.environment(record))]
    return "\n".join(lines)


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    headers = ["verdict", "requirement", "req/s a replica", "needed", "GPUs", "slack"]
    rows = [_row(record) for record in records]
    table = _tabulated(headers, rows)
    # The name gives way, so that the figures fit the screen.
    too_wide = max(map(len, table.splitlines())) - _WIDTH
    if too_wide <= 0:
        return table
    room = max(_LEAST_NAME, max(len(row[1]) for row in rows) - too_wide)
    return _tabulated(headers, [[verdict, _short(name, room), *figures] for verdict, name, *figures in rows])


def _tabulated(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return str(tabulate(rows, headers=headers, disable_numparse=True))


def _row(record: Mapping[str, Any]) -> list[str]:
    needed = record.get("gpus_required")
    design = record.get("design_rate_rps")
    slack = record.get("slack")
    return [
        record["outcome"] or record["kind"],
        record["name"].strip(),
        facts.interval(record["sustainable_rate"]),
        significant(design) if design else "",
        f"{needed} of {record['requirement']['gpus']}" if needed is not None else "",
        percent(slack["value"], signed=True) if slack else "",
    ]


def _reasons(record: Mapping[str, Any]) -> list[str]:
    """A verdict in a few lines: the arithmetic, the limit that binds, the bottleneck, what to try."""
    expected = " (expected)" if facts.expected(record) else ""
    lines = _bullets([f"{record['outcome']}{expected}: {headline(record)}"])
    for name, value in facts.causes(record):
        lines += wrapped(f"{name}: {value}", indent="  ", hang="    ")
    return lines


def _failed(record: Mapping[str, Any]) -> bool:
    return record["outcome"] not in {"PASS", None}


def _footnotes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if any(record["sustainable_rate"] for record in records):
        notes.append("(95% intervals; needed: QPS x headroom / replicas in the budget)")
    places = {place for record in records if (place := facts.place(record))}
    notes += [line for place in sorted(places) for line in wrapped(f"measured on {place}", hang="  ")]
    spent = sum(sum(filter(None, record["spent_s"].values())) for record in records)
    notes.append(f"server time: {seconds(spent)}")
    if any(record["simulated"] for record in records):
        notes.append(SIMULATED)
    return notes


def _bottleneck(found: Mapping[str, Any]) -> list[str]:
    lines = [*wrapped(f"bottleneck: {found['kind']}"), *_bullets(found["evidence"])]
    return lines + (wrapped(f"try: {found['advice']}") if found.get("advice") else [])


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _aligned(rows: Sequence[facts.Row]) -> list[str]:
    width = max(len(name) for name, _ in rows) + 2
    return [
        line for name, value in rows for line in wrapped(value, indent=name.ljust(width), hang=" " * width) or [name]
    ]


def wrapped(text: str, indent: str = "", hang: str = "") -> list[str]:
    """Lines of at most 80 columns; those after the first begin with `hang`."""
    # A path or a flag that is cut in two can no longer be copied; it may stand out of the text instead.
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    )


def _bullets(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in wrapped(text, indent="- ", hang="  ")]
