"""Compiles inner loops with numba if it is installed. Without it the same Python code runs, 20 times slower."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pytest_gpucap.own_code import DISABLE, package_stamp

P = ParamSpec("P")
R = TypeVar("R")


def spare_linear_algebra() -> None:
    """Keep numba from loading SciPy's linear algebra, which is a quarter of what a small process takes to start.

    Numba loads it with the first compiled function, for products of matrices, and does without where there is none.
    Only for processes of our own that never call it: a user's code may want both.
    """
    sys.modules.setdefault("scipy.linalg", None)  # type: ignore[arg-type] # what Python takes for "not to be found"


@contextlib.contextmanager
def _not_found(name: str) -> Iterator[None]:
    """Meanwhile a module that is not loaded yet cannot be found."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] # what Python takes for "not to be found"
    try:
        yield
    finally:
        del sys.modules[name]


try:
    if os.environ.get(DISABLE):
        raise ImportError  # noqa: TRY301 - handled like a missing numba
    # Where it is installed and measures nothing, loading it is a fifth of what numba takes to load.
    with _not_found("coverage"):
        import numba
    from numba.core.types import ExternalFunction
except ImportError:
    COMPILED = False

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        """The function itself."""
        return function

    def is_compiled(function: Callable[..., Any]) -> bool:  # noqa: ARG001 - see below
        """True: there is nothing to wait for."""
        return True

    def foreign(name: str, arguments: int, *, wide: bool = False) -> Callable[..., int]:
        """A function of the C library that takes integers and addresses; `wide`: it returns 64 bits, not an ``int``."""
        function: Any = getattr(ctypes.CDLL(None), name)
        function.argtypes = [ctypes.c_ssize_t] * arguments
        function.restype = ctypes.c_ssize_t if wide else ctypes.c_int
        called: Callable[..., int] = function
        return called

else:
    COMPILED = True

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        """The function as machine code, compiled at its first call and cached on disk if the disk can be written."""
        wrapped: Callable[P, R]
        try:
            wrapped = numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written
            wrapped = numba.njit(nogil=True)(function)
        else:
            _keep_until_the_package_changes(wrapped)
        return wrapped

    def _keep_until_the_package_changes(wrapped: Any) -> None:
        """Numba checks only the function's own file, but the code also contains constants of other modules."""
        kept: Any = getattr(wrapped._cache, "_cache_file", None)  # noqa: SLF001 - numba has no public way
        if hasattr(kept, "_source_stamp"):
            kept._source_stamp = package_stamp(Path(__file__).parent)  # noqa: SLF001

    def is_compiled(function: Callable[..., Any]) -> bool:
        """Whether a function of `compiled` was called in this process, or lies on disk as machine code of this version.

        True also where it is not known: this is for a word to who waits.
        """
        kept: Any = getattr(getattr(function, "_cache", None), "_cache_file", None)
        if getattr(function, "signatures", ()) or not hasattr(kept, "_load_index"):
            return True
        try:
            return bool(kept._load_index())  # noqa: SLF001 - numba has no public way
        except OSError:
            return False

    def foreign(name: str, arguments: int, *, wide: bool = False) -> Callable[..., int]:
        """The same, for compiled code only. It is called by name, so that its caller can be cached on disk."""
        result = numba.types.intp if wide else numba.types.int32
        called: Callable[..., int] = ExternalFunction(name, result(*[numba.types.intp] * arguments))
        return called
