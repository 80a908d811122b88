"""Comparisons with a baseline as text: for one result, for a session's results, and for two whole runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from pytest_gpucap.explained import Subject, pointer
from pytest_gpucap.report import changes
from pytest_gpucap.report.changes import figure_lines, latency_lines, latency_table
from pytest_gpucap.report.columns import LEAST, LONGEST_NAME, NARROW, apart, table, wrapped
from pytest_gpucap.report.escape import cleaned, prose, table_row
from pytest_gpucap.report.formatting import NOT_MEASURED, interval
from pytest_gpucap.report.headline import compared, comparison_headline
from pytest_gpucap.report.terminal import IMPORTED, SIMULATED, details
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.points import WHAT_IT_IS
from pytest_gpucap.results.result import Result

_QUIET: Final = frozenset({RegressionDecision.SAME, RegressionDecision.IMPROVED})
_ICONS: Final = {
    RegressionDecision.REGRESSED: "🔻",
    RegressionDecision.INCONCLUSIVE: "❔",
    RegressionDecision.NOT_COMPARABLE: "⚪",
    RegressionDecision.SAME: "✅",
    RegressionDecision.IMPROVED: "🔺",
}
_WORST_FIRST: Final = tuple(_ICONS)


def regression_failure(result: Result, width: int = NARROW) -> str:
    """The text of a test that fails for a regression: the decision first, then the evidence."""
    result, width = cleaned(result), max(LEAST, width)
    found = compared(result)
    lines = [comparison_headline(result), *([SIMULATED] if result.simulated else [])]
    lines += ["", *wrapped(found.reason, width=width)]
    told = wrapped(pointer(Subject.VERDICT, found.decision), hang="  ", width=width)
    return "\n".join([*lines, "", details(result, width), "", *told])


def comparison_summary(results: Iterable[Result], width: int = NARROW) -> list[str]:
    """A session's comparisons in a few lines: those that need attention listed, the rest counted. May be empty."""
    width = max(LEAST, width)
    ordered = _worst_first(cleaned(result) for result in results if result.comparison is not None)
    lines: list[str] = []
    for result in ordered:
        found = compared(result)
        if found.decision not in _QUIET:
            lines += wrapped(comparison_headline(result), hang="  ", width=width)
            # A result that cannot be compared has its reason as headline.
            reasons = [] if found.ratio is None else [found.reason]
            lines += [line for text in [*reasons, *found.differs] for line in wrapped(text, "  ", "    ", width)]
        lines += _latencies_told(result, width)
        for said in figure_lines(found.figures):
            lines += wrapped(f"{result.name}: {said}", hang="  ", width=width)
    decided = Counter(compared(result).decision for result in ordered)
    counts = ", ".join(f"{decided[decision]} {decision}" for decision in _WORST_FIRST if decided[decision])
    names = " and ".join(dict.fromkeys(compared(result).baseline.name for result in ordered))
    return [*lines, *wrapped(f"against baseline {names}: {counts}", hang="  ", width=width)] if ordered else []


def _latencies_told(result: Result, width: int) -> list[str]:
    """Of base and head all latencies; of a baseline those that have become slower. They fail no test."""
    found = compared(result)
    if found.paired is not None and found.latencies:
        said = f"{result.name}: latencies of base and head, which fail no test:"
        return [*wrapped(said, hang="  ", width=width), *latency_table(found.latencies, width, "  ")]
    if found.no_latencies:
        said = f"{result.name}: latencies of base and head were not compared: {found.no_latencies}"
        return wrapped(said, hang="  ", width=width)
    slower = [each for each in found.latencies if each.decision is RegressionDecision.REGRESSED]
    told = [f"{result.name}: {said}, which fails no test" for said in latency_lines(slower)]
    return [line for each in told for line in wrapped(each, hang="  ", width=width)]


