"""A 64-bit hash (splitmix64's finaliser): of one number, and of many at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def hash64(value: int) -> int:
    """The hash of a number."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def hash64_all(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`hash64` of each number, in the same shape."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
