"""The numbers that a user writes: exact fractions of their decimal text, durations, shares, counts.

Every one is read here, and a number that nobody can mean is refused in one line.
"""

from __future__ import annotations

import numbers
import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

from pytest_gpucap.errors import GpuCapError, shortened, told

Number = int | float | str | Decimal | Fraction


class RequirementError(GpuCapError, ValueError):
    """A declared value is invalid; the message names the value and the fix."""


LARGEST: Final = 10**20
"""Above every number that a declaration can mean, a random seed of 64 bits included."""
_SMALLEST: Final = Fraction(1, 10**12)
_LONGEST_NUMBER: Final = 100
"""Characters; a float has 24 at most."""
_WRITTEN: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?0*(?P<exponent>[0-9]*))?")
_LONGEST_EXPONENT: Final = 4
"""Digits without leading zeros. `Decimal` itself fails at some eighteen."""
_NOT_FINITE: Final = re.compile(r"[-+]?(?:nan|inf|infinity)", re.IGNORECASE | re.ASCII)


def exact(value: Number, what: str) -> Fraction:
    """The exact fraction of a number as it was written: ``exact(1.1, "headroom") == Fraction(11, 10)``.

    Every number that a user writes is read here. Length and exponent are checked first: the fraction of ``1e9999999``
    has ten million digits.

    Raises:
        RequirementError: if the value is no finite number, or so large or small that it can only be a mistake.
    """
    if isinstance(value, bool) or not isinstance(value, str | Decimal | numbers.Real):
        raise RequirementError(f"{what} must be a number, not {told(value)}")
    if isinstance(value, numbers.Rational):  # NumPy's integers too
        return _bounded(Fraction(int(value.numerator), int(value.denominator)), value, what)
    text = str(value).strip()
    if _NOT_FINITE.fullmatch(text):
        raise RequirementError(f"{what} must be a finite number, not {told(value)}")
    written = _WRITTEN.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if written is None or text[-1] in "eE+-":
        raise RequirementError(f"{what} must be a number, not {told(value)}")
    if len(written["exponent"] or "") > _LONGEST_EXPONENT:
        raise _out_of_bounds(value, what)
    number = Decimal(text)
    if number and not -_MOST_DIGITS <= number.adjusted() <= _MOST_DIGITS:
        raise _out_of_bounds(value, what)
    return _bounded(Fraction(number), value, what)


_MOST_DIGITS: Final = 30
"""Of a decimal before or after its point; `_bounded` compares exactly."""


def _bounded(number: Fraction, value: Number, what: str) -> Fraction:
    if number and not _SMALLEST <= abs(number) <= LARGEST:
        raise _out_of_bounds(value, what)
    return number


def _plain(value: Number) -> str:
    """A number for a message, without quotation marks."""
    return shortened(str(value).strip())


def _out_of_bounds(value: Number, what: str) -> RequirementError:
    return RequirementError(f"{what} must be 0, or between 1e-12 and 1e20, not {told(value)}")


def positive(value: Number, what: str) -> Fraction:
    """`exact`, and above zero."""
    number = exact(value, what)
    if number <= 0:
        raise RequirementError(f"{what} must be above 0, not {_plain(value)}")
    return number


def whole(value: Number, what: str, least: int = 1) -> int:
    """A whole number of at least `least`; ``"4"``, ``4`` and ``4.0`` are the same."""
    number = exact(value, what)
    if number.denominator != 1 or number < least:
        raise RequirementError(f"{what} must be a whole number of at least {least}, not {told(value)}")
    return int(number)


MOST_STARTS: Final = 20
"""Of a server for one result: nobody would wait for more, and they would tell little more."""


def starts(value: Number, what: str) -> int:
    """How many starts of a server one result comes from."""
    number = whole(value, what)
    if number > MOST_STARTS:
        raise RequirementError(f"{what} must be a whole number from 1 to {MOST_STARTS}, not {told(value)}")
    return number


MOST_TOKENS: Final = 2**24
"""Of one prompt or answer: more than any model's context, and little enough for 32 bits and for memory."""


def tokens(value: Number, what: str, least: int = 1) -> int:
    """A number of tokens in one prompt or answer."""
    number = whole(value, what, least)
    if number > MOST_TOKENS:
        raise RequirementError(f"{what} must be at most {MOST_TOKENS} tokens, not {told(value)}")
    return number


def headroom(value: Number, what: str) -> Fraction:
    """A factor on the target rate, of at least 1."""
    number = exact(value, what)
    if number < 1:
        raise RequirementError(f"{what} must be at least 1 (1.3 keeps 30% in reserve), not {_plain(value)}")
    return number


def share(value: Number, what: str) -> Fraction:
    """A share between 0 and 1, as ``0.01`` or ``"1%"``."""
    text = value.strip() if isinstance(value, str) else ""
    number = exact(text[:-1], what) / 100 if text.endswith("%") else exact(value, what)
    if not 0 <= number <= 1:
        raise RequirementError(f"{what} must lie between 0 and 1 (0% and 100%), not {_plain(value)}")
    return number


def proper_share(value: Number, what: str) -> float:
    """A share above 0 and below 1."""
    found = float(share(value, what))
    if not 0 < found < 1:
        raise RequirementError(f"{what} must lie above 0% and below 100%, not {_plain(value)}")
    return found


_DURATION = re.compile(
    r"(?P<number>[0-9]{0,50}\.?[0-9]{1,50}(?:e[+-]?[0-9]{1,9})?)\s{0,9}(?P<unit>us|ms|s|m|min|h)?",
    re.IGNORECASE | re.ASCII,  # beyond ASCII there are other letters whose capital is S, K or I
)
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


_LONGEST_BARE_S = 60.0
"""A plain number above this is more often milliseconds than seconds."""
_SHORTEST_S, _LONGEST_S = 1e-6, 500 * 3600.0
"""Timers of the system end before 600 hours."""


def duration_s(value: Number, what: str) -> float:
    """Seconds from ``"500ms"``, ``"20s"``, ``"10m"``, ``"1h"`` or a plain number of seconds up to a minute.

    Raises:
        RequirementError: if the text is no duration, not above zero, or above a minute without a unit.
    """
    unit: str | None = None
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise RequirementError(f'{what} must be a duration such as "500ms", "20s" or "10m", not {told(value)}')
        unit = match["unit"]
        seconds = float(match["number"]) * _UNIT_S[(unit or "s").lower()]
    else:
        seconds = float(exact(value, what))
    if not seconds > 0:
        raise RequirementError(f"{what} must be above 0, not {told(value)}")
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise RequirementError(f'{what} must be between "1us" and "500h", not {told(value)}')
    if unit is None and seconds > _LONGEST_BARE_S:
        bare = str(value).strip()
        raise RequirementError(f'{what}={bare} needs a unit, since it is above a minute: "{bare}s" or "{bare}ms"')
    return seconds
