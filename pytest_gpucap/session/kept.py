"""The results of the running test. Each is kept at once, so an error later in the test does not lose it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

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
    """

    def __init__(self, heard: Callable[[Sequence[Result]], None] | None = None) -> None:
        self.asked = False
        self._kept: list[KeptResult] = []
        self.count = 0
        """Results kept so far, those taken included."""
        self.part: KeptResult | None = None
        """The result that is still being measured, if some of it is kept."""
        self.untrusted = False
        """One of the results is INVALID."""
        self._heard = heard

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
        return results
