"""Figures that may be unknown: JSON has no NaN and no infinity, and holds null in their place."""

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
        """A float; NaN where it is not known, which a file holds as null."""

        unknown: ClassVar = math.nan

    class LowEnd(Figure):
        """The low end of an interval; null in a file is an open end."""

        unknown: ClassVar = -math.inf

    class HighEnd(Figure):
        """The high end of an interval; null in a file is an open end."""

        unknown: ClassVar = math.inf


def decoded_figure(kind: Any, value: Any) -> float:
    """What msgspec calls for the types above (its ``dec_hook``).

    Raises:
        TypeError: if the value is neither a number nor null.
    """
    if not isinstance(kind, type) or not issubclass(kind, Figure):
        raise NotImplementedError(f"{kind} stands in no result")
    if value is None:
        unknown: float = kind.unknown  # type: ignore[attr-defined]
        return unknown
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"Expected `float | null`, got `{_JSON_NAMES.get(type(value), 'object')}`")


_JSON_NAMES = {str: "str", bool: "bool", list: "array", dict: "object"}
