"""Whether answers show the server's pace. Without one no curve can be fitted, and only what was seen can be judged."""

from __future__ import annotations

from enum import Enum

import numpy as np

from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.measure import constants as c
from pytest_gpucap.requirement import Limit, Metric, Slo, Workload


class NoPace(Enum):
    """Why answers show no pace; the value is a clause for people."""

    NO_TOKENS = "answers without tokens have no pace"
    WHOLE = "answers that are not streamed show no pace"
    ONE_TOKEN = "answers of one token have no pace"  # noqa: S105 - a count of tokens, not a password
    AT_ONCE = "all tokens of an answer arrive at once: does a proxy buffer the stream?"
    TOO_FEW_TOKENS = "too few tokens came to tell the server's pace"


def missing_pace(journal: Journal, workload: Workload) -> NoPace | None:
    """Why the answers so far show no pace; None where they do, or too few ended to tell."""
    if not workload.endpoint.generates:
        return NoPace.NO_TOKENS
    if not workload.streamed:
        return NoPace.WHOLE
    if workload.output_tokens.high <= 1:
        return NoPace.ONE_TOKEN
    counted = np.where(journal.counted_output_tokens > 0, journal.counted_output_tokens, journal.output_tokens)
    several = (journal.status == Status.OK) & (counted > 1)
    if several.sum() < c.LEAST_ANSWERS:
        return None
    per_token_s = (journal.last_s - journal.first_s)[several] / (counted[several] - 1)
    at_once = per_token_s < c.TOKEN_FLOOR_S
    return NoPace.AT_ONCE if at_once.mean() > c.AT_ONCE_SHARE else None


def unjudgeable(slo: Slo, why: NoPace) -> tuple[Limit, ...]:
    """The limits that nothing can be said of without a pace: those on the time between tokens."""
    if why is NoPace.TOO_FEW_TOKENS:
        return ()
    return tuple(limit for limit in slo.limits if limit.metrics & {Metric.TPOT, Metric.ITL})
