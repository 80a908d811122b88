"""How much of what sessions said a server's prefix cache has room for: as it tells, or as its hits show."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pytest_gpucap.arrays import Int32s
from pytest_gpucap.estimate.prefix_cache import CacheSeen
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results.result import FORGETS


@dataclass(frozen=True, slots=True)
class PrefixRoom:
    """The room of a prefix cache.

    Attributes:
        tokens: it holds; 0: there is no prefix cache, infinite: nothing tells that it would forget.
        told: the server tells its size, and no hits say otherwise.
        counted: the server counts its hits.
        forgot: some of what was sent before so far, which is known and so in the estimate.
    """

    tokens: float = math.inf
    told: bool = False
    counted: bool = False
    forgot: bool = False


def remembered(
    journal: Journal, workload: Workload, settings: Settings, start_s: float, end_s: float
) -> tuple[Journal, PrefixRoom]:
    """The journal with what the cache had of each prompt, in place of what was sent before, and the cache's room.

    Where it has all but next to nothing (`FORGETS`), the journal is the same.

    Args:
        journal: of sessions.
        workload: with these.
        settings: what is known of the server.
        start_s: of the measurement.
        end_s: of the journal.
    """
    seen = CacheSeen(journal, workload.shared_prefix_tokens)
    sent = seen.share(seen.found(math.inf))
    hits = settings.hit_rate(start_s, end_s) if settings.hit_rate is not None else None
    room, found = _room(seen, sent, hits, settings.kv_tokens)
    if sent - seen.share(found) < FORGETS:
        return journal, room
    return seen.journal_with(found), replace(room, forgot=True)


def _room(seen: CacheSeen, sent: float, hits: float | None, kv_tokens: int | None) -> tuple[PrefixRoom, Int32s]:
    """The room, and what a cache of that size had of each prompt; `sent`, `hits`: shares of the prompt tokens."""
    tokens, told = float(kv_tokens or math.inf), kv_tokens is not None
    if hits is not None and sent >= c.LEAST_SENT and hits < c.NO_HITS * sent:
        return PrefixRoom(0.0, told=True, counted=True), seen.found(0.0)
    found = seen.found(tokens)
    if hits is None or sent < c.LEAST_SENT:
        return PrefixRoom(tokens, told, counted=hits is not None), found
    # Servers find whole blocks. More than was sent before is of an earlier measurement, and tells nothing.
    as_told = seen.share(found, c.BLOCK_TOKENS) - FORGETS < hits < seen.share(found) + FORGETS
    if as_told or hits > sent + FORGETS:
        return PrefixRoom(tokens, told, counted=True), found
    fitted = seen.room_for(min(hits, sent))
    return PrefixRoom(fitted, told=False, counted=True), seen.found(fitted)
