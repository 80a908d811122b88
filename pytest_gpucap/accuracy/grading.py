r"""Grades answers: the last ``\boxed{}``, or the final answer of plain text, against the result that is right.

Numbers are compared exactly, here. Everything else goes to ``math-verify`` where it is installed, in a process of its
own: it brings SymPy, it may compute for ever, and it bounds that by signals that belong to the caller's process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from pytest_gpucap.accuracy.numbers import NUMBER, exact_number
from pytest_gpucap.accuracy.questions import has_maths_parser

PARSER_S: Final = 120.0
"""What all answers together may take in the parser's process; an answer takes milliseconds, SymPy's start seconds."""
_MOST_TEXT: Final = 4_000
"""Characters at the end of an answer that are looked at; the result stands there."""
_ANCHOR: Final = re.compile(r"(?:answer|result)\b[^\d\n]{0,40}?(?:is|:|=)[^\d\n+.-]{0,20}", re.IGNORECASE)
_JUDGED: Final = {b"true": True, b"false": False}
_UNITS: Final = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]*\}|\\(?:,|;|!|quad|circ)|\^\{?\\circ\}?")


class Grade(StrEnum):
    """What an answer was found to be."""

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADED = "ungraded"
    """It may be either: no maths parser is installed, or it could not read the answer in time."""


def grade(answers: Sequence[tuple[str, str]]) -> list[Grade]:
    """Grade pairs of (the server's whole answer, the right result)."""
    grades: list[Grade] = []
    hard: list[tuple[int, str, str]] = []
    for number, (text, expected) in enumerate(answers):
        said = final_text(text)
        known = _by_number(said, expected)
        grades.append(Grade.UNGRADED if known is None else Grade.RIGHT if known else Grade.WRONG)
        if known is None:
            hard.append((number, said, expected))
    if hard and has_maths_parser():
        judged = _by_parser([(said, expected) for _, said, expected in hard])
        for (number, _, _), right in zip(hard, judged, strict=True):
            if right is not None:
                grades[number] = Grade.RIGHT if right else Grade.WRONG
    return grades


def final_text(text: str) -> str:
    """What an answer says after its thinking; empty where the thinking never ends."""
    _, closed, said = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return ""
    return said.strip()[-_MOST_TEXT:]


def thought(text: str) -> bool:
    """Whether an answer shows reasoning between think tags; templates that open the tag leave only the closing one."""
    before, closed, said = text.rpartition("</think>")
    shown = before if closed else said.partition("<think>")[2]
    return bool(shown.replace("<think>", "").strip())


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}``, whatever braces stand in it; None where there is none."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    first = text.index("{", start) + 1
    depth = 1
    for place in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[first:place]
    return None


def _by_number(said: str, expected: str) -> bool | None:
    """Whether an answer is right, as far as numbers tell; None: that takes a parser."""
    if not said:
        return False
    wanted = exact_number(expected)
    inside = boxed(said)
    if inside is not None:
        bare = _UNITS.sub("", inside).rpartition("=")[2]
        given = exact_number(bare)
        if wanted is not None and given is not None:
            return wanted == given
        return True if inside.strip() == expected.strip() else None
    if wanted is None:
        return None
    found = _final_number(said)
    if found is not None and exact_number(found) == wanted:
        return True
    # A root, a power or a fraction may still be that number.
    return None if "\\" in said or "^" in said else False


def _final_number(said: str) -> str | None:
    """The number after the last "answer is", or else the last number."""
    anchors = list(_ANCHOR.finditer(said))
    if anchors and (match := NUMBER.match(said, anchors[-1].end())):
        return match[0]
    numbers = NUMBER.findall(said)
    return numbers[-1].rstrip(",") if numbers else None


def _by_parser(answers: Sequence[tuple[str, str]]) -> list[bool | None]:
    """The same by ``math-verify``; None for what its process did not come to."""
    command = [sys.executable, "-P", "-m", "pytest_gpucap.accuracy.judge"]
    try:
        done = subprocess.run(
            command, input=json.dumps(answers).encode(), capture_output=True, timeout=PARSER_S, check=False
        )
        told = done.stdout
    except subprocess.TimeoutExpired as late:
        told = late.stdout or b""
    # A line for each answer as soon as it is known: what came before the end stands.
    judged = [_JUDGED.get(line.strip()) for line in told.splitlines()[: len(answers)]]
    return judged + [None] * (len(answers) - len(judged))
