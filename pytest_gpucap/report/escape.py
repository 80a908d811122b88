"""Strings from outside, shown as they are and never obeyed: on a terminal, in Markdown, HTML and workflow commands.

Test names, model names, log lines and server answers reach reports. A terminal obeys escape sequences, and every format
gives line breaks and direction marks a meaning, so reports write them out (`visible`, `cleaned`). In Markdown and HTML
every character that could mean something becomes a character reference, because CommonMark gives references no
structural meaning, tables do not split at them, and HTML shows them as text: one escaping serves both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from pytest_gpucap.foreign_text import COMMAND, visible
from pytest_gpucap.results.encoding import changed_texts

T = TypeVar("T")


def cleaned(value: T) -> T:
    """A result, or a part of one, with every string made `visible`, keys included; the original is left as it is."""
    return changed_texts(value, visible)


def json_text(value: object) -> str:
    """Indented JSON for a terminal and for CI's log reader: ASCII alone, and no workflow command anywhere in it."""
    return COMMAND.sub(lambda match: f"\\u{ord(match[0][0]):04x}{match[0][1]}", json.dumps(value, indent=1))


_MEANINGFUL: Final = {ord(character): f"&#{ord(character)};" for character in '\\`*_{}[]<>#!|~$&@^"'}
# GitHub and GitLab look for mentions in the finished text, where a character reference is a character again. Only an
# additional character breaks them up. So a zero-width space goes after a sigil that a word follows (@user, #1, !2,
# ~label, %milestone, $snippet, &epic, ^alert, GH-3), and into what would become a link.
_REFERENCE: Final = re.compile(
    r"(?<=[@#!~%$&^])(?=[\w\"{*\[])|(?<=GH-)(?=\d)|(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE
)
_BREAK: Final = "\u200b"
_ELLIPSIS: Final = "..."


def prose(text: str, limit: int = 600) -> str:
    """Text for a Markdown paragraph, a table cell or an HTML element: one line, at most `limit` characters of it.

    It must not start a line, because a line's first characters can be markup (``-``, ``1.``, and
    GitLab's ``/close``).
    """
    line = visible(text)
    if len(line) > limit:
        line = line[: limit - len(_ELLIPSIS)] + _ELLIPSIS
    pieces = _REFERENCE.split(line)
    return "&#8203;".join(piece.translate(_MEANINGFUL) for piece in pieces)


def table_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def code_block(lines: list[str], language: str = "text") -> str:
    """A fenced block that its content cannot close."""
    content = [visible(line) for line in lines]
    longest = max((len(run) for line in content for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *content, fence])


def command_data(text: str) -> str:
    """The message of a GitHub workflow command, line breaks kept."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """A property of a GitHub workflow command, such as ``file`` or ``title``."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")
