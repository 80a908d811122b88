"""Strings from outside made harmless before any report shows them.

Test names, model names, log lines and server answers reach reports. Terminals obey escape sequences, and every
format interprets line breaks and direction marks. So these characters are shown as Python escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

import msgspec

T = TypeVar("T")

_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that change the reading direction of text."""
_NUMBERS = frozenset({"series", "timeline", "histograms"})
"""Parts of a result that hold hundreds of thousands of numbers, and no text that is shown."""
_NOT_XML = frozenset("\ufffe\uffff")
_UNSHOWABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """One line of printable text. White space becomes single spaces, controls and direction marks Python escapes."""
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
