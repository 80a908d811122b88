"""Text from outside, made harmless: a terminal and a CI system show it as it is and obey nothing in it.

Test names, model names, log lines and answers of servers reach terminals. A terminal obeys escape sequences. The log
reader of a CI system obeys lines such as ``::add-mask::``. Whatever of it could mean something is written as Python
escapes it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_DIRECTION: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that make text read in another order than it is stored in."""
_NOT_XML: Final = frozenset("\ufffe\uffff")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNSHOWABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
COMMAND: Final = re.compile(r"(?<!\S)::(?=[A-Za-z])|##(?=\[|vso\[|teamcity\[)", re.IGNORECASE)
"""Workflow commands: ``::error::`` at the start of a line, and text may be broken into lines anywhere (GitHub);
``##[error]``, ``##vso[...]``, ``##teamcity[...]`` anywhere (GitHub, Azure, TeamCity)."""


def on_one_line(text: str) -> str:
    """The text with every character escaped that would end its line or change a terminal; its spaces stay."""
    return _CONTROL.sub(lambda match: _escaped(match[0]), text)


def printable(text: str) -> str:
    """The words of a text on one line, with every character escaped that is not printable."""
    line = " ".join(text.split())
    return "".join(character if character.isprintable() else _escaped(character) for character in line)


def visible(text: str) -> str:
    """One line of harmless text; white space becomes single spaces."""
    return harmless(" ".join(text.split()) if not (text.isascii() and text.isprintable()) else text)


def harmless(text: str) -> str:
    """The text with its line breaks and spaces, and nothing in it that is obeyed."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(_shown(character) for character in text.replace("\r\n", "\n"))
    return (
        COMMAND.sub(lambda match: f"\\x{ord(match[0][0]):02x}{match[0][1]}", text)
        if "::" in text or "##" in text
        else text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    if character in _DIRECTION or character in _NOT_XML or unicodedata.category(character) in _UNSHOWABLE:
        return _escaped(character)
    return character
