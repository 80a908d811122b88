"""Results as builtins and as JSON, and back.

Figures are rounded to seven significant figures; a figure that is not finite is null. `normalised` gives the result as
a reader of its file gets it, so that a session decides and reports on the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import PurePath
from typing import Any, TypeVar

import msgspec

from pytest_gpucap.results.figures import decoded_figure

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
        case Mapping():
            return {key: _rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
    return value


def rounded(value: float) -> float | None:
    """Seven significant figures; None for what is not finite.

    Milliseconds are always kept, because a monotonic clock may have counted for months since boot.
    """
    if not math.isfinite(value):
        return None
    return round(value, 3) if abs(value) >= 1e4 else float(f"{value:.7g}")  # noqa: PLR2004 - 7 figures end at 1 ms
