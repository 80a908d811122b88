"""Strings from outside, shown as they are and never obeyed: on a terminal, in Markdown, HTML and workflow commands.

Test names, model names, log lines and server answers reach reports. A terminal obeys escape sequences, and every format
gives line breaks and direction marks a meaning, so reports write them out (`visible`, `cleaned`). In Markdown and HTML
every character that could mean something becomes a character reference, because CommonMark gives references no
structural meaning, tables do not split at them, and HTML shows them as text: one escaping serves both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that make text read in another order than it is stored in."""
_NUMBERS = frozenset({"series", "timeline", "histograms"})
"""Parts of a result that hold hundreds of thousands of numbers, and no text that is shown."""
_NOT_XML = frozenset("\ufffe\uffff")
_UNSHOWABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """One line of printable text: white space becomes single spaces, controls and direction marks Python escapes."""
    if text.isascii() and text.isprintable():
        return text
    plain = " ".join(text.split())
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character in _DIRECTION | _NOT_XML or unicodedata.category(character) in _UNSHOWABLE
        else character
        for character in plain
    )


def cleaned(value: T) -> T:
    """A result, or a part of one, with every string made `visible`, keys included; the original is left as it is."""
    return _cleaned(value)  # type: ignore[return-value] # the same kind of value


def _cleaned(value: object) -> object:
    match value:
        case Enum():
            return value
        case str():
            return visible(value)
        case msgspec.Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__ if name not in _NUMBERS}
            return msgspec.structs.replace(value, **{name: _cleaned(each) for name, each in fields.items()})
        case Mapping():
            return {_cleaned(key): _cleaned(each) for key, each in value.items()}
        case tuple() | list():
            return type(value)(map(_cleaned, value))
    return value


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
