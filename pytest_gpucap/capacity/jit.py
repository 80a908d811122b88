"""Compiles the inner loops with numba where it is installed ; the same Python, 20 times slower, runs without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

DISABLE = "GPUCAP_NO_NUMBA"
"""Environment variable; when set to anything, numba is not used even where it is installed."""

try:
    if os.environ.get(DISABLE):
        raise ImportError  # noqa: TRY301 - the same ending as where it is missing
    import numba
except ImportError:
    COMPILED = False

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        """The function itself."""
        return function

else:
    COMPILED = True

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        """The function as machine code, compiled at its first call and kept on disk."""
        wrapped: Callable[P, R] = numba.njit(cache=True, nogil=True)(function)
        return wrapped
