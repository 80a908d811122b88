"""Server time of the session: what was spent, and what ``--gpucap-max-total`` leaves.

A test file may import `SystemUnderTest`, which imports this file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pytest_gpucap.errors import NotMeasured

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner

LEAST_S: Final = 5.0
"""With less left nothing is begun: no phase of a measurement would tell anything."""
OPTION: Final = "--gpucap-max-total"


class SessionTime:
    """Counts the time from the start of a server to its end; of a simulated one the virtual time of its load.

    Args:
        limit_s: seconds that the session may take; None: any.
        clock: real time in seconds.
    """

    def __init__(self, limit_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._spent_s = 0.0
        self._since_s = 0.0
        self._running = 0

    @property
    def spent_s(self) -> float:
        """Seconds so far. Two servers beside each other share one stretch of time."""
        return self._spent_s + (self._clock() - self._since_s if self._running else 0.0)

    @property
    def left_s(self) -> float:
        """Seconds left; infinite without a limit, and never below 0."""
        return math.inf if self.limit_s is None else max(0.0, self.limit_s - self.spent_s)

    def begin(self) -> None:
        """A real server is being started."""
        if not self._running:
            self._since_s = self._clock()
        self._running += 1

    def end(self) -> None:
        """A real server has ended."""
        self._running -= 1
        if not self._running:
            self._spent_s += self._clock() - self._since_s

    @contextmanager
    def driving(self, runner: LoadRunner) -> Iterator[None]:
        """Count the virtual time in which a simulated server is driven. Real time is counted anyway."""
        began_s = runner.clock.now()
        try:
            yield
        finally:
            if runner.simulated:
                self._spent_s += runner.clock.now() - began_s

    def still(self, what: str, needs_s: float | None = None) -> float:
        """The seconds left, if they are enough to begin something.

        Args:
            what: that is not done otherwise, for the message: ``chat was not measured``.
            needs_s: seconds that it needs, as far as they are known.

        Raises:
            NotMeasured: if they are not.
        """
        if self.left_s < LEAST_S:
            raise NotMeasured(f"{what}: {self.told}", needs_s)
        return self.left_s

    def while_left(self, on_wait: Callable[[str], None], what: str) -> Callable[[str], None]:
        """A line to wait with, such as for a server that starts: the wait ends when no time is left."""

        def waiting(text: str) -> None:
            if self.left_s <= 0:
                raise NotMeasured(f"{what}: {self.told}", None)
            on_wait(text)

        return waiting if self.limit_s is not None else on_wait

    @property
    def told(self) -> str:
        """What is left, for a message."""
        return f"{OPTION}={_text(self.limit_s)} leaves {self._left} of server time"

    @property
    def bound(self) -> str:
        """What ends a measurement that the session's limit ends."""
        return f"what {OPTION} left ({self._left})"

    @property
    def _left(self) -> str:
        from pytest_gpucap.report.formatting import seconds

        return seconds(self.left_s)


def _text(limit_s: float | None) -> str:
    """As a user would write it."""
    if limit_s is None:
        return "none"
    return f"{limit_s / 60:g}m" if limit_s >= 60 and limit_s % 60 == 0 else f"{limit_s:g}s"  # noqa: PLR2004 - a minute
