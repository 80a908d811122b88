"""Text in columns of a terminal: how wide it is shown, cut, wrapped and laid out in tables.

A terminal shows East Asian characters and emojis two columns wide, and combining marks in no column of their own.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

NARROW: Final = 80
"""Columns where nobody knows better."""
LEAST: Final = 40
"""Text is laid out for no fewer columns: figures and their names need them."""
LEAST_NAME: Final = 6
"""Columns that a name is cut to at most, however wide the columns beside it are."""
LONGEST_NAME: Final = 120
"""Columns of a name in a table of Markdown, which no terminal limits."""
_GAP: Final = "  "
_AIR: Final = 2
"""Columns that a header has to itself where there is room."""
_CUT: Final = "..."
_WIDE: Final = frozenset("WF")
_NO_COLUMN: Final = frozenset({"Mn", "Me", "Cf"})
_EMOJI_STYLE: Final = "\ufe0f"
"""Asks for the picture of the character before it, which is two columns wide."""


def terminal_columns() -> int:
    """Columns of the terminal behind standard output, or of ``COLUMNS``; 80 where there is neither."""
    return shutil.get_terminal_size().columns


def display_width(text: str) -> int:
    """Columns that a terminal shows the text in.

    Terminals disagree on joined emojis. They count as their parts, which is the most that any terminal shows.
    """
    if text.isascii():
        return len(text)
    return sum(width for _, width in _clusters(text))


def _clusters(text: str) -> Iterator[tuple[str, int]]:
    """Characters with the marks that belong to them, and their columns."""
    cluster, width = "", 0
    for character in text:
        if character == _EMOJI_STYLE:
            cluster, width = cluster + character, max(width, 2)
        elif unicodedata.category(character) in _NO_COLUMN:
            cluster += character
        else:
            if cluster:
                yield cluster, width
            cluster, width = character, 2 if unicodedata.east_asian_width(character) in _WIDE else 1
    if cluster:
        yield cluster, width


def cut(text: str, width: int) -> str:
    """The start of the text that fits in `width` columns."""
    kept, room = "", width
    for cluster, columns in _clusters(text):
        room -= columns
        if room < 0:
            break
        kept += cluster
    return kept


def shortened(text: str, width: int) -> str:
    """The text; with ``...`` at its end if it is cut to `width` columns."""
    return text if display_width(text) <= width else cut(text, width - len(_CUT)) + _CUT


def apart(texts: Sequence[str], width: int) -> list[str]:
    """The texts, each cut to `width` columns, so that two that differ look different.

    What is cut at its end and then looks like another keeps its start and its end, or its end alone. Where that is not
    enough, a number tells them apart.
    """
    found = {text: shortened(text, width) for text in texts}
    for cutting in (_without_middle, _without_start):
        alike = Counter(found.values())
        found = {text: cutting(text, width) if alike[shown] > 1 else shown for text, shown in found.items()}
    alike, seen = Counter(found.values()), Counter[str]()
    for text, shown in found.items():
        if alike[shown] > 1:
            seen[shown] += 1
            mark = f"~{seen[shown]}"
            found[text] = cut(text, width - len(mark)) + mark
    return [found[text] for text in texts]


def column_apart(body: Sequence[Sequence[str]], at: int, width: int) -> list[list[str]]:
    """The rows of a table, the texts of one of its columns `apart`."""
    cells = apart([row[at] for row in body], width)
    return [[*row[:at], cell, *row[at + 1 :]] for row, cell in zip(body, cells, strict=True)]


def _without_middle(text: str, width: int) -> str:
    end = _end_of(text, (width - len(_CUT)) // 2)
    return cut(text, width - len(_CUT) - display_width(end)) + _CUT + end


def _without_start(text: str, width: int) -> str:
    return _CUT + _end_of(text, width - len(_CUT))


def _end_of(text: str, width: int) -> str:
    """The end of the text that fits in `width` columns."""
    kept, room = "", width
    for cluster, columns in reversed(list(_clusters(text))):
        room -= columns
        if room < 0:
            break
        kept = cluster + kept
    return kept


def padded(text: str, width: int) -> str:
    """The text with spaces up to `width` columns."""
    return text + " " * max(0, width - display_width(text))


def wrapped(text: str, indent: str = "", hang: str = "", width: int = NARROW) -> list[str]:
    """Lines of at most `width` columns. The first begins with `indent`, the others with `hang`.

    A word without wide characters that is longer than a line stays whole: a broken path or flag cannot be copied.
    """
    lines: list[str] = []
    line, empty = indent, True
    for word in text.split():
        joined = word if empty else f" {word}"
        if display_width(line) + display_width(joined) <= width:
            line, empty = line + joined, False
            continue
        if not empty:
            lines.append(line)
            line = hang
        *full, line = _broken(line, word, hang, width)
        lines += full
        empty = False
    return lines if empty else [*lines, line]


def _broken(start: str, word: str, hang: str, width: int) -> list[str]:
    """A word at the start of a line. It is broken where it is too long and holds characters that may be parted."""
    if display_width(start) + display_width(word) <= width or all(columns < 2 for _, columns in _clusters(word)):  # noqa: PLR2004
        return [start + word]
    lines, line, fresh = [], start, True
    for cluster, columns in _clusters(word):
        if not fresh and display_width(line) + columns > width:
            lines.append(line)
            line = hang
        line, fresh = line + cluster, False
    return [*lines, line]


def table(
    headers: Sequence[str],
    body: Sequence[Sequence[str]],
    width: int,
    *,
    ruled: bool = False,
    shrunk: int | None = None,
) -> list[str]:
    """Lines of a table.

    If it does not fit in `width` columns, the texts of the column `shrunk` are cut (`apart`). If that is not enough,
    its columns are spread over several tables, one below the other. The first column, which names the rows, is in
    every one.

    Args:
        headers: of the columns.
        body: rows with as many cells.
        width: columns of the terminal.
        ruled: a line under the headers.
        shrunk: number of a column whose texts may be cut.
    """
    columns = list(zip(headers, *body, strict=True))
    widths = [max(map(display_width, column)) for column in columns]
    spacious = [max(least, display_width(head) + _AIR) for least, head in zip(widths, headers, strict=True)]
    if _total(spacious) <= width:
        widths = spacious
    elif shrunk is not None and (too_wide := _total(widths) - width) > 0:
        room = max(LEAST_NAME, widths[shrunk] - too_wide)
        return table(headers, column_apart(body, shrunk, room), width, ruled=ruled)
    lines: list[str] = []
    for part in _parts(widths, width):
        rule = [["-" * widths[number] for number in part]] if ruled else []
        rows = [[row[number] for number in part] for row in (headers, *body)]
        laid_out = [rows[0], *rule, *rows[1:]]
        if lines:
            lines.append("")
        lines += [
            _GAP.join(padded(cell, widths[number]) for number, cell in zip(part, row, strict=True)).rstrip()
            for row in laid_out
        ]
    return lines


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each table."""
    parts = [[0]]
    for number in range(1, len(widths)):
        if len(parts[-1]) > 1 and _total([widths[each] for each in (*parts[-1], number)]) > width:
            parts.append([0])
        parts[-1].append(number)
    return parts
