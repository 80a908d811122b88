"""A point that another tool measured: its rate, its latencies, and which limits it keeps.

A point is the load of one run of that tool and what came of it. It has no interval. Nothing shows that its rate lasts,
and nobody checked whether the load generator was the limit. So it is never a sustainable rate.
"""

from __future__ import annotations

import math
from typing import Final

from pytest_gpucap.requirement import limited_percentile
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Interval
from pytest_gpucap.results.result import Result

WHAT_IT_IS: Final = "a point of another tool, without an interval; nobody checked its load generator"
"""What every report says of an imported result."""


def point_rate(result: Result) -> float | None:
    """Requests a second that an imported point completed; None for any other result, or where it completed none."""
    if result.imported is None or not result.samples:
        return None
    rate = result.samples[0].completed_rps
    return rate if math.isfinite(rate) and rate > 0 else None


def open_interval(value: float) -> Interval:
    """A value of which nobody knows how sure it is."""
    return Interval(value, -math.inf, math.inf)


def latency_at(result: Result, limit: str) -> float | None:
    """The percentile that a limit such as ``ttft_p95`` names, in seconds; None where the point does not have it."""
    limited = limited_percentile(limit)
    if limited is None or not result.samples or limited.percent not in KEPT_PERCENTILES:
        return None
    latency = result.samples[0].latencies.get(limited.metric)
    value = math.nan if latency is None else latency.percentile(int(limited.percent))
    return value if math.isfinite(value) else None


def failed_share(result: Result) -> float:
    """Share of a point's requests that failed; 0 where there were none."""
    failed = sum(sum(sample.errors.values()) for sample in result.samples)
    ended = failed + sum(sample.requests for sample in result.samples)
    return failed / ended if ended else 0.0