def comparison_text(results: Sequence[Result], base: str, head: str, width: int = NARROW) -> str:
    """The comparison of two runs for a terminal: a table, and the evidence for every row."""
    width = max(LEAST, width)
    ordered = _worst_first(map(cleaned, results))
    lines = [f"base: {base}", f"head: {head}", "", *_decisions(ordered, width), ""]
    for result in ordered:
        lines += wrapped(f"{result.name}: {compared(result).reason}", "- ", "  ", width)
        lines += [line for each in _differences(result) for line in wrapped(each, "  ", "    ", width)]
        lines += latency_table(compared(result).latencies, width, "  ")
        lines += [line for each in _figures(result) for line in wrapped(each, "  ", "    ", width)]
    if any(result.simulated for result in results):
        lines.append(SIMULATED)
    if any(result.imported for result in results):
        lines += wrapped(IMPORTED, width=width)
    return "\n".join(lines)


def _decisions(results: Sequence[Result], width: int) -> list[str]:
    """A table of the decisions; where it is too wide, each name stands whole in a line of its own above its figures."""
    headers = ["decision", "name", "base req/s", "head req/s", "change (95% interval)"]
    found = [_row(result) for result in results]
    lines = table(headers, found, width, ruled=True)
    if len(lines) == len(found) + 2:  # headers and rule: it is in one piece
        return lines
    lines = []
    for decision, name, base, head, change in found:
        rates = f"{base} -> {head} req/s" if base and head else f"{base or head} req/s" if base or head else ""
        lines += wrapped(f"{decision}: {name}", hang="  ", width=width)
        lines += wrapped(", ".join(filter(None, [rates, change])), "  ", "    ", width)
    return lines


def comparison_markdown(results: Sequence[Result], base: str, head: str) -> str:
    """The same for a pull request. All text from the files is escaped."""
    ordered = _worst_first(map(cleaned, results))
    counts = Counter(compared(result).decision for result in ordered)
    said = ", ".join(
        f"{_ICONS[decision]} {counts[decision]} {decision}" for decision in _WORST_FIRST if counts[decision]
    )
    head_row = ["decision", "requirement", "base → head, req/s per replica (95% interval)", "change (95% interval)"]
    blocks = [f"**{said or 'Nothing to compare'}**"]
    if any(result.simulated for result in results):
        blocks.append(f"> **SIMULATED**: {NOT_MEASURED}.")
    if any(result.imported for result in results):
        blocks.append(f"> **IMPORTED**: {WHAT_IT_IS}.")
    rows_of_table = [table_row(head_row), table_row(["---"] * len(head_row))]
    names = apart([result.name for result in ordered], LONGEST_NAME)
    for result, name in zip(ordered, names, strict=True):
        _, _, before, after, change = _row(result)
        decision = compared(result).decision
        rates = f"{prose(before)} → {prose(after)}" if before and after else prose(before or after)
        rows_of_table.append(table_row([f"{_ICONS[decision]} {decision}", prose(name), rates, prose(change)]))
    blocks.append("\n".join(rows_of_table))
    behind = []
    for result, name in zip(ordered, names, strict=True):
        behind.append(f"- {prose(name)}: {prose(compared(result).reason)}")
        latencies = latency_lines(compared(result).latencies)
        behind += [f"  - {prose(each)}" for each in [*_differences(result), *latencies, *_figures(result)]]
    blocks.append("\n".join(behind))
    blocks.append(f"Base: {prose(base)}; head: {prose(head)}.")
    return "\n\n".join(blocks) + "\n"


def _row(result: Result) -> list[str]:
    found = compared(result)
    return [
        found.decision.value,
        result.name,
        interval(found.base_rate),
        interval(found.head_rate or result.sustainable_rate),
        changes.change(found),
    ]


def _differences(result: Result) -> list[str]:
    found = compared(result)
    return [*(f"differs: {each}" for each in found.differs), *(f"changed: {each}" for each in found.changed)]


def _figures(result: Result) -> list[str]:
    return figure_lines(compared(result).figures)


def _worst_first(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: _WORST_FIRST.index(compared(result).decision))
