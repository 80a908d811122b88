"""Whether the server still answers: it has ended, it is silent, or some of its requests hang.

None of these says anything about capacity, so each makes a measurement INVALID. A server that is merely slow, or has a
queue, is neither: tokens come, and requests that were sent earlier are not answered later than all others.
"""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Bools
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.requirement import Slo

SILENCE_S = 60.0
"""A server with requests in flight is given up once no token has come for this long."""
LIMITS = 2.0
"""Or for so many times the longest latency limit, where that is longer: such a server is meant to be slow."""
LEAST_STALLED, STALLED_SHARE = 3, 0.01
"""Requests that hang, and their share of all: fewer are left to the error rate."""
LEAST_ANSWERED = 10
"""Requests that were sent later than one that hangs, and answered."""
TIMES_SLOWER = 3.0
"""Than the slowest of the requests that were answered."""


def patience_s(slo: Slo) -> float:
    """How long a server may be silent."""
    return max([SILENCE_S, *(LIMITS * limit_s for _, limit_s in slo.thresholds)])


def last_sign_s(journal: Journal) -> float:
    """When the server last sent a token, or ended a request; minus infinity where it never has."""
    ended = journal.end_s[(journal.status != Status.CANCELLED) & (journal.status != Status.DROPPED)]
    times = [np.nanmax(each, initial=-np.inf) for each in (journal.first_s, journal.last_s, ended)]
    if (bins := np.flatnonzero(journal.tokens)).size:
        times.append(journal.bins_start_s + journal.bin_s * float(bins[-1]))
    return float(max(times))


def in_flight(journal: Journal) -> Bools:
    """Shape (n,): the requests that have not ended. Until its first token, only when one was due is known."""
    rows: Bools = (journal.status == Status.IN_FLIGHT) & np.isfinite(journal.due_s)
    return rows


def stalled(journal: Journal, now_s: float, longest_s: float = 0.0) -> Bools:
    """Shape (n,): the requests that hang, while others that were sent later have been answered.

    Args:
        journal: of the measurement.
        now_s: on the journal's clock.
        longest_s: a request may always take so long.
    """
    answered = _answered(journal)
    if answered.sum() < LEAST_ANSWERED:
        return np.zeros_like(answered)
    later = answered.sum() - np.searchsorted(np.sort(journal.due_s[answered]), journal.due_s, side="right")
    hangs: Bools = overdue(journal, now_s, longest_s) & (later >= LEAST_ANSWERED)
    least = max(LEAST_STALLED, STALLED_SHARE * journal.status.size)
    return hangs if hangs.sum() >= least else np.zeros_like(hangs)


def overdue(journal: Journal, now_s: float, longest_s: float = 0.0) -> Bools:
    """Shape (n,): the requests in flight that take far longer than those that were answered; all if too few were."""
    rows, answered = in_flight(journal), _answered(journal)
    if not rows.any() or answered.sum() < LEAST_ANSWERED:
        return rows
    first_s = (journal.first_s - journal.due_s)[answered].max()
    tokens = np.maximum(journal.output_tokens[answered] - 1, 1)
    token_s = ((journal.end_s - journal.first_s)[answered] / tokens).max()
    allowed_s = np.maximum(TIMES_SLOWER * (first_s + token_s * journal.output_tokens), longest_s)
    with np.errstate(invalid="ignore"):
        late: Bools = rows & (now_s - journal.due_s > allowed_s)
    return late


def _answered(journal: Journal) -> Bools:
    whole: Bools = (journal.status == Status.OK) & np.isfinite(journal.first_s) & np.isfinite(journal.end_s)
    return whole
