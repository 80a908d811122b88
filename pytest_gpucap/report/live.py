"""The measurement as it goes: one live line on a terminal, a plain line a phase everywhere else."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from typing import Final

from pytest_gpucap.report.wording import limit_name, rate, seconds

_CLEAR: Final = "\r\x1b[K"
_REPEAT_S: Final = 30.0


class Live:
    """Follows one measurement and says where it is.

    Args:
        name: of the requirement.
        write: takes text for the terminal, past pytest's capture; None says nothing.
        interactive: the terminal can rewrite its last line.
    """

    def __init__(self, name: str, write: Callable[[str], None] | None, *, interactive: bool) -> None:
        self._name = name
        self._write = write
        self._interactive = interactive
        self._open_line = False
        self._said_at = -math.inf

    def say(self, text: str) -> None:
        """One line that stays."""
        if self._write is not None:
            self._write(f"{_CLEAR if self._open_line else ''}{self._name}: {text}\n")
            self._open_line = False

    def waiting(self, text: str) -> None:
        """What a wait is for; rewritten in place on a terminal, elsewhere said twice a minute."""
        if self._write is None:
            return
        if self._interactive:
            self._rewrite(f"{self._name}: {text}")
        elif time.monotonic() - self._said_at >= _REPEAT_S:
            self._said_at = time.monotonic()
            self.say(text)

    def phase(
        self, label: str, *, rate_rps: float | None, concurrency: int | None, duration_s: float, spent_s: float
    ) -> None:
        """A phase begins."""
        load = f" at {rate(rate_rps)}" if rate_rps is not None else ""
        load += f" with {concurrency} in flight" if concurrency is not None else ""
        self.say(f"{label}{load}, {duration_s:.0f} s ({spent_s:.0f} s spent)")

    def progress(
        self,
        label: str,
        *,
        in_flight: int,
        completed: int,
        latency: str,
        latency_s: float,
        limit_s: float,
        spent_s: float,
        left_s: float,
    ) -> None:
        """A few times a second while a phase runs; only an interactive terminal shows it."""
        if self._write is None or not self._interactive:
            return
        against = ""
        if latency and not math.isnan(latency_s):
            against = f", {limit_name(latency)} {seconds(latency_s)} of {seconds(limit_s)}"
        line = (
            f"{self._name}: {label}: {in_flight} in flight, {completed} done{against}, "
            f"{spent_s:.0f} s spent, {left_s:.0f} s left"
        )
        self._rewrite(line)

    def _rewrite(self, line: str) -> None:
        if self._write is not None:
            self._write(f"{_CLEAR}{line[: shutil.get_terminal_size().columns - 1]}")
            self._open_line = True

    def done(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._open_line and self._write is not None:
            self._write(_CLEAR)
            self._open_line = False
