"""Results -> plain text for a terminal: the summary table and the text of a failure; no colour.

Every text fits the columns that it is given: 80 unless the terminal has more. A wider terminal shows whole names and
more columns. The first line of a failure is never broken: pytest repeats it in its own summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pytest_gpucap.report import changes, rows, windows
from pytest_gpucap.report.columns import LEAST, LEAST_NAME, NARROW, column_apart, display_width, padded, table, wrapped
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.explanation import explained_in
from pytest_gpucap.report.formatting import (
    NOT_MEASURED,
    Row,
    bound_by,
    gpus_needed,
    percent_interval,
    seconds,
    shown_bound,
    significant,
    slack_text,
    sustained,
)
from pytest_gpucap.report.headline import Tone, result_headline, standing, stated, verdict_word, worst_first
from pytest_gpucap.results.points import WHAT_IT_IS
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import Bottleneck

_NAME = 18
"""Columns for the name of a window on a terminal of 80; a wider one has more."""
SIMULATED: Final = f"SIMULATED: {NOT_MEASURED}"
IMPORTED: Final = f"IMPORTED: {WHAT_IT_IS}"


def summary(results: Iterable[Result], width: int = NARROW) -> str:
    """One table, worst first; then what every failure rests on; then where and how long it was measured."""
    return "\n".join(line for line, _ in summary_lines(results, width))


def summary_lines(results: Iterable[Result], width: int = NARROW) -> list[tuple[str, Tone]]:
    """The lines of `summary`; a line that states what a result came to comes with its tone."""
    width = max(LEAST, width)
    ordered = worst_first([cleaned(result) for result in results])
    lines = _table(ordered, width)
    # One line for each result, under the headers.
    tones = [*[Tone.NONE] * (len(lines) - len(ordered)), *(_tone(result) for result in ordered)]
    parts = [list(zip(lines, tones, strict=True))]
    for result in ordered:
        if said := _reasons(result, width):
            verdict, *others = said
            parts.append([(verdict, _tone(result)), *((line, Tone.NONE) for line in others)])
    beside = (_bullets(_limits(ordered), width), _bullets(_notes(ordered), width), _footnotes(ordered, width))
    parts += [[(line, Tone.NONE) for line in lines] for lines in beside if lines]
    first, *more = parts
    return [*first, *(line for part in more for line in [("", Tone.NONE), *part])]


def _tone(result: Result) -> Tone:
    found = standing(result)
    return Tone.NONE if found.tone is Tone.EXPECTED else found.tone


def _limits(results: Sequence[Result]) -> list[str]:
    """Each result as a share of its physical limit, or why it has none. Simulated results have none."""
    lines = [f"{result.name}: {result.limit.text}" for result in results if result.limit is not None]
    unknown: dict[str, list[str]] = {}
    for result in results:
        if result.no_limit and not result.simulated:
            unknown.setdefault(result.no_limit, []).append(result.name)
    return lines + [f"no physical limit for {', '.join(names)}: {reason}" for reason, names in unknown.items()]


def _notes(results: Sequence[Result]) -> list[str]:
    """What verdicts leave unsaid; what is the same of several results, once."""
    named: dict[str, list[str]] = {}
    for result in results:
        for text in rows.notes(result):
            named.setdefault(text, []).append(result.name)
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in named.items()]


def failure(result: Result, width: int = NARROW) -> str:
    """The text of a failed check: the arithmetic first, then the evidence, then where it is explained."""
    result, width = cleaned(result), max(LEAST, width)
    lines = [f"{verdict_word(result)}: {result_headline(result).text}"]
    if result.simulated:
        lines.append(SIMULATED)
    if result.reason not in lines[0]:
        lines += ["", *wrapped(result.reason, width=width)]
    return "\n".join([*lines, "", details(result, width), "", *wrapped(explained_in(result), hang="  ", width=width)])


def section(result: Result, width: int = NARROW) -> str:
    """What a test measured before it failed by itself."""
    head = f"{verdict_word(result)}: {result_headline(cleaned(result)).text}"
    return "\n".join([head, *([SIMULATED] if result.simulated else []), "", details(result, width)])


def details(result: Result, width: int = NARROW) -> str:
    """The evidence for a result: its figures, what was compared, windows, bottleneck and environment."""
    result, width = cleaned(result), max(LEAST, width)
    lines = _aligned(rows.result_rows(result), width)
    if compared := changes.compared_lines(result.comparison, width):
        lines += ["", *compared]
    if result.samples:
        headers, body = windows.window_table(result)
        room = _NAME + max(0, width - NARROW)
        lines += ["", *table(headers, column_apart(body, 0, room), width)]
    if result.problems:
        lines += [
            "",
            "why nothing was measured:" if result.left_unmeasured else "why the measurement cannot be trusted:",
            *_bullets([problem.text for problem in result.problems], width),
        ]
    if result.bottleneck:
        lines += ["", *_bottleneck(result.bottleneck, width)]
    lines += ["", *_aligned(rows.environment_rows(result), width)]
    return "\n".join(lines)


def _gpus(result: Result) -> str:
    needed, most = gpus_needed(result), "<= " if shown_bound(result) is not None else ""
    return "" if needed is None else f"{most}{needed} of {result.requirement.gpus}"


_COLUMNS: Final[tuple[tuple[str, Callable[[Result], str]], ...]] = (
    ("verdict", lambda result: standing(result).word),
    ("requirement", lambda result: result.name.strip()),
    ("req/s per replica", sustained),
    ("needed", lambda result: significant(result.design_rate_rps) if result.design_rate_rps else ""),
    ("GPUs", _gpus),
    ("slack", slack_text),
)
_MORE_COLUMNS: Final[tuple[tuple[str, Callable[[Result], str]], ...]] = (
    (
        "slack (interval)",
        lambda result: percent_interval(result.slack) if result.slack and shown_bound(result) is None else "",
    ),
    ("bound by", bound_by),
    ("against the baseline", lambda result: changes.change(result.comparison) if result.comparison else ""),
    ("server time", lambda result: "" if result.imported else seconds(result.total_spent_s)),
)
"""Columns of wide terminals, the most useful first."""


def _table(results: Sequence[Result], width: int) -> list[str]:
    """A line for each result. What does not fit is left out: columns first, then parts of names, columns again."""
    columns = list(_COLUMNS)
    for column in _MORE_COLUMNS:
        wider = [*(each for each in columns if each[0] != "slack" or column[0] != "slack (interval)"), column]
        if any(column[1](result) for result in results) and _fits(_laid_out(wider, results), width):
            columns = wider
    while True:
        lines = _laid_out(columns, results)
        too_wide = max(map(display_width, lines)) - width
        if too_wide <= 0:
            return lines
        longest = max((display_width(result.name.strip()) for result in results), default=0)
        room = max(LEAST_NAME, longest - too_wide)
        lines = _laid_out(columns, results, room)
        if _fits(lines, width) or len(columns) <= 3:  # noqa: PLR2004 - verdict, name and rate always stand
            return lines
        columns.pop()


def _fits(lines: Sequence[str], width: int) -> bool:
    return max(map(display_width, lines)) <= width


def _laid_out(
    columns: Sequence[tuple[str, Callable[[Result], str]]], results: Sequence[Result], room: int | None = None
) -> list[str]:
    """The table in one piece, however wide, with names of at most `room` columns."""
    cells = [[shown(result) for _, shown in columns] for result in results]
    if room is not None:
        cells = column_apart(cells, 1, room)
    return table([name for name, _ in columns], cells, _ANY_WIDTH, ruled=True)


_ANY_WIDTH: Final = 1_000_000


def _reasons(result: Result, width: int) -> list[str]:
    """A bad result in a few lines: the arithmetic, the limit that binds, the bottleneck, what to try.

    A sample has no verdict, so its latencies stand here. A regression stands with the other comparisons.
    """
    found = standing(result)
    sampled = rows.sampled(result)
    own = found.ending is not None and not result.regressed
    if not (result.failed or result.left_unmeasured or own or sampled):
        return []
    lines = _bullets([stated(result)], width)
    shown = [*sampled, *(rows.reasoning(result) + rows.adapters(result) if sampled else [])]
    shown += rows.causes(result) if result.failed or found.ending is not None else []
    for name, value in shown:
        if result.more_time is None or value != result.more_time.text:  # the headline has it
            lines += wrapped(f"{name}: {value}", "  ", "    ", width)
    return lines


def _footnotes(results: Sequence[Result], width: int) -> list[str]:
    notes = []
    if any(result.sustainable_rate and shown_bound(result) is None for result in results):
        notes += wrapped("(95% intervals; needed: QPS x headroom / replicas in the budget)", width=width)
    places = {place for result in results if (place := rows.measured_on(result))}
    notes += [line for place in sorted(places) for line in wrapped(f"measured on {place}", hang="  ", width=width)]
    spent = sum(result.total_spent_s for result in results)
    if not all(result.imported for result in results):
        notes.append(f"server time: {seconds(spent)}")
    if any(result.imported for result in results):
        notes += wrapped(IMPORTED, width=width)
    if any(result.simulated for result in results):
        notes += wrapped(SIMULATED, width=width)
    return notes


def _bottleneck(found: Bottleneck, width: int) -> list[str]:
    lines = [*wrapped(f"bottleneck: {found.kind}", width=width), *_bullets(found.evidence, width)]
    return lines + (wrapped(f"try: {found.advice}", width=width) if found.advice else [])


def _aligned(named: Sequence[Row], width: int) -> list[str]:
    column = max(display_width(name) for name, _ in named) + 2
    return [
        line for name, value in named for line in wrapped(value, padded(name, column), " " * column, width) or [name]
    ]


def _bullets(texts: Sequence[str], width: int) -> list[str]:
    return [line for text in texts for line in wrapped(text, "- ", "  ", width)]
