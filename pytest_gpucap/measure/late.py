"""Which requests of a journal broke a limit by some time."""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Bools
from pytest_gpucap.load.latencies import limited
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.requirement import Limit, Metric


def late_by(journal: Journal, rows: slice, end_s: float, limit: Limit) -> tuple[Bools, Bools]:
    """Which requests had broken a limit by a time, and of which that is known; shape (n,) each.

    A request in flight is late once its age, or the time that its first token took, is beyond the limit. TPOT is known
    of whole answers alone. One that we cancelled was in flight until then: how it would have gone on, nobody knows.

    Args:
        journal: at `end_s` or later.
        rows: of the journal.
        end_s: on the runner's clock.
        limit: none on ITL.
    """
    first = ~np.isnan(journal.first_s[rows])
    cancelled = journal.status[rows] == Status.CANCELLED
    ended = first if limit.at_first else ~np.isnan(journal.end_s[rows]) & ~cancelled
    age_s = np.where(cancelled, np.fmin(end_s, journal.end_s[rows]), end_s) - journal.due_s[rows]
    overdue = np.zeros(ended.shape, np.bool_)
    for metric, limit_s in limit.thresholds:
        if metric is Metric.TTFT:
            overdue |= np.where(first, journal.ttft_s[rows], age_s) > limit_s
        elif metric is Metric.E2E:
            overdue |= age_s > limit_s
    late: Bools = np.where(ended, limited(journal, limit)[rows] > limit.most, overdue)
    if limit.failed_break:
        late |= journal.failed[rows]
    return late, ended | late
