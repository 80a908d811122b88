"""What the rivals share: loads of a given number of requests, and the percentiles that decide about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pytest_gpucap.arrays import Bools
from pytest_gpucap.load import schedule
from pytest_gpucap.load.latencies import limited
from pytest_gpucap.load.protocol import Journal, PhaseSpan
from pytest_gpucap.requirement import Limit, Slo, Workload
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.runner import SimRunner

DRAIN_S = 900.0
LONGEST_S = 20_000.0
"""A closed loop of a given number of requests ends within this time on every server of the study."""
MOST_RPS = 2000.0
"""No server of the study answers more requests a second."""


def percentile(journal: Journal, rows: slice, limit: Limit) -> float:
    """The limited percentile of the requests that have that latency."""
    values = limited(journal, limit)[rows]
    values = values[~np.isnan(values)]
    return float(np.quantile(values, float(limit.quantile))) if values.size else float("inf")


def worst_ratio(runner: SimRunner, span: PhaseSpan, profile: Profile) -> float:
    """Largest percentile over its limit among the phase's requests that have ended."""
    journal, rows = runner.journal(), slice(span.first_row, span.end_row)
    return max(percentile(journal, rows, limit) / limit.most for limit in profile.slo.limits)


def keeps_limits(runner: SimRunner, span: PhaseSpan, profile: Profile) -> bool:
    """Whether the phase's requests that have ended kept every limit."""
    return worst_ratio(runner, span, profile) <= 1.0


def within_limits(journal: Journal, rows: slice, slo: Slo) -> Bools:
    """Which requests have ended and kept every limit, each for itself."""
    kept = ~np.isnan(journal.end_s[rows])
    for limit in slo.limits:
        kept &= ~(limited(journal, limit)[rows] > limit.most)
    return kept


def hold(runner: SimRunner, workload: Workload, streams: int, duration_s: float, seed: int, stream: int) -> PhaseSpan:
    """So many requests in flight for a time. All of them start at once."""
    return runner.run(schedule.closed_loop(workload, streams, duration_s, MOST_RPS, seed, stream, hot=False))


def closed(runner: SimRunner, workload: Workload, streams: int, requests: int, seed: int, stream: int) -> slice:
    """So many requests in flight until `requests` of them were sent, and to the last answer.

    The runner stops at steps of 0.25 s of virtual time and sends a few more until then. These are not among the rows.
    """
    phase = schedule.closed_loop(workload, streams, LONGEST_S, 1.5 * requests / LONGEST_S, seed, stream, hot=False)
    span = runner.run(phase, lambda progress: progress.completed + progress.in_flight >= requests)
    runner.settle(DRAIN_S)
    return slice(span.first_row, span.first_row + requests)


def opened(runner: SimRunner, workload: Workload, rate_rps: float, requests: int, seed: int, stream: int) -> slice:
    """`requests` arrivals at a rate, to the last answer."""
    long = schedule.open_loop(workload, rate_rps, 2 * requests / rate_rps, seed, stream)
    due_s = long.due_s[:requests]
    phase = replace(
        long,
        duration_s=float(due_s[-1]) + 1e-6,
        due_s=due_s,
        prompt_tokens=long.prompt_tokens[:requests],
        output_tokens=long.output_tokens[:requests],
    )
    span = runner.run(phase)
    runner.settle(DRAIN_S)
    return slice(span.first_row, span.end_row)
