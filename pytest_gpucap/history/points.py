"""A point of another tool against an earlier one: what changed. Nobody knows whether it is more than chance."""

from __future__ import annotations

import math
from typing import Final

from pytest_gpucap.report.formatting import percent
from pytest_gpucap.results.comparison import ComparedBaseline, Comparison, LatencyComparison, RegressionDecision
from pytest_gpucap.results.measured import Latency
from pytest_gpucap.results.points import open_interval, point_rate
from pytest_gpucap.results.result import Result

_SHOWN: Final = (95, 99, 90, 50)
"""Percentiles, the first that both points have."""
NEVER_MIXED: Final = "what this plugin measured and a point of another tool are never compared"


def compare_points(base: Result, head: Result, baseline: ComparedBaseline, max_regression: float) -> Comparison:
    """The comparison of two comparable points. Without an interval it decides nothing.

    Args:
        base: the earlier point.
        head: the point to look at.
        baseline: names the run of `base`.
        max_regression: the share of the rate that may be lost.
    """
    before, after = point_rate(base), point_rate(head)
    ratio = None if before is None or after is None else after / before
    lost = "" if ratio is None else f"{percent(ratio - 1, signed=True)} in requests a second; "
    return Comparison(
        baseline=baseline,
        decision=RegressionDecision.INCONCLUSIVE,
        base_rate=None if before is None else open_interval(before),
        head_rate=None if after is None else open_interval(after),
        ratio=None if ratio is None else open_interval(ratio),
        max_regression=max_regression,
        reason=f"{lost}points have no interval, so nobody can tell a change from chance",
        latencies=_latencies(base, head),
    )


def _latencies(base: Result, head: Result) -> tuple[LatencyComparison, ...]:
    """TTFT, TPOT and E2E of both at the percentile that both have."""
    found = []
    for metric in ("ttft", "tpot", "e2e"):
        ours, theirs = (each.samples[0].latencies.get(metric) if each.samples else None for each in (base, head))
        percentile = _shared(ours, theirs)
        if ours is None or theirs is None or percentile is None:
            continue
        before, after = ours.percentile(percentile), theirs.percentile(percentile)
        found.append(
            LatencyComparison(
                limit=f"{metric}_p{percentile}",
                load="" if head.imported is None else head.imported.load,
                base_s=before,
                head_s=after,
                ratio=open_interval(after / before),
                decision=RegressionDecision.INCONCLUSIVE,
            )
        )
    return tuple(found)


def _shared(ours: Latency | None, theirs: Latency | None) -> int | None:
    """The first percentile that both have."""
    if ours is None or theirs is None:
        return None
    sides = (ours, theirs)
    return next((each for each in _SHOWN if all(_known(side.percentile(each)) for side in sides)), None)


def _known(value: float) -> bool:
    return math.isfinite(value) and value > 0
