"""Results -> plain text for a terminal: the summary table and the text of a failure; 80 columns, no colour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from tabulate import tabulate

from pytest_gpucap.report import rows
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import (
    NOT_MEASURED,
    gpus_needed,
    headline,
    seconds,
    shown_bound,
    significant,
    slack_text,
    sustained,
)
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import Bottleneck

_WIDTH = 80
_LEAST_NAME = 8
"""Least columns for a requirement's name, however wide the other columns are."""
_NAME = 18
"""Columns for the name of a window."""
SIMULATED: Final = f"SIMULATED: {NOT_MEASURED}"


def summary(results: Iterable[Result]) -> str:
    """One table, worst first; then what every failure rests on; then where and how long it was measured."""
    return "\n".join(line for line, _ in summary_lines(results))


def summary_lines(results: Iterable[Result]) -> list[tuple[str, Outcome | None]]:
    """The lines of `summary`; a line that states a verdict comes with its outcome."""
    ordered = rows.worst_first([cleaned(result) for result in results])
    table = _table(ordered)
    # One line for each result, under the headers.
    outcomes = [*[None] * (len(table) - len(ordered)), *(result.outcome for result in ordered)]
    parts = [list(zip(table, outcomes, strict=True))]
    for result in ordered:
        if rows.failed(result):
            verdict, *others = _reasons(result)
            parts.append([(verdict, result.outcome), *((line, None) for line in others)])
    parts += [[(line, None) for line in lines] for lines in (_bullets(_limits(ordered)), _footnotes(ordered)) if lines]
    first, *more = parts
    return [*first, *(line for part in more for line in [("", None), *part])]


def _limits(results: Sequence[Result]) -> list[str]:
    """Each result as a share of its physical limit, or why it has none. Simulated results have none."""
    lines = [f"{result.name}: {result.limit.text}" for result in results if result.limit is not None]
    unknown: dict[str, list[str]] = {}
    for result in results:
        if result.no_limit and not result.simulated:
            unknown.setdefault(result.no_limit, []).append(result.name)
    return lines + [f"no physical limit for {', '.join(names)}: {reason}" for reason, names in unknown.items()]


def failure(result: Result) -> str:
    """The text of a failed check: the arithmetic first, then the evidence."""
    result = cleaned(result)
    lines = [f"{result.outcome}: {headline(result)}"]
    if result.simulated:
        lines.append(SIMULATED)
    if result.reason not in lines[0]:
        lines += ["", *wrapped(result.reason)]
    return "\n".join([*lines, "", details(result)])


def section(result: Result) -> str:
    """What a test measured before it failed an assertion of its own."""
    head = f"{result.outcome or result.kind}: {headline(cleaned(result))}"
    return "\n".join([head, *([SIMULATED] if result.simulated else []), "", details(result)])


def details(result: Result) -> str:
    """The evidence for a result: its figures, windows, bottleneck and environment."""
    result = cleaned(result)
    lines = _aligned(rows.result_rows(result))
    if result.samples:
        headers, body = rows.window_table(result)
        body = [[_short(name, _NAME), *figures] for name, *figures in body]
        lines += ["", str(tabulate(body, headers=headers, disable_numparse=True, tablefmt="plain"))]
    if result.problems:
        lines += [
            "",
            "why the measurement cannot be trusted:",
            *_bullets([problem.text for problem in result.problems]),
        ]
    if result.bottleneck:
        lines += ["", *_bottleneck(result.bottleneck)]
    lines += ["", *_aligned(rows.environment_rows(result))]
    return "\n".join(lines)


def _table(results: Sequence[Result]) -> list[str]:
    headers = ["verdict", "requirement", "req/s per replica", "needed", "GPUs", "slack"]
    body = [_row(result) for result in results]
    table = _tabulated(headers, body)
    # The name is cut, so that the figures fit the screen.
    too_wide = max(map(len, table)) - _WIDTH
    if too_wide <= 0:
        return table
    room = max(_LEAST_NAME, max(len(row[1]) for row in body) - too_wide)
    return _tabulated(headers, [[verdict, _short(name, room), *figures] for verdict, name, *figures in body])


def _tabulated(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return str(tabulate(rows, headers=headers, disable_numparse=True)).splitlines()


def _row(result: Result) -> list[str]:
    needed, most = gpus_needed(result), "<= " if shown_bound(result) is not None else ""
    design = result.design_rate_rps
    return [
        result.outcome or result.kind,
        result.name.strip(),
        sustained(result),
        significant(design) if design else "",
        f"{most}{needed} of {result.requirement.gpus}" if needed is not None else "",
        slack_text(result),
    ]


def _reasons(result: Result) -> list[str]:
    """A verdict in a few lines: the arithmetic, the limit that binds, the bottleneck, what to try."""
    expected = " (expected)" if result.expected_failure else ""
    lines = _bullets([f"{result.outcome}{expected}: {headline(result)}"])
    for name, value in rows.causes(result):
        lines += wrapped(f"{name}: {value}", indent="  ", hang="    ")
    return lines


def _footnotes(results: Sequence[Result]) -> list[str]:
    notes = []
    if any(result.sustainable_rate and shown_bound(result) is None for result in results):
        notes.append("(95% intervals; needed: QPS x headroom / replicas in the budget)")
    places = {place for result in results if (place := rows.measured_on(result))}
    notes += [line for place in sorted(places) for line in wrapped(f"measured on {place}", hang="  ")]
    spent = sum(result.total_spent_s for result in results)
    notes.append(f"server time: {seconds(spent)}")
    if any(result.simulated for result in results):
        notes.append(SIMULATED)
    return notes


def _bottleneck(found: Bottleneck) -> list[str]:
    lines = [*wrapped(f"bottleneck: {found.kind}"), *_bullets(found.evidence)]
    return lines + (wrapped(f"try: {found.advice}") if found.advice else [])


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _aligned(named: Sequence[rows.Row]) -> list[str]:
    width = max(len(name) for name, _ in named) + 2
    return [
        line for name, value in named for line in wrapped(value, indent=name.ljust(width), hang=" " * width) or [name]
    ]


def wrapped(text: str, indent: str = "", hang: str = "") -> list[str]:
    """Lines of at most 80 columns; those after the first begin with `hang`."""
    # A broken path or flag cannot be copied, so it may exceed the width instead.
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    )


def _bullets(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in wrapped(text, indent="- ", hang="  ")]
