"""How much of its prompts the server finds in its prefix cache while it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_gpucap.engines.kv_cache import told_block_tokens
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.results.build import Context
from pytest_gpucap.results.measured import Sample, judged_samples
from pytest_gpucap.session.server_manager import SystemUnderTest

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner
    from pytest_gpucap.session.secondary import Summary

_BLOCK: Final = 16
"""Tokens of a block where the server does not tell: most have no larger ones."""


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """Shares of the prompt tokens in the judged windows; None where they are not known.

    Attributes:
        found: in the server's prefix cache.
        sent: before, in whole blocks: what a server finds that forgets nothing.
    """

    found: float | None = None
    sent: float | None = None

    def told(self, context: Context) -> Context:
        """The context with both."""
        return replace(context, prefix_hit_rate=self.found, prefix_sent_rate=self.sent)


class WatchedHits:
    """The hits of one start.

    Args:
        summary: of the server's counters; None where nobody reads them.
        runner: knows which tokens had been sent before.
        block: tokens of a block of the cache; None where the shares are no figures of the result: the workload has no
            sessions.
    """

    def __init__(self, summary: Summary | None, runner: LoadRunner, block: int | None) -> None:
        self._summary, self._runner, self._block = summary, runner, block

    def of_samples(self, samples: Sequence[Sample]) -> PrefixHits:
        """The shares in the judged ones of some windows together."""
        if self._block is None:
            return PrefixHits()
        judged = judged_samples(samples)
        found = self._rate([(each.start_s, each.end_s) for each in judged])
        return PrefixHits() if found is None else PrefixHits(found, _sent(self._runner, judged, self._block))

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

    workload = declared.workload
    with ExitStack() as open_now:
        alike = workload.sessions is not None or workload.prompts is not None
        summary = summary_of(target, runner, open_now, counters=alike)
        block = None
        if workload.sessions is not None:
            # In virtual time tokens are found one by one, and asking would start the server.
            block = 1 if runner.simulated else told_block_tokens(target.endpoint) or _BLOCK
        yield WatchedHits(summary, runner, block)


def _sent(runner: LoadRunner, judged: Sequence[Sample], block: int) -> float:
    """The share of the prompt tokens due in these windows that had been sent before, in whole blocks."""
    journal = runner.journal()
    before = prompts = 0
    for each in judged:
        due = (journal.due_s >= each.start_s) & (journal.due_s < each.end_s)
        before += int((journal.cached_tokens[due] // block * block).sum())
        prompts += int(journal.prompt_tokens[due].sum())
    return before / prompts if prompts else 0.0
