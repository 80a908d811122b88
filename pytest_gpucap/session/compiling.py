"""Compiled code of the check, made while a server starts instead of while it waits.

The first check after an installation compiles for many seconds. That work is started with the first server, in a
process of its own: a thread would take turns with what waits for the server. The first measurement waits for what is
left of it, since a compiler beside it would disturb it. Where the code is on disk already nothing is started. A
failure here is silent: the check then compiles for itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest_gpucap
from pytest_gpucap.load.parent_death import can_be_followed
from pytest_gpucap.own_code import DISABLE, package_stamp

_PACKAGE: Final = Path(pytest_gpucap.__file__).parent
_MODULE: Final = "pytest_gpucap.session.compile_ahead"
_PATIENCE_S: Final = 30.0
"""Longest wait after the server is ready. What is compiled by then stays compiled, and the check does the rest."""
_LOOK_S: Final = 0.1


class CompileAhead:
    """The process that compiles. There is one at most in a session."""

    def __init__(self) -> None:
        self._tried = False
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it, if there is something to compile and this session has not let it end before."""
        if self._tried or not can_be_followed():
            return
        self._tried = True
        with contextlib.suppress(
            OSError, importlib.metadata.PackageNotFoundError
        ):  # whatever it is: the check compiles
            marker = marker_path()
            if marker is None or is_compiled(marker):
                return
            home = str(_PACKAGE.parent)
            path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), home]))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(marker), str(os.getpid())],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def finish(self, waiting: Callable[[str], None]) -> None:
        """Wait until it has ended. Returns at once where it was not started.

        Args:
            waiting: shows what the wait is for. What it raises ends the wait.
        """
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
                    return
                waiting("waiting for compiled code, once after an installation")
        finally:
            self.close()

    def close(self) -> None:
        """End it, finished or not. Functions that it has compiled stay compiled."""
        process, self._process = self._process, None
        if process is not None:
            self._tried = process.poll() is not None  # what was cut short may be begun again
            process.kill()
            process.wait()


def is_compiled(marker: Path) -> bool:
    """Whether all files are there that the process named when it was done."""
    try:
        files = json.loads(marker.read_bytes())
        return bool(files) and all(Path(file).exists() for file in files)
    except (OSError, ValueError, TypeError):
        return False


def marker_path() -> Path | None:
    """The file that tells that the code is compiled; None where none is compiled or kept.

    It lies where Numba keeps the code, and goes with it. Its name has all that the code depends on.

    Raises:
        PackageNotFoundError: if there is no Numba.
    """
    if os.environ.get(DISABLE) or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return None
    known = (importlib.metadata.version("numba"), sys.implementation.cache_tag, _processor(), *package_stamp(_PACKAGE))
    name = f"gpucap-compiled-{hashlib.sha256(repr(known).encode()).hexdigest()[:20]}.json"
    own = os.environ.get("NUMBA_CACHE_DIR")
    if own:
        return Path(own) / name
    beside = _PACKAGE / "__pycache__"
    if os.access(beside if beside.exists() else _PACKAGE, os.W_OK):
        return beside / name
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "pytest-gpucap" / name


def _processor() -> tuple[str, ...]:
    """What the first processor says of itself: code for one may not run on another."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return ()
    return tuple(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features")))
