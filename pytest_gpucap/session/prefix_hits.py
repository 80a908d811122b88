"""How much of its prompts the server finds in its prefix cache while it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pytest_gpucap.markers import Declaration
from pytest_gpucap.results.measured import Sample, judged_samples
from pytest_gpucap.session.server_manager import SystemUnderTest

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner
    from pytest_gpucap.session.secondary import Summary


class WatchedHits:
    """The hits of one start.

    Args:
        summary: of the server's counters; None where nobody reads them.
        told: the hit rate is a figure of the result: the workload has sessions.
    """

    def __init__(self, summary: Summary | None, *, told: bool) -> None:
        self._summary, self._told = summary, told

    def of_samples(self, samples: Sequence[Sample]) -> float | None:
        """The hit rate in the judged ones of some windows together; None where it is not known or not told."""
        if not self._told:
            return None
        return self._rate([(each.start_s, each.end_s) for each in judged_samples(samples)])

    def between(self, start_s: float, end_s: float) -> float | None:
        """The hit rate in [start_s, end_s) on the runner's clock; None where it is not known."""
        return self._rate([(start_s, end_s)])

    def _rate(self, spans: Sequence[tuple[float, float]]) -> float | None:
        """Tokens found over tokens looked up, of all spans together."""
        if self._summary is None:
            return None
        seen = [self._summary(start_s, end_s).server for start_s, end_s in spans]
        pairs = [
            (each.prefix_hits, each.prefix_queries)
            for each in seen
            if each.prefix_hits is not None and each.prefix_queries is not None
        ]
        queries = sum(asked for _, asked in pairs)
        return sum(found for found, _ in pairs) / queries if queries else None


@contextmanager
def watched_hits(declared: Declaration, target: SystemUnderTest, runner: LoadRunner) -> Iterator[WatchedHits]:
    """Watch the server's counters. Ask before the target is left.

    Prompts of other workloads than sessions and prompts of the user's own have nothing in common, so nothing is read
    for them that is not read anyway.
    """
    from pytest_gpucap.session.secondary import summary_of

    sessions = declared.workload.sessions is not None
    with ExitStack() as open_now:
        alike = sessions or declared.workload.prompts is not None
        yield WatchedHits(summary_of(target, runner, open_now, counters=alike), told=sessions)
