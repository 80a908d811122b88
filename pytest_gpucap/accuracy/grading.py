r"""Grades answers: compares the last ``\boxed{}``, or the final answer of plain text, with the right result.

Numbers are compared here, exactly. Everything else goes to ``math-verify`` where it is installed, in a separate
process: it imports SymPy, it may compute for ever, and it limits that by signals, which would reach the caller.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import Final

PARSER_S: Final = 120.0
"""Time limit of the parser's process for all answers. An answer takes milliseconds, SymPy's import seconds."""
_MOST_TEXT: Final = 4_000
"""Characters at the end of an answer that are searched; the result stands there."""
_ANCHOR: Final = re.compile(r"(?:answer|result)\b[^\d\n]{0,40}?(?:is|:|=)[^\d\n+.-]{0,20}", re.IGNORECASE)
_JUDGED: Final = {b"true": True, b"false": False}
_UNITS: Final = re.compile(r"\\(?:text|mathrm|textbf)\s*\{[^{}]*\}|\\(?:,|;|!|quad|circ)|\^\{?\\circ\}?")

_FRACTION: Final = re.compile(r"([-+]?)\\[dt]?frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*([-+]?\d+)\s*\}")
_PLAIN: Final = re.compile(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)(?:/([1-9]\d*))?(%?)")
_THOUSANDS: Final = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|\s)(?=\d{3}(?!\d))")
_DRESSING: Final = re.compile(r"^(?:\\\(|\\\[|\$|\*|\s)+|(?:\\\)|\\\]|\$|\*|\s|\.(?!\d))+$")
_MOST_DIGITS: Final = 400
"""Longer than any intended answer; a model that repeats itself writes numbers without end."""

NUMBER_IN_TEXT: Final = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/[1-9]\d*)?%?")
"""A number within a sentence."""


class Grade(StrEnum):
    """What an answer was found to be."""

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADED = "ungraded"
    """Unknown: no maths parser is installed, or it could not read the answer in time."""


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
    """An answer's text after its reasoning; empty where the reasoning never ends."""
    _, closed, said = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return ""
    return said.strip()[-_MOST_TEXT:]


def has_reasoning(text: str) -> bool:
    """Whether an answer has reasoning between think tags. Where the chat template opens the tag, only the end shows."""
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
    """Whether an answer is right, by its numbers; None if that needs a parser."""
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
    if anchors and (match := NUMBER_IN_TEXT.match(said, anchors[-1].end())):
        return match[0]
    numbers = NUMBER_IN_TEXT.findall(said)
    return numbers[-1].rstrip(",") if numbers else None


def _by_parser(answers: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Whether answers are right, by ``math-verify``; None for those that its process did not decide."""
    command = [sys.executable, "-P", "-m", "pytest_gpucap.accuracy.math_verify_process"]
    try:
        done = subprocess.run(
            command, input=json.dumps(answers).encode(), capture_output=True, timeout=PARSER_S, check=False
        )
        told = done.stdout
    except subprocess.TimeoutExpired as late:
        told = late.stdout or b""
    # The process writes each line as soon as it is known, so lines before a timeout count.
    judged = [_JUDGED.get(line.strip()) for line in told.splitlines()[: len(answers)]]
    return judged + [None] * (len(answers) - len(judged))


def exact_number(text: str) -> Fraction | None:
    r"""The number that a text writes, such as ``1,024``, ``\frac{3}{4}`` or ``25\%``; None if it is anything else.

    A percentage is its share: ``25%`` is 1/4.
    """
    if len(text) > _MOST_DIGITS:
        return None
    bare = _DRESSING.sub("", text.strip()).replace("\u2212", "-").replace("\\%", "%")
    while (joined := _THOUSANDS.sub("", bare)) != bare:
        bare = joined
    bare = bare.replace(" ", "")
    if match := _FRACTION.fullmatch(bare):
        sign, above, below = match.groups()
        return None if int(below) == 0 else Fraction(int(above), int(below)) * (-1 if sign == "-" else 1)
    if match := _PLAIN.fullmatch(bare):
        sign, digits, below, percent = match.groups()
        number = Fraction(digits if not digits.endswith(".") else digits[:-1]) / int(below or 1)
        return (number / 100 if percent else number) * (-1 if sign == "-" else 1)
    return None


@cache
def has_maths_parser() -> bool:
    """Whether ``math-verify`` is installed. It is not imported for that: its SymPy takes seconds."""
    return importlib.util.find_spec("math_verify") is not None
