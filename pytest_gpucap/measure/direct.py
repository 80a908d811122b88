"""The long direct run, for servers that the queue model does not describe: no model, only what the open loop shows."""

from __future__ import annotations

import math

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.requirement import LatencyLimit, Metric
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.windows import Phase, WindowId


def run_direct(run: MeasuringRun, design_rps: float, overload: int) -> tuple[Outcome, str]:
    """Decide on the share of requests within each limit, by blocks of one long open loop.

    Blocks, because neighbouring requests share a busy period and are no independent trials (method of batch means).
    """
    window = run.open_loop(WindowId(Phase.DIRECT), design_rps, c.DIRECT_S, overload=overload)
    if run.problems:
        return Outcome.INVALID, run.problems[0].text
    if window.span.stopped:
        return (
            Outcome.FAIL,
            "the queue model does not describe this server, and a direct run at the design rate overloaded it",
        )
    why = "the queue model does not describe this server; a direct run at the design rate "
    outcome = Outcome.PASS
    for limit in run.requirement.slo.limits:
        shares = block_shares(run, window, limit)
        if shares.size < 2:  # noqa: PLR2004 - no spread of one
            return Outcome.INCONCLUSIVE, why + f"left {limit.name} undecided"
        mean, error = float(shares.mean()), float(shares.std(ddof=1)) / math.sqrt(shares.size)
        allowed = 1.0 - float(limit.quantile)
        if mean - c.DIRECT_Z * error > allowed:
            return Outcome.FAIL, why + f"broke {limit.name} in {mean:.1%} of the requests"
        if mean + c.DIRECT_Z * error > allowed:
            outcome = Outcome.INCONCLUSIVE
    word = "kept every limit" if outcome is Outcome.PASS else "did not separate"
    return outcome, why + word


def block_shares(run: MeasuringRun, window: Window, limit: LatencyLimit) -> Floats:
    """Share of requests beyond the limit in each block, shape (blocks,). A request in flight counts by its age."""
    journal, end_s = run.journal, window.end_s
    if limit.metric is Metric.ITL:
        return np.array([window.span.gaps.share_above(limit.limit_s)] * 2)
    rows = slice(window.span.first_row, window.span.end_row)
    due = journal.due_s[rows]
    value = {Metric.TTFT: journal.ttft_s, Metric.E2E: journal.e2e_s, Metric.TPOT: journal.tpot_s}[limit.metric][rows]
    done = journal.status[rows] == Status.OK
    if limit.metric is Metric.TTFT:
        done = ~np.isnan(journal.first_s[rows])
    late = np.where(done, value > limit.limit_s, True)
    known = done | (end_s - due > limit.limit_s) | ~np.isnan(journal.end_s[rows])
    block = np.minimum(
        ((due - window.start_s) / (end_s - window.start_s) * c.DIRECT_BLOCKS).astype(int), c.DIRECT_BLOCKS - 1
    )
    return np.array([late[known & (block == b)].mean() for b in range(c.DIRECT_BLOCKS) if (known & (block == b)).any()])
