"""Comparisons with a baseline as text: for one result, for a session's results, and for two whole runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from tabulate import tabulate

from pytest_gpucap.report import rows
from pytest_gpucap.report.escape import cleaned, prose, table_row
from pytest_gpucap.report.formatting import NOT_MEASURED, interval, limit_name, percent, rate, seconds
from pytest_gpucap.report.terminal import SIMULATED, details, wrapped
from pytest_gpucap.results.comparison import Comparison, LatencyComparison, RegressionDecision
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


def comparison_headline(result: Result) -> str:
    """The decision with its arithmetic, in one line. The result must have a comparison.

    ``REGRESSED: chat sustains 22.6 req/s, baseline main 25.1 req/s: -10.0% (-14.2% to -5.5%), 5.0% allowed``
    """
    return ": ".join(comparison_headline_parts(result))


def comparison_headline_parts(result: Result) -> tuple[str, str]:
    """The decision, and its arithmetic or reason."""
    found = compared(result)
    name, decision, baseline = result.name, found.decision.value, found.baseline.name
    if found.ratio is None or found.head_rate is None or found.base_rate is None:
        return decision, f"{name} against {baseline}: {found.reason}"
    rates = f"{rate(found.head_rate.value)}, baseline {baseline} {rate(found.base_rate.value)}"
    return decision, f"{name} sustains {rates}: {rows.change(found)}, {percent(found.max_regression)} allowed"


def regression_failure(result: Result) -> str:
    """The text of a test that fails for a regression: the decision first, then the evidence."""
    result = cleaned(result)
    found = compared(result)
    lines = [comparison_headline(result), *([SIMULATED] if result.simulated else []), "", found.reason]
    lines += [f"- {each}" for each in latency_lines(found.latencies)]
    return "\n".join([*lines, "", details(result)])


def latency_lines(latencies: Iterable[LatencyComparison]) -> list[str]:
    """Latencies at equal load, a line each: ``p95 E2E at 71 in flight 3 s -> 4 s, +33% (+21% to +48%): REGRESSED``."""
    return [
        f"{limit_name(each.limit)} at {each.load} {seconds(each.base_s)} -> {seconds(each.head_s)}, "
        f"{rows.change(each)}: {each.decision}"
        for each in latencies
    ]


def comparison_summary(results: Iterable[Result]) -> list[str]:
    """A session's comparisons in a few lines: those that need attention listed, the rest counted. May be empty."""
    ordered = _worst_first(cleaned(result) for result in results if result.comparison is not None)
    lines: list[str] = []
    for result in ordered:
        found = compared(result)
        if found.decision not in _QUIET:
            lines += wrapped(comparison_headline(result), indent="", hang="  ")
            # A result that cannot be compared has its reason as headline.
            reasons = [] if found.ratio is None else [found.reason]
            lines += [line for text in [*reasons, *found.differs] for line in wrapped(text, "  ", "    ")]
        slower = [each for each in found.latencies if each.decision is RegressionDecision.REGRESSED]
        for said in latency_lines(slower):
            lines += wrapped(f"{result.name}: {said}, which fails no test", indent="", hang="  ")
    decided = Counter(compared(result).decision for result in ordered)
    counts = ", ".join(f"{decided[decision]} {decision}" for decision in _WORST_FIRST if decided[decision])
    names = " and ".join(dict.fromkeys(compared(result).baseline.name for result in ordered))
    return [*lines, f"against baseline {names}: {counts}"] if ordered else []


def comparison_text(results: Sequence[Result], base: str, head: str) -> str:
    """The comparison of two runs for a terminal: a table, and the evidence for every row."""
    ordered = _worst_first(map(cleaned, results))
    headers = ["decision", "requirement", "base req/s", "head req/s", "change (95% interval)"]
    table = tabulate([_row(result) for result in ordered], headers=headers, disable_numparse=True)
    lines = [f"base: {base}", f"head: {head}", "", table, ""]
    for result in ordered:
        lines += wrapped(f"{result.name}: {compared(result).reason}", "- ", "  ")
        lines += [line for each in _behind(result) for line in wrapped(each, "  ", "    ")]
    if any(result.simulated for result in results):
        lines.append(SIMULATED)
    return "\n".join(lines)


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
    table = [table_row(head_row), table_row(["---"] * len(head_row))]
    for result in ordered:
        _, name, before, after, change = _row(result)
        decision = compared(result).decision
        rates = f"{prose(before)} → {prose(after)}" if before and after else prose(before or after)
        table.append(table_row([f"{_ICONS[decision]} {decision}", prose(name, 120), rates, prose(change)]))
    blocks.append("\n".join(table))
    behind = []
    for result in ordered:
        behind.append(f"- {prose(result.name, 120)}: {prose(compared(result).reason)}")
        behind += [f"  - {prose(each)}" for each in _behind(result)]
    blocks.append("\n".join(behind))
    blocks.append(f"Base: {prose(base)}; head: {prose(head)}.")
    return "\n\n".join(blocks) + "\n"


def compared(result: Result) -> Comparison:
    """The comparison of a result that has one."""
    assert result.comparison is not None  # noqa: S101 - what the callers above ask for
    return result.comparison


def _row(result: Result) -> list[str]:
    found = compared(result)
    return [
        found.decision.value,
        result.name,
        interval(found.base_rate),
        interval(found.head_rate or result.sustainable_rate),
        rows.change(found),
    ]


def _behind(result: Result) -> list[str]:
    found = compared(result)
    return [
        *(f"differs: {each}" for each in found.differs),
        *(f"changed: {each}" for each in found.changed),
        *latency_lines(found.latencies),
    ]


def _worst_first(results: Iterable[Result]) -> list[Result]:
    return sorted(results, key=lambda result: _WORST_FIRST.index(compared(result).decision))
