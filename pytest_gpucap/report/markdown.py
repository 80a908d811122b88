"""A result file's document -> Markdown for a pull request: the verdict, one table, and the rest folded away.

Written for GitHub (step summary, comment), and plain enough for GitLab and Buildkite. Every string that the document
holds is escaped, and none begins a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pytest_gpucap.report import comparison
from pytest_gpucap.report import rows as facts
from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.escape import code_block, prose, table_row
from pytest_gpucap.report.formatting import NOT_MEASURED, headline_parts, percent, seconds
from pytest_gpucap.report.mermaid import chart
from pytest_gpucap.sizing import gpus_required

LIMIT: Final = 64_000
"""Bytes: a comment on GitHub holds 65,536 characters."""
_LEAST_DETAILS: Final = 1_000
"""Bytes below which no details fit; thousands of results need not be written down to find that out."""
_TOO_LONG: Final = " " * _LEAST_DETAILS
_RESERVE: Final = 600
"""Bytes kept for the sentence that says what was left out."""
_ICONS: Final = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "❔", "INVALID": "⚠️", None: "📈"}
_REGRESSED: Final = "🔻"
_WORDS: Final = {"PASS": "holds", "FAIL": "fails", "INCONCLUSIVE": "is undecided", "INVALID": "was not measured"}

Line = Mapping[str, Any]


def render(document: Mapping[str, Any], limit: int = LIMIT) -> str:
    """The report, of at most `limit` bytes in UTF-8; what had to be left out is said.

    Verdicts come before reasons, reasons before charts and folded detail, and the worst result before the others, so
    what is cut is what matters least.
    """
    records = facts.worst_first([cleaned(record) for record in document["results"]])
    page = _Page(limit - _RESERVE)
    page.add(_verdict(records))
    if document["simulated"]:
        page.add(f"> **SIMULATED**: {NOT_MEASURED}.")
    _table(page, records)
    page.add(_footer(document, records))
    for number, record in enumerate(records):
        page.offer("reasons", _reasons(record, named=number < _LEADING))
    for record in records:
        page.offer("details", _details(record) if page.room > _LEAST_DETAILS else _TOO_LONG)
    return page.text()


class _Page:
    """Blocks of Markdown, a blank line between them, up to a number of bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._blocks: list[str] = []
        self._left_out: dict[str, int] = {}

    def add(self, block: str) -> None:
        """What must be there."""
        self._blocks.append(block)
        self.room -= len(block.encode()) + 2

    def offer(self, what: str, block: str) -> None:
        """What may be left out: the block, if there is one and it fits."""
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


def _verdict(records: Sequence[Line]) -> str:
    """The worst verdicts with their arithmetic, and how many there are of each kind."""
    judged = [record for record in records if record["outcome"] is not None]
    if not judged:
        return f"{_ICONS[None]} **GPU capacity measured**: {len(records)} results, no budget declared"
    bad = [record for record in judged if record["outcome"] != "PASS" and not facts.expected(record)]
    regressed = [record for record in records if facts.regressed(record)]
    lines = []
    for record in bad[:_LEADING]:
        claim, why = headline_parts(record)
        lines.append(f"{_ICONS[record['outcome']]} **{prose(claim, 200)}**: {prose(why)}")
    for record in regressed[:_LEADING]:
        decision, _, rest = comparison.headline(record).partition(": ")
        lines.append(f"{_REGRESSED} **{prose(decision)}**: {prose(rest)}")
    if not bad:
        held = sum(record["outcome"] == "PASS" for record in judged)
        lines.append(f"{_ICONS['PASS']} **{held} of {len(judged)} GPU budgets hold**")
    counts = {word: sum(record["outcome"] == outcome for record in judged) for outcome, word in _WORDS.items()}
    expected = sum(facts.expected(record) for record in judged)
    said = [f"{count} {word}" for word, count in counts.items() if count]
    said += [f"{expected} as expected"] if expected else []
    if len(judged) > 1 or expected:
        lines.append(", ".join(said))
    return "\n\n".join(lines)


_LEADING: Final = 3
"""Failures named above the table."""


