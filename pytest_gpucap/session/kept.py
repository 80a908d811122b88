"""The results of the running test. Each is kept at once, so an error later in the test does not lose it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.results.comparison import Comparison
from pytest_gpucap.results.encoding import normalised
from pytest_gpucap.results.result import Result


class KeptResult:
    """A result to which the test may still add a comparison and its server time.

    Attributes:
        result: the result so far.
    """

    def __init__(self, result: Result, changed: Callable[[], None]) -> None:
        self.result = result
        self._changed = changed

    def become(self, result: Result) -> None:
        """Replace the result by one that knows more."""
        self.result = result
        self._changed()

    def spend(self, phase: str, seconds: float) -> None:
        """Count server time that was spent on the result after it was measured."""
        self._change(spent_s={**self.result.spent_s, phase: seconds})

    def compare(self, comparison: Comparison) -> None:
        """Add the comparison."""
        self._change(comparison=comparison)
        self._changed()

    def _change(self, **fields: object) -> None:
        self.result = normalised(msgspec.structs.replace(self.result, **fields))


class KeptResults:
    """What one test has measured so far.

    Args:
        heard: told the results whenever there is one more, so that they are written down before the test ends.

    Attributes:
        asked: the test has asked for a measurement, whatever came of it.
        measured: one of the results that were taken can be trusted.
        lost: an error that a measurement raised in another thread than the test's; empty: there was none.
    """

    def __init__(self, heard: Callable[[Sequence[Result]], None] | None = None) -> None:
        self.asked = self.measured = False
        self.lost = ""
        self._running = threading.Lock()
        self._test_thread: int | None = None
        """Of the attempt that runs; None where there is none."""
        self._kept: list[KeptResult] = []
        self.count = 0
        """Results kept so far, those taken included."""
        self.part: KeptResult | None = None
        """The result that is still being measured, if some of it is kept."""
        self.untrusted = False
        """One of the results is INVALID."""
        self._heard = heard

    def begin(self) -> None:
        """An attempt to run the test begins, in this thread. What an earlier one has asked for is another's."""
        self.asked = self.measured = self.untrusted = False
        self.lost, self.count = "", 0
        self._test_thread = threading.get_ident()

    def end(self) -> None:
        """The attempt has ended: nothing more is measured for it."""
        self._test_thread = None

    @property
    def runs_on(self) -> bool:
        """Whether a measurement still runs, in another thread."""
        return self._running.locked()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """One measurement of the test. An error in another thread than the test's is noted: pytest may not see it.

        Raises:
            RequirementError: if the test has ended, or another of its measurements still runs.
        """
        self.asked = True
        try:
            self._begin_measuring()
            try:
                yield
            finally:
                self._running.release()
        except BaseException as error:
            if self._test_thread not in {None, threading.get_ident()}:
                self.lost = str(error) or type(error).__name__
            raise

    def _begin_measuring(self) -> None:
        if self._test_thread is None:
            raise RequirementError(
                "the test that this gpucap fixture belongs to has ended: use the fixture of the test that runs"
            )
        if not self._running.acquire(blocking=False):
            raise RequirementError(
                "another measurement of this test still runs, and two at once would measure each other: start one "
                "after the other"
            )

    def keep(self, result: Result) -> KeptResult:
        """Keep a result; the test may add to the one returned."""
        self.count += 1
        self._kept.append(kept := KeptResult(result, self._tell))
        self._tell()
        return kept

    def keep_part(self, result: Result) -> None:
        """Keep what is known so far of a result that is still being measured."""
        if self.part is None:
            self.part = self.keep(result)
        else:
            self.part.become(result)

    def keep_whole(self, result: Result) -> KeptResult:
        """Keep a result that is measured, in place of its part if that was kept."""
        if self.part is None:
            return self.keep(result)
        kept, self.part = self.part, None
        kept.become(result)
        return kept

    def _tell(self) -> None:
        self.untrusted = self.untrusted or any(not result.trusted for result in self.results)
        if self._heard is not None:
            self._heard(self.results)

    @property
    def results(self) -> list[Result]:
        """In the order in which they were measured."""
        return [kept.result for kept in self._kept]

    def take(self) -> list[Result]:
        """The results since the last call."""
        results, self._kept, self.part = self.results, [], None
        self.measured = self.measured or any(result.trusted for result in results)
        return results
