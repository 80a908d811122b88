"""How much of the prompts of sessions the server finds in its prefix cache while it is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from msgspec import structs

from pytest_gpucap.markers import Declaration
from pytest_gpucap.report.formatting import percent
from pytest_gpucap.results.build import Context
from pytest_gpucap.results.measured import Sample, judged_samples
from pytest_gpucap.session.server_manager import SystemUnderTest

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner

FORGETS: Final = 0.03
"""So many of the prompt tokens less than were sent before are too many to come from where windows begin and end."""
_BLOCK: Final = 16
"""Tokens of a block. A server finds whole blocks, and most have no larger ones."""


@dataclass(frozen=True, slots=True)
class PrefixHits:
    """Of the prompt tokens in the judged windows.

    Attributes:
        found: the share that the server found in its cache; None where it is not known.
        sent: the share that had been sent before, in whole blocks: what a server finds that forgets nothing.
    """

    found: float | None = None
    sent: float = 0.0

    @property
    def remark(self) -> str:
        """What a server that forgets means for the rate; empty if it has what was sent before."""
        if self.found is None or self.sent - self.found < FORGETS:
            return ""
        sent = percent(self.sent)
        return (
            f"the server found {percent(self.found)} of the prompt tokens in its prefix cache, and {sent} had been "
            "sent before: what it forgets grows with rate and time, so in the long run it may sustain less"
        )

    def told(self, context: Context) -> Context:
        """The context with the hit rate, and the remark if there is one."""
        environment = context.environment
        if self.remark:
            environment = structs.replace(environment, remarks=(*environment.remarks, self.remark))
        return replace(context, environment=environment, prefix_hit_rate=self.found)


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
            return (
                PrefixHits(sum(found for found, _ in pairs) / queries, _sent(runner, judged))
                if queries
                else PrefixHits()
            )

        yield seen_hits


def _sent(runner: LoadRunner, judged: Sequence[Sample]) -> float:
    """The share of the prompt tokens due in these windows that had been sent before, in whole blocks."""
    journal = runner.journal()
    before = prompts = 0
    for each in judged:
        due = (journal.due_s >= each.start_s) & (journal.due_s < each.end_s)
        before += int((journal.cached_tokens[due] // _BLOCK * _BLOCK).sum())
        prompts += int(journal.prompt_tokens[due].sum())
    return before / prompts if prompts else 0.0