def _table(page: _Page, records: Sequence[Line]) -> None:
    compared = any(record.get("comparison") for record in records)
    rate_head = "base → head, req/s a replica (95% interval)" if compared else "req/s a replica (95% interval)"
    gpu_head = "GPUs base → head / budget" if compared else "GPUs / budget"
    heads = ["verdict", "requirement", rate_head, gpu_head, "slack (95% interval)"]
    page.rows(f"{table_row(heads)}\n{table_row(['---'] * len(heads))}", (table_row(_row(record)) for record in records))


def _row(record: Line) -> list[str]:
    outcome = record["outcome"]
    found = facts.interval(record["sustainable_rate"])
    compared = record.get("comparison") or {}
    base = compared.get("base_rate")
    if base and base["value"] is not None:
        found = f"{facts.interval(base)} → {facts.interval(compared.get('head_rate') or record['sustainable_rate'])}"
    elif compared:
        found = f"no comparable base → {found}"
    marks = f"{' (expected)' if facts.expected(record) else ''}{f' {_REGRESSED}' if facts.regressed(record) else ''}"
    return [
        f"{_ICONS[outcome]} {outcome or prose(record['kind'])}{marks}",
        prose(record["name"], 120),
        prose(found),
        _gpus(record, base),
        _slack(record),
    ]


def _gpus(record: Line, base: Mapping[str, Any] | None) -> str:
    needed, declared = record.get("gpus_required"), record["requirement"]
    if needed is None:
        return ""
    before = ""
    if base and base["value"]:
        count = gpus_required(
            declared["qps"], declared["headroom"], f"{base['value']:.7g}", declared["gpus_per_replica"]
        )
        before = f"{count} → "
    return f"{before}{needed} / {declared['gpus']}"


def _slack(record: Line) -> str:
    slack = record.get("slack")
    if not slack:
        return ""
    value, low, high = (percent(slack[key], signed=True) for key in ("value", "low", "high"))
    return prose(f"{value} ({low} to {high})")


def _reasons(record: Line, *, named: bool) -> str:
    """Why a requirement fails or regressed; the arithmetic again unless it was `named` at the top."""
    rows = facts.reasons(record)
    if not rows:
        return ""
    claim, why = headline_parts(record) if record["outcome"] is not None else (record["name"], "")
    arithmetic = "" if named or not why else f": {prose(why)}"
    bullets = [f"- {name or 'because'}: {prose(value)}" for name, value in rows]
    bullets += [f"- latency: {prose(line)}" for line in _latencies(record)]
    return "\n".join([f"**{prose(claim, 200)}**{arithmetic}", "", *bullets])


def _latencies(record: Line) -> list[str]:
    found = record.get("comparison")
    return comparison.latencies(found) if found else []


def _details(record: Line) -> str:
    """Everything a verdict rests on, folded."""
    title = f"{prose(record['name'], 120)}: limits, windows, environment"
    blocks = [
        f"<details>\n<summary>{title}</summary>",
        _facts_table(facts.rows(record)),
    ]
    if drawn := chart(record):
        picture, caption = drawn
        blocks += [f"Latency against rate. {prose(caption)}", picture]
    if record["samples"]:
        headers, body = facts.windows(record)
        table = [table_row(headers), table_row(["---"] + ["--:"] * (len(headers) - 1))]
        blocks.append("\n".join([*table, *(table_row([prose(cell) for cell in row]) for row in body)]))
    known = [(name, value) for name, value in facts.environment(record) if value]
    blocks.append(code_block([f"{name}: {value}" for name, value in [("test", record["test"]), *known]]))
    blocks.append("</details>")
    return "\n\n".join(blocks)


def _facts_table(rows: Sequence[facts.Row]) -> str:
    return "\n".join(
        [table_row(["", ""]), table_row(["---", "---"]), *(table_row([name, prose(value)]) for name, value in rows)]
    )


def _footer(document: Line, records: Sequence[Line]) -> str:
    places = sorted({place for record in records if (place := facts.place(record))})
    spent = sum(sum(filter(None, record["spent_s"].values())) for record in records)
    where = f"Measured on {prose('; '.join(places), 1000)}. " if places else ""
    return (
        f"{where}Server time {seconds(spent)}; pytest-gpucap {prose(str(document['plugin_version']))}, "
        f"{prose(str(document['started']))}."
    )
