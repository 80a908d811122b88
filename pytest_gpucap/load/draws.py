"""What schedules are drawn with: random streams that are the same everywhere, and the lengths drawn from them.

Only Philox's raw 64-bit stream is used; `schedule` says why.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from pytest_gpucap.arrays import Floats, Int32s
from pytest_gpucap.requirement import Length, LengthKind


class Purpose(IntEnum):
    """What a random stream is for."""

    ARRIVALS = 0
    INPUT = 1
    OUTPUT = 2
    HOT = 3
    TURNS = 4
    THINK = 5
    PAST = 6
    CARRIED = 7


def random_generator(seed: int, stream: int, purpose: int = 0) -> np.random.Generator:
    """The random generator of (seed, stream, purpose); distinct keys give independent streams."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, purpose))))


def uniform(rng: np.random.Generator, n: int) -> Floats:
    """Uniform on the open interval (0, 1), 53 bits, shape (n,)."""
    raw = rng.bit_generator.random_raw(n)
    open_unit: Floats = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return open_unit


def draw_lengths(length: Length, rng: np.random.Generator, n: int) -> Int32s:
    """Token counts, shape (n,), each within [low, high].

    The mean and coefficient of variation of a lognormal length are those before it is held to the bounds.
    """
    drawn_at = uniform(rng, n)
    if length.kind is LengthKind.FIXED:
        return np.full(n, length.low, np.int32)
    if length.kind is LengthKind.UNIFORM:
        drawn = length.low + np.floor(drawn_at * (length.high - length.low + 1))
    else:
        from scipy.special import ndtri  # imported late: only this kind needs it

        variance = math.log1p(length.cv**2)
        drawn = np.rint(np.exp(math.log(length.mean) - variance / 2 + math.sqrt(variance) * ndtri(drawn_at)))
    held: Int32s = np.clip(drawn, length.low, length.high).astype(np.int32)
    return held
