r"""Exact numbers as people and models write them: ``1,024``, ``-3.50``, ``\frac{3}{4}``, ``1/3``, ``25\%``."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_FRACTION: Final = re.compile(r"([-+]?)\\[dt]?frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*([-+]?\d+)\s*\}")
_PLAIN: Final = re.compile(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)(?:/([1-9]\d*))?(%?)")
_THOUSANDS: Final = re.compile(r"(?<=\d)(?:,|\{,\}|\\,|\\!|\s)(?=\d{3}(?!\d))")
_DRESSING: Final = re.compile(r"^(?:\\\(|\\\[|\$|\*|\s)+|(?:\\\)|\\\]|\$|\*|\s|\.(?!\d))+$")
_MOST_DIGITS: Final = 400
"""Longer than any answer meant; a model that repeats itself writes numbers without end."""

NUMBER: Final = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/[1-9]\d*)?%?")
"""A number within a sentence."""


def exact_number(text: str) -> Fraction | None:
    """The number that a text is, dollar signs and thousands separators aside; None where it is anything else.

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
