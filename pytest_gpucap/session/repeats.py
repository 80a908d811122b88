"""One result from several starts of the server: what ``--gpucap-repeat`` means for a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from msgspec import structs

from pytest_gpucap.results.build import Context
from pytest_gpucap.results.measured import Measurement, Verdict
from pytest_gpucap.results.result import Result
from pytest_gpucap.session.harness import Harness

FoundT = TypeVar("FoundT", Measurement, Verdict)


@dataclass(frozen=True, slots=True)
class Repeats(Generic[FoundT]):
    """Measures once on each start and lays the starts together.

    Attributes:
        harness: of the test.
        count: starts.
        once: measures on the server that runs, or starts it; takes the number of the start.
        pool: what the starts so far say together.
        result: the result of that.
        heard: told the result so far after every start, so that an interrupted run keeps it.
    """

    harness: Harness
    count: int
    once: Callable[[int], tuple[FoundT, Context]]
    pool: Callable[[Sequence[FoundT]], FoundT]
    result: Callable[[FoundT, Context], Result]
    heard: Callable[[Result], object]

    def run(self, first: int = 0) -> tuple[FoundT, Context]:
        """All starts, the first on a server that may run already. A start that cannot be trusted ends the series.

        Args:
            first: number of the first of these starts among those of the test.
        """
        found: list[FoundT] = []
        contexts: list[Context] = []
        for number in range(self.count):
            if number:
                self.harness.start_afresh()
            self.harness.live.say(f"start {number + 1} of {self.count}")
            each, context = self.once(first + number)
            found.append(each)
            contexts.append(context)
            pooled = self.pool(found)
            measurement = _measurement(pooled)
            detailed = next(place for place, start in enumerate(measurement.starts) if start.detailed)
            around = _all_starts(contexts, detailed)
            if _measurement(each).problems:
                break
            if number + 1 < self.count:
                self.heard(self.result(pooled, around))
        return pooled, around


def _all_starts(contexts: Sequence[Context], detailed: int) -> Context:
    """The circumstances of the start that is detailed, with the start-ups and the figures of all."""
    phases: Counter[str] = Counter()
    for context in contexts:
        phases.update(context.start_phases_s)
    startup_s = sum(context.startup_s for context in contexts)
    figures = tuple(each for context in contexts for each in context.figures)
    requests = tuple(each for context in contexts for each in context.requests)
    return replace(
        contexts[detailed], startup_s=startup_s, start_phases_s=dict(phases), figures=figures, requests=requests
    )


def _measurement(found: Measurement | Verdict) -> Measurement:
    return found.measurement if isinstance(found, Verdict) else found


def broken_off(part: Result, unmeasured: Result, count: int) -> Result:
    """The result of the starts so far, where an error ended the next one: there is no verdict and no rate.

    Args:
        part: of the starts that were measured.
        unmeasured: the result of the error alone.
        count: starts that there were to be.
    """
    place = f"start {len(part.starts) + 1} of {count}"
    problems = tuple(structs.replace(each, text=f"{place}: {each.text}") for each in unmeasured.problems)
    return structs.replace(
        part,
        outcome=unmeasured.outcome,
        reason=f"{place}: {unmeasured.reason}",
        problems=problems,
        sustainable_rate=None,
        at_least_rps=None,
        start_spread=None,
        gpus_required=None,
        gpus_interval=None,
        slack=None,
        more_time=None,
    )
