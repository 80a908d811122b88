"""How much of the prompts of sessions the server finds in its prefix cache while it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.results.measured import Sample, judged_samples
from pytest_gpucap.session.server_manager import SystemUnderTest

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner

HitRate = Callable[[Sequence[Sample]], float | None]
"""The hit rate in the judged ones of some windows; None where it is not known."""


@contextmanager
def watched_hits(declared: Declaration, target: SystemUnderTest, runner: LoadRunner) -> Iterator[HitRate]:
    """Watch the server's counters, if the workload has sessions. Ask before the target is left."""
    if declared.workload.sessions is None:
        yield lambda _samples: None
        return
    from pytest_gpucap.session.secondary import summary_of

    with ExitStack() as open_now:
        summary = summary_of(target, runner, open_now, counters=True)

        def hit_rate(samples: Sequence[Sample]) -> float | None:
            """Tokens found over tokens looked up, of all judged windows together."""
            if summary is None:
                return None
            seen = [summary(each.start_s, each.end_s).server for each in judged_samples(samples)]
            pairs = [
                (each.prefix_hits, each.prefix_queries)
                for each in seen
                if each.prefix_hits is not None and each.prefix_queries is not None
            ]
            queries = sum(asked for _, asked in pairs)
            return sum(found for found, _ in pairs) / queries if queries else None

        yield hit_rate
