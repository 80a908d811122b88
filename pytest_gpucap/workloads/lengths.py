"""Lengths that describe what a file holds."""

from __future__ import annotations

import math
from typing import Final

from pytest_gpucap.arrays import Int32s
from pytest_gpucap.requirement import Length, LengthKind

CHARACTERS_PER_TOKEN: Final = 4
"""Stands in for a tokenizer where no server counts: collection, and simulated servers."""


def estimated_tokens(characters: int) -> int:
    """Tokens of a text, where no server counts them."""
    return max(1, math.ceil(characters / CHARACTERS_PER_TOKEN))


def described(tokens: Int32s) -> Length:
    """A length with the mean, spread and bounds of some token counts, shape (n,)."""
    low, high, mean = int(tokens.min()), int(tokens.max()), float(tokens.mean())
    if low == high:
        return Length.fixed(low)
    return Length(LengthKind.LOGNORMAL, mean, low, high, float(tokens.std()) / mean)
