"""A result file -> Markdown for a pull request: the verdict, one table, and the rest folded away.

Written for GitHub (step summary, comment); GitLab and Buildkite show it too. Every string of the file is escaped, and
none begins a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pytest_gpucap.report import changes, rows, windows
from pytest_gpucap.report.changes import figure_lines, latency_lines
from pytest_gpucap.report.columns import LONGEST_NAME, apart
from pytest_gpucap.report.escape import cleaned, code_block, prose, table_row
from pytest_gpucap.report.formatting import (
    NOT_MEASURED,
    Row,
    gpus_at,
    gpus_needed,
    interval,
    known,
    limit_name,
    percent_interval,
    seconds,
    shown_bound,
    slack_text,
    sustained,
)
from pytest_gpucap.report.headline import (
    LEADING,
    Standing,
    Tone,
    result_headlines,
    session_counts,
    session_headlines,
    standing,
    worst_first,
)
from pytest_gpucap.report.mermaid import chart
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.points import WHAT_IT_IS
from pytest_gpucap.results.result import Result, ResultFile

LIMIT: Final = 64_000
"""Bytes: a comment on GitHub holds 65,536 characters."""
_LEAST_DETAILS: Final = 1_000
"""With fewer bytes left no details fit. So they need not be written to find that out."""
_TOO_LONG: Final = " " * _LEAST_DETAILS
_RESERVE: Final = 600
"""Bytes kept for the sentence that says what was left out."""
_ICONS: Final = {
    Tone.PASS: "✅",
    Tone.FAIL: "❌",
    Tone.INCONCLUSIVE: "❔",
    Tone.INVALID: "⚠️",
    Tone.EXPECTED: "❌",
    Tone.NONE: "📈",
}
_REGRESSED: Final = "🔻"


def pull_request_page(content: ResultFile, limit: int = LIMIT) -> str:
    """The report, of at most `limit` bytes in UTF-8. It says what was left out.

    Verdicts come first, then reasons, then charts and folded detail; worse results come before better ones. So the
    least important parts are cut.
    """
    results = worst_first(map(cleaned, content.results))
    page = _Page(limit - _RESERVE)
    page.add(_verdict(results, cleaned(content.problems)))
    if content.simulated:
        page.add(f"> **SIMULATED**: {NOT_MEASURED}.")
    if any(result.imported for result in results):
        page.add(f"> **IMPORTED**: {WHAT_IT_IS}.")
    _table(page, results)
    page.add(_footer(content, results))
    for number, result in enumerate(results):
        page.offer("reasons", _reasons(result, named=number < LEADING))
    for result in results:
        page.offer("details", _details(result) if page.room > _LEAST_DETAILS else _TOO_LONG)
    return page.text()


class _Page:
    """Blocks of Markdown, a blank line between them, up to a number of bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._blocks: list[str] = []
        self._left_out: dict[str, int] = {}

    def add(self, block: str) -> None:
        """Add a block that is always written."""
        self._blocks.append(block)
        self.room -= len(block.encode()) + 2

    def offer(self, what: str, block: str) -> None:
        """Add a block if there is one and it fits."""
        if block and len(block.encode()) + 2 > self.room:
            self._leave_out(what)
        elif block:
            self.add(block)

    def rows(self, head: str, rows: Iterator[str]) -> None:
        """A table, cut at the row that no longer fits."""
        kept, room = [head], self.room - len(head.encode()) - 2
        for row in rows:
            room -= len(row.encode()) + 1
            if room < 0:
                self._leave_out("table rows")
            else:
                kept.append(row)
        self.add("\n".join(kept))

    def _leave_out(self, what: str) -> None:
        self._left_out[what] = self._left_out.get(what, 0) + 1

    def text(self) -> str:
        blocks = self._blocks
        if self._left_out:
            parts = ", ".join(f"{what} of {count} results" for what, count in self._left_out.items())
            blocks = [*blocks, f"*Left out, to keep this page short: {parts}. The result file has them all.*"]
        return "\n\n".join(blocks) + "\n"


def _verdict(results: Sequence[Result], problems: Sequence[str]) -> str:
    """The session's headlines, and how many results there are of each kind."""
    lines = []
    for line in session_headlines(results, problems):
        icon = _REGRESSED if line.regression else _ICONS[line.standing.tone]
        why = f": {prose(line.why)}" if line.why else ""
        lines.append(f"{icon} **{prose(line.claim, 200)}**{why}")
    judged = sum(result.outcome is not None for result in results)
    if (said := session_counts(results)) and (judged > 1 or any(result.expected_failure for result in results)):
        lines.append(said)
    return "\n\n".join(lines)


def _icon(found: Standing) -> str:
    return _REGRESSED if found.word == "REGRESSED" else _ICONS[found.tone]


def _table(page: _Page, results: Sequence[Result]) -> None:
    compared = any(result.comparison is not None for result in results)
    rate_head = "base → head, req/s per replica (95% interval)" if compared else "req/s per replica (95% interval)"
    gpu_head = "GPUs base → head / budget" if compared else "GPUs / budget"
    heads = ["verdict", "requirement", rate_head, gpu_head, "slack (95% interval)"]
    named = zip(results, apart([result.name for result in results], LONGEST_NAME), strict=True)
    page.rows(f"{table_row(heads)}\n{table_row(['---'] * len(heads))}", (table_row(_row(*each)) for each in named))


