"""What must hold for every input: it ends in time and in little memory, is refused in one line, and changes no file."""

from __future__ import annotations

import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

CPU_S = 5.0
"""Time that one input may take: of the processor, because other processes may take the machine."""
WAIT_S = 60
"""An input that takes no processor time waits for something."""
MEMORY_BYTES = 500 * 2**20


class BrokenError(AssertionError):
    """An input broke what must hold."""


@dataclass(frozen=True)
class Figures:
    """What became of many inputs."""

    inputs: int
    refused: int
    seconds: float
    slowest_s: float
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s, {self.refused:,} refused in one line, "
            f"the slowest took {self.slowest_s:.2f} s of processor time, "
            f"memory grew by {self.memory_bytes / 2**20:.0f} MiB"
        )


class Guard:
    """Runs inputs and checks what must hold for each.

    Args:
        kept: a folder whose files no input may change.
    """

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._before = self._seen()
        self._memory = _peak()
        self.inputs = 0
        self.refused = 0
        self.slowest_s = 0.0

    @property
    def memory_bytes(self) -> int:
        """By which the peak of this process has grown."""
        return _peak() - self._memory

    def run(self, door: Callable[[Any], str | None], value: Any) -> None:
        """Give an input to a door; it returns why it refused the input, or None."""
        began = time.process_time()
        with _alarm():
            try:
                said = door(value)
            except BrokenError:
                raise
            except Exception as error:
                raise BrokenError(f"{_place(error)}: {type(error).__name__}: {str(error)[:200]}") from error
        took = time.process_time() - began
        self.inputs += 1
        self.refused += said is not None
        self.slowest_s = max(self.slowest_s, took)
        if said is not None and (not said.strip() or any(ord(letter) < 32 or letter == "\x7f" for letter in said)):
            raise BrokenError(f"not one line: {said[:300]!r}")
        if took > CPU_S:
            raise BrokenError(f"took {took:.1f} s of processor time")
        if self.memory_bytes > MEMORY_BYTES:
            grown, self._memory = self.memory_bytes, _peak()  # the peak stays: later inputs are not to blame
            raise BrokenError(f"took {grown / 2**20:.0f} MiB of memory")

    def figures(self, seconds: float) -> Figures:
        """Of all inputs so far."""
        return Figures(self.inputs, self.refused, seconds, self.slowest_s, self.memory_bytes)

    def check_files(self) -> None:
        """Check that no file was changed, made or removed."""
        now = self._seen()
        if now != self._before:
            raise BrokenError(
                f"changed {sorted(str(path) for path, _ in set(now.items()) ^ set(self._before.items()))}"
            )

    def _seen(self) -> dict[Path, tuple[int, int]]:
        found = {path: path.lstat() for path in self._kept.rglob("*") if not path.is_dir()}
        return {path: (each.st_size, each.st_mtime_ns) for path, each in found.items()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "pytest_gpucap" in each.filename]
    return f"{frames[-1].filename.rpartition('pytest_gpucap/')[2]}:{frames[-1].lineno}" if frames else "?"


@contextmanager
def _alarm() -> Iterator[None]:
    def waits(_number: int, _frame: FrameType | None) -> None:
        raise BrokenError(f"waits for something: no end after {WAIT_S} s")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(WAIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
