"""What compiled code of the package depends on. Nothing heavy is loaded here: a session asks before it compiles."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

DISABLE: Final = "GPUCAP_NO_NUMBA"
"""Environment variable. If it is not empty, numba is not used even if it is installed."""


@functools.cache
def package_stamp(package: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change and size of every module of the package: compiled code holds constants of them."""
    files = ((path, path.stat()) for path in sorted(package.rglob("*.py")))
    return tuple((str(path.relative_to(package)), stat.st_mtime_ns, stat.st_size) for path, stat in files)