def _row(result: Result, name: str) -> list[str]:
    stands = standing(result)
    found = sustained(result)
    compared = result.comparison
    base = None if compared is None else compared.base_rate
    if compared is not None and base is not None and known(base.value) is not None:
        found = f"{interval(base)} → {interval(compared.head_rate) or found}"
    elif compared is not None:
        found = f"no comparable base → {found}"
    # A verdict that fails the test anyway is marked where its rate regressed as well.
    mark = f" {_REGRESSED}" if result.regressed and result.failed else ""
    return [
        f"{_icon(stands)} {prose(stands.text)}{mark}",
        prose(name),
        prose(found),
        _gpus(result, base),
        _slack(result),
    ]


def _gpus(result: Result, base: Interval | None) -> str:
    needed, declared = gpus_needed(result), result.requirement
    if needed is None:
        return ""
    before = ""
    if base is not None and known(base.value):
        count = gpus_at(result, base.value)
        before = "" if count is None else f"{count} → "
    most = "at most " if shown_bound(result) is not None else ""
    return f"{before}{most}{needed} / {declared.gpus}"


def _slack(result: Result) -> str:
    if shown_bound(result) is not None:
        return prose(slack_text(result))
    return "" if result.slack is None else prose(percent_interval(result.slack))


def _reasons(result: Result, *, named: bool) -> str:
    """Why a requirement fails or regressed, or what a sample showed. The arithmetic is left out if it was `named`."""
    sampled = rows.sampled(result)
    beside = [*rows.reasoning(result), *rows.adapters(result)] if sampled else []
    because = [*rows.reasons(result), *sampled, *beside]
    if not because:
        return "\n".join(f"**{prose(result.name, 200)}**: {prose(text)}" for text in rows.notes(result))
    first = result_headlines(result)[0]
    claim, why = (result.name, "") if first.regression else (first.claim, first.why)
    arithmetic = "" if (named and standing(result).bad) or not why else f": {prose(why)}"
    bullets = [f"- {name or 'because'}: {prose(value)}" for name, value in because]
    bullets += [f"- latency: {prose(line)}" for line in _slower(result)]
    figures = [] if result.comparison is None else figure_lines(result.comparison.figures)
    bullets += [f"- base and head: {prose(line)}" for line in figures]
    return "\n".join([f"**{prose(claim, 200)}**{arithmetic}", "", *bullets])


def _slower(result: Result) -> list[str]:
    """Latencies of base and head that have a limit or got worse; the details have them all."""
    if result.comparison is None:
        return []
    return latency_lines(
        each
        for each in result.comparison.latencies
        if each.limit in result.slo.percentiles or each.decision is RegressionDecision.REGRESSED
    )


def _latency_table(result: Result) -> str:
    """Empty where no latency was compared."""
    found = () if result.comparison is None else result.comparison.latencies
    if not found:
        return ""
    heads = ["", *changes.LATENCY_HEADERS]
    lines = [table_row(heads), table_row(["---", "--:", "--:", "---", "---"])]
    lines += [
        table_row([prose(f"{limit_name(each.limit)} at {each.load}"), *map(prose, changes.latency_cells(each))])
        for each in found
    ]
    return "\n".join(lines)


def _details(result: Result) -> str:
    """All the evidence for a verdict, folded."""
    title = f"{prose(result.name, 120)}: limits, windows, environment"
    blocks = [
        f"<details>\n<summary>{title}</summary>",
        _rows_table(rows.result_rows(result)),
    ]
    if latencies := _latency_table(result):
        blocks += [f"{_sentence(changes.LATENCIES)}.", latencies]
    if result.comparison is not None and result.comparison.figures:
        told = [f"- {prose(line)}" for line in figure_lines(result.comparison.figures)]
        blocks += [f"{_sentence(changes.FIGURES)}.", "\n".join(told)]
    if drawn := chart(result):
        picture, caption = drawn
        blocks += [f"Latency against rate. {prose(caption)}", picture]
    if result.samples:
        headers, body = windows.window_table(result)
        table = [table_row(headers), table_row(["---"] + ["--:"] * (len(headers) - 1))]
        blocks.append("\n".join([*table, *(table_row([prose(cell) for cell in row]) for row in body)]))
    known = [(name, value) for name, value in rows.environment_rows(result) if value]
    blocks.append(code_block([f"{name}: {value}" for name, value in [("test", result.test), *known]]))
    blocks.append("</details>")
    return "\n\n".join(blocks)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _rows_table(named: Sequence[Row]) -> str:
    return "\n".join(
        [table_row(["", ""]), table_row(["---", "---"]), *(table_row([name, prose(value)]) for name, value in named)]
    )


def _footer(content: ResultFile, results: Sequence[Result]) -> str:
    places = sorted({place for result in results if (place := rows.measured_on(result))})
    spent = sum(result.total_spent_s for result in results)
    where = f"Measured on {prose('; '.join(places), 1000)}. " if places else ""
    return (
        f"{where}Server time {seconds(spent)}; pytest-gpucap {prose(content.plugin_version)}, "
        f"{content.started.isoformat(timespec='seconds')}."
    )
