"""Which LoRA adapter each request names as its model: drawn by the mix's shares, from the seed and the prompt's number.

So the same seed gives the same draws on every machine, for every number of workers and of load generators.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from itertools import accumulate
from typing import Final

import numpy as np

from pytest_gpucap.arrays import Ints
from pytest_gpucap.load.hashing import hash64, hash64_all
from pytest_gpucap.requirement import BASE_MODEL

_STREAM: Final = 0xADA97E25
"""Keeps these draws apart from others that come from the same seed."""


class AdapterDraw:
    """The draws of one measurement.

    Args:
        mix: share of each adapter by its name, adding up to 1; see `Workload.adapters`.
        seed: of the measurement.
    """

    def __init__(self, mix: Mapping[str, float], seed: int) -> None:
        self.names: tuple[str, ...] = tuple(mix)
        ends = list(accumulate(Fraction(share) for share in mix.values()))
        # Draws are uniform on 64 bits. The last adapter has whatever is left.
        self._ends = [int(end / ends[-1] * 2**64) for end in ends[:-1]]
        self._key = hash64(hash64(seed & 0xFFFFFFFFFFFFFFFF) ^ _STREAM)

    def of(self, number: int) -> int:
        """The place in the mix of the adapter of prompt `number`."""
        return bisect_right(self._ends, hash64(number ^ self._key))

    def of_all(self, first: int, n: int) -> Ints:
        """`of` each of the prompt numbers [first, first + n), shape (n,)."""
        hashed = hash64_all(np.arange(first, first + n, dtype=np.uint64) ^ np.uint64(self._key))
        return np.searchsorted(np.array(self._ends, np.uint64), hashed, side="right").astype(np.int64)

    def models(self, base: str) -> tuple[str, ...]:
        """What a request of each adapter sends as its model, where the server's own is `base`."""
        return tuple(base if name == BASE_MODEL else name for name in self.names)


def draw_of(mix: Mapping[str, float], seed: int) -> AdapterDraw | None:
    """The draws of a mix; None where there is none."""
    return AdapterDraw(mix, seed) if mix else None
