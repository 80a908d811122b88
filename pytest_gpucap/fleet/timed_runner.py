"""Load runners whose phases begin and end when they are told to, so that several can carry one schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from pytest_gpucap.load.protocol import LoadPhase, LoadRunner, PhaseSpan, Progress
from pytest_gpucap.load.runner import PROGRESS_S, HttpLoadRunner


@runtime_checkable
class TimedRunner(LoadRunner, Protocol):
    """A load runner in real time whose phases begin and end when they are told to, on its own clock."""

    def prepare(self, phase: LoadPhase | None = None) -> object:
        """Get ready for a phase, as far as that takes time."""
        ...

    def start_at(self, start_s: float) -> None:
        """The next phase begins then, or later if that time has passed."""
        ...

    def end_at(self, end_s: float) -> None:
        """The running phase ends then, if not before. Another thread may call this."""
        ...


class TimedHttpRunner(HttpLoadRunner):
    """A `TimedRunner` that drives a server over HTTP from this machine. Arguments: see `HttpLoadRunner`."""

    _end_at_s = math.inf

    def start_at(self, start_s: float) -> None:
        """See `TimedRunner.start_at`."""
        self._last_end_s = max(self._last_end_s, start_s)
        self._end_at_s = math.inf

    def end_at(self, end_s: float) -> None:
        """See `TimedRunner.end_at`."""
        self._end_at_s = end_s

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`."""

        def ask(progress: Progress) -> bool:
            if should_stop is not None and should_stop(progress):
                return True
            left_s = self._end_at_s - self.clock.now()
            if left_s > PROGRESS_S:
                return False
            time.sleep(max(left_s, 0.0))
            return True

        return super().run(phase, ask)
