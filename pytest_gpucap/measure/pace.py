"""Whether answers show the server's pace. Without one no curve can be fitted, and only what was seen can be judged."""

from __future__ import annotations

from enum import Enum
from typing import Final

import numpy as np

from pytest_gpucap.load.protocol import Journal, PhaseSpan, Status
from pytest_gpucap.measure import constants as c
from pytest_gpucap.requirement import Limit, Metric, Slo, Workload


class NoPace(Enum):
    """Why answers show no pace; the value is a clause for people."""

    NO_TOKENS = "answers without tokens have no pace"
    WHOLE = "answers that are not streamed show no pace"
    ONE_TOKEN = "answers of one token have no pace"  # noqa: S105 - a count of tokens, not a password
    AT_ONCE = "all tokens of an answer arrive at once: does a proxy buffer the stream?"
    IN_LUMPS = "tokens arrive in lumps: does a proxy buffer or throttle the stream?"
    TOO_FEW_TOKENS = "too few tokens came to tell the server's pace"


BUFFERED: Final = frozenset({NoPace.AT_ONCE, NoPace.IN_LUMPS})
"""A proxy holds tokens back, so first tokens come with others, and the gaps are those of its buffer."""


def missing_pace(journal: Journal, workload: Workload, span: PhaseSpan | None = None) -> NoPace | None:
    """Why the answers so far show no pace; None where they do, or too few ended to tell.

    Args:
        journal: of the run.
        workload: of its requests.
        span: a phase that tells whether tokens come in lumps; None: nobody asks.
    """
    if not workload.endpoint.generates:
        return NoPace.NO_TOKENS
    if not workload.streamed:
        return NoPace.WHOLE
    if workload.output_tokens.high <= 1:
        return NoPace.ONE_TOKEN
    if span is not None and in_lumps(span):
        return NoPace.IN_LUMPS
    counted = np.where(journal.counted_output_tokens > 0, journal.counted_output_tokens, journal.output_tokens)
    several = (journal.status == Status.OK) & (counted > 1)
    if several.sum() < c.LEAST_ANSWERS:
        return None
    per_token_s = (journal.last_s - journal.first_s)[several] / (counted[several] - 1)
    at_once = per_token_s < c.TOKEN_FLOOR_S
    return NoPace.AT_ONCE if at_once.mean() > c.AT_ONCE_SHARE else None


def in_lumps(span: PhaseSpan) -> bool:
    """Whether the events of an answer came several at a time, with pauses between them, as out of a buffer.

    A server that has fallen behind sends several tokens in one event, which is no lump. A load worker that read late
    finds several events, but its pauses are short, and self-checks tell of long ones.
    """
    gaps = span.gaps
    if not span.check.shared_packet_share > c.LUMPED_SHARE or gaps.total < c.LEAST_ANSWERS:  # it may be NaN
        return False
    edges_s = gaps.lowest_s * gaps.growth ** np.arange(gaps.counts.size)
    paused = edges_s > c.TOKEN_FLOOR_S
    pauses = int(gaps.counts[paused].sum())
    if pauses == 0 or gaps.total < c.LEAST_LUMP * pauses:
        return False
    return float(np.average(edges_s[paused], weights=gaps.counts[paused])) > c.LUMP_PAUSE_S


def unjudgeable(slo: Slo, why: NoPace) -> tuple[Limit, ...]:
    """The limits that nothing can be said of without a pace: those on the time between tokens."""
    if why is NoPace.TOO_FEW_TOKENS:
        return ()
    return tuple(limit for limit in slo.limits if limit.metrics & {Metric.TPOT, Metric.ITL})
