"""A result file -> Markdown for a pull request: the verdict, one table, and the rest folded away.

Written for GitHub (step summary, comment); GitLab and Buildkite show it too. Every string of the file is escaped, and
none begins a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pytest_gpucap.report import rows
from pytest_gpucap.report.comparison import comparison_headline_parts, latency_lines
from pytest_gpucap.report.escape import cleaned, code_block, prose, table_row
from pytest_gpucap.report.formatting import (
    NOT_MEASURED,
    gpus_needed,
    headline_parts,
    interval,
    known,
    percent_interval,
    seconds,
    shown_bound,
    slack_text,
    sustained,
)
from pytest_gpucap.report.mermaid import chart
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.sizing import gpus_required

LIMIT: Final = 64_000
"""Bytes: a comment on GitHub holds 65,536 characters."""
_LEAST_DETAILS: Final = 1_000
"""With fewer bytes left no details fit. So they need not be written to find that out."""
_TOO_LONG: Final = " " * _LEAST_DETAILS
_RESERVE: Final = 600
"""Bytes kept for the sentence that says what was left out."""
_ICONS: Final = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "❔", Outcome.INVALID: "⚠️", None: "📈"}
_REGRESSED: Final = "🔻"
_WORDS: Final = {
    Outcome.PASS: "holds",
    Outcome.FAIL: "fails",
    Outcome.INCONCLUSIVE: "is undecided",
    Outcome.INVALID: "was not measured",
}


def pull_request_page(content: ResultFile, limit: int = LIMIT) -> str:
    """The report, of at most `limit` bytes in UTF-8. It says what was left out.

    Verdicts come first, then reasons, then charts and folded detail; worse results come before better ones. So the
    least important parts are cut.
    """
    results = rows.worst_first(map(cleaned, content.results))
    page = _Page(limit - _RESERVE)
    page.add(_verdict(results))
    if content.simulated:
        page.add(f"> **SIMULATED**: {NOT_MEASURED}.")
    _table(page, results)
    page.add(_footer(content, results))
    for number, result in enumerate(results):
        page.offer("reasons", _reasons(result, named=number < _LEADING))
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


def _verdict(results: Sequence[Result]) -> str:
    """The worst verdicts with their arithmetic, and how many there are of each kind."""
    judged = [result for result in results if result.outcome is not None]
    if not judged:
        return f"{_ICONS[None]} **GPU capacity measured**: {len(results)} results, no budget declared"
    bad = [result for result in judged if rows.failed(result) and not result.expected_failure]
    regressed = [result for result in results if rows.regressed(result)]
    lines = []
    for result in bad[:_LEADING]:
        claim, why = headline_parts(result)
        lines.append(f"{_ICONS[result.outcome]} **{prose(claim, 200)}**: {prose(why)}")
    for result in regressed[:_LEADING]:
        decision, rest = comparison_headline_parts(result)
        lines.append(f"{_REGRESSED} **{prose(decision)}**: {prose(rest)}")
    if not bad:
        held = sum(result.outcome is Outcome.PASS for result in judged)
        lines.append(f"{_ICONS[Outcome.PASS]} **{held} of {len(judged)} GPU budgets hold**")
    counts = {word: sum(result.outcome is outcome for result in judged) for outcome, word in _WORDS.items()}
    expected = sum(result.expected_failure for result in judged)
    said = [f"{count} {word}" for word, count in counts.items() if count]
    said += [f"{expected} as expected"] if expected else []
    if len(judged) > 1 or expected:
        lines.append(", ".join(said))
    return "\n\n".join(lines)


_LEADING: Final = 3
"""Failures named above the table."""


def _table(page: _Page, results: Sequence[Result]) -> None:
    compared = any(result.comparison is not None for result in results)
    rate_head = "base → head, req/s per replica (95% interval)" if compared else "req/s per replica (95% interval)"
    gpu_head = "GPUs base → head / budget" if compared else "GPUs / budget"
    heads = ["verdict", "requirement", rate_head, gpu_head, "slack (95% interval)"]
    page.rows(f"{table_row(heads)}\n{table_row(['---'] * len(heads))}", (table_row(_row(result)) for result in results))


def _row(result: Result) -> list[str]:
    outcome = result.outcome
    found = sustained(result)
    compared = result.comparison
    base = None if compared is None else compared.base_rate
    if compared is not None and base is not None and known(base.value) is not None:
        found = f"{interval(base)} → {interval(compared.head_rate) or found}"
    elif compared is not None:
        found = f"no comparable base → {found}"
    marks = f"{' (expected)' if result.expected_failure else ''}{f' {_REGRESSED}' if rows.regressed(result) else ''}"
    return [
        f"{_ICONS[outcome]} {outcome or prose(result.kind)}{marks}",
        prose(result.name, 120),
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
        count = gpus_required(declared.qps, declared.headroom, f"{base.value:.7g}", declared.gpus_per_replica)
        before = f"{count} → "
    most = "at most " if shown_bound(result) is not None else ""
    return f"{before}{most}{needed} / {declared.gpus}"


def _slack(result: Result) -> str:
    if shown_bound(result) is not None:
        return prose(slack_text(result))
    return "" if result.slack is None else prose(percent_interval(result.slack))


def _reasons(result: Result, *, named: bool) -> str:
    """Why a requirement fails or regressed. The arithmetic is repeated unless it was `named` at the top."""
    because = rows.reasons(result)
    if not because:
        return ""
    claim, why = headline_parts(result) if result.outcome is not None else (result.name, "")
    arithmetic = "" if named or not why else f": {prose(why)}"
    bullets = [f"- {name or 'because'}: {prose(value)}" for name, value in because]
    bullets += [f"- latency: {prose(line)}" for line in _latencies(result)]
    return "\n".join([f"**{prose(claim, 200)}**{arithmetic}", "", *bullets])


def _latencies(result: Result) -> list[str]:
    return [] if result.comparison is None else latency_lines(result.comparison.latencies)


def _details(result: Result) -> str:
    """All the evidence for a verdict, folded."""
    title = f"{prose(result.name, 120)}: limits, windows, environment"
    blocks = [
        f"<details>\n<summary>{title}</summary>",
        _rows_table(rows.result_rows(result)),
    ]
    if drawn := chart(result):
        picture, caption = drawn
        blocks += [f"Latency against rate. {prose(caption)}", picture]
    if result.samples:
        headers, body = rows.window_table(result)
        table = [table_row(headers), table_row(["---"] + ["--:"] * (len(headers) - 1))]
        blocks.append("\n".join([*table, *(table_row([prose(cell) for cell in row]) for row in body)]))
    known = [(name, value) for name, value in rows.environment_rows(result) if value]
    blocks.append(code_block([f"{name}: {value}" for name, value in [("test", result.test), *known]]))
    blocks.append("</details>")
    return "\n\n".join(blocks)


def _rows_table(named: Sequence[rows.Row]) -> str:
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
