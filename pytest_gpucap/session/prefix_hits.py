"""How much of the prompts of sessions the server finds in its prefix cache while it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


SeenHits = Callable[[Sequence[Sample]], PrefixHits]
"""The hits in the judged ones of some windows."""


@contextmanager
def watched_hits(declared: Declaration, target: SystemUnderTest, runner: LoadRunner) -> Iterator[SeenHits]:
    """Watch the server's counters, if the workload has sessions. Ask before the target is left."""
    if declared.workload.sessions is None:
        yield lambda _samples: PrefixHits()
        return
    from pytest_gpucap.session.secondary import summary_of

    with ExitStack() as open_now:
        summary = summary_of(target, runner, open_now, counters=True)
        # In virtual time tokens are found one by one, and asking would start the server.
        block = 1 if runner.simulated else told_block_tokens(target.endpoint) or _BLOCK

        def seen_hits(samples: Sequence[Sample]) -> PrefixHits:
            """Tokens found over tokens looked up, of all judged windows together."""
            if summary is None:
                return PrefixHits()
            judged = judged_samples(samples)
            seen = [summary(each.start_s, each.end_s).server for each in judged]
            pairs = [
                (each.prefix_hits, each.prefix_queries)
                for each in seen
                if each.prefix_hits is not None and each.prefix_queries is not None
            ]
            queries = sum(asked for _, asked in pairs)
            if not queries:
                return PrefixHits()
            return PrefixHits(sum(found for found, _ in pairs) / queries, _sent(runner, judged, block))

        yield seen_hits


def _sent(runner: LoadRunner, judged: Sequence[Sample], block: int) -> float:
    """The share of the prompt tokens due in these windows that had been sent before, in whole blocks."""
    journal = runner.journal()
    before = prompts = 0
    for each in judged:
        due = (journal.due_s >= each.start_s) & (journal.due_s < each.end_s)
        before += int((journal.cached_tokens[due] // block * block).sum())
        prompts += int(journal.prompt_tokens[due].sum())
    return before / prompts if prompts else 0.0
