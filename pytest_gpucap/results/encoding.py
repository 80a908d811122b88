"""Results as builtins and as JSON, and back.

JSON has no NaN and no infinity, so a figure that may be unknown has a type of its own, and is null in a file. Figures
are rounded to seven significant figures. `normalised` gives the result as a reader of its file gets it, so that a
session decides and reports on the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from pytest_gpucap.masking import MASK, is_secret_name, masked

if TYPE_CHECKING:
    Figure = float
    LowEnd = float
    HighEnd = float
else:

    class _Float(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, float)

    class Figure(metaclass=_Float):
        """A float; NaN if unknown, which is null in a file."""

        unknown: ClassVar = math.nan

    class LowEnd(Figure):
        """The low end of an interval; an open end is null in a file."""

        unknown: ClassVar = -math.inf

    class HighEnd(Figure):
        """The high end of an interval; an open end is null in a file."""

        unknown: ClassVar = math.inf


def decoded_figure(kind: Any, value: Any) -> float:
    """The ``dec_hook`` of msgspec for the types above.

    Raises:
        TypeError: if the value is neither a number nor null.
    """
    if not isinstance(kind, type) or not issubclass(kind, Figure):
        raise NotImplementedError(f"a result has no {kind}")
    if value is None:
        unknown: float = kind.unknown  # type: ignore[attr-defined]
        return unknown
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            raise ValueError("Number out of range") from None
    raise TypeError(f"Expected `float | null`, got `{_JSON_NAMES.get(type(value), 'object')}`")


_JSON_NAMES = {str: "str", bool: "bool", list: "array", dict: "object"}


T = TypeVar("T")


def to_builtins(value: Any) -> Any:
    """The value as dicts, lists, strings, numbers and None: what JSON holds.

    Raises:
        TypeError: if a result may not hold the value.
    """
    return _rounded(msgspec.to_builtins(value, enc_hook=_plain))


def from_builtins(value: Any, kind: type[T]) -> T:
    """A value of type `kind` from builtins. Unknown keys are ignored: a newer build may have added them.

    Raises:
        msgspec.ValidationError: if the builtins do not fit `kind`. The message ends with the path.
    """
    return msgspec.convert(value, kind, dec_hook=decoded_figure)


def normalised(value: T) -> T:
    """The value as a reader of its file gets it."""
    return from_builtins(to_builtins(value), type(value))


_NUMBERS = frozenset({"series", "timeline", "histograms"})
"""Parts of a result that hold hundreds of thousands of numbers, and no text that is shown."""


def changed_texts(value: T, change: Callable[[str], str]) -> T:
    """A result, or a part of one, with every string changed, keys included; the original is left as it is."""
    return _changed(value, change)  # type: ignore[return-value] # the same kind of value


def _changed(value: object, change: Callable[[str], str], *, by_name: bool = False) -> object:
    """The same with every text changed; `by_name`: texts whose name says that they are secrets become `MASK`."""
    match value:
        case Enum():
            return value
        case str():
            return change(value)
        case msgspec.Struct():
            fields = {name: getattr(value, name) for name in value.__struct_fields__ if name not in _NUMBERS}
            changed = {name: _changed(each, change, by_name=by_name) for name, each in fields.items()}
            return msgspec.structs.replace(value, **changed)
        case Mapping():
            return {
                _changed(key, change): MASK
                if by_name and isinstance(each, str) and each and is_secret_name(str(key))
                else _changed(each, change, by_name=by_name)
                for key, each in value.items()
            }
        case tuple() | list():
            return type(value)(_changed(each, change, by_name=by_name) for each in value)
    return value


def without_secrets(value: T) -> T:
    """A result, or a part of one, with every secret in it masked, also those that only the name before them tells."""
    return _changed(value, masked, by_name=True)  # type: ignore[return-value] # the same kind of value


def encoded(value: Any) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(to_builtins(value)), indent=1)


def _plain(value: Any) -> Any:
    """Builtins for types that msgspec does not know."""
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return value.tolist()
    raise TypeError(f"a result may not hold a {type(value).__name__}: {value!r}")


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return rounded(value)
        case str():
            return writable(value)
        case Mapping():
            return {_rounded(key): _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
    return value


def writable(text: str) -> str:
    """The text as a file can hold it. A name that is no UTF-8 has halves of surrogate pairs; they are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def rounded(value: float) -> float | None:
    """Seven significant figures; None for what is not finite.

    Milliseconds are always kept, because a monotonic clock may have counted for months since boot.
    """
    if not math.isfinite(value):
        return None
    return round(value, 3) if abs(value) >= 1e4 else float(f"{value:.7g}")  # noqa: PLR2004 - 7 figures end at 1 ms
