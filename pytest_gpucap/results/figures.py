"""Figures that may be unknown. JSON has no NaN and no infinity, so the file has null instead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

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
        return float(value)
    raise TypeError(f"Expected `float | null`, got `{_JSON_NAMES.get(type(value), 'object')}`")


_JSON_NAMES = {str: "str", bool: "bool", list: "array", dict: "object"}
