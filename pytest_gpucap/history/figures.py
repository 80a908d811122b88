"""Runs of many nights -> one series for each limit that is declared beside the rate.

What a limit is about changes as the rate does: with a version of vLLM, a driver, an argument. Its figures are cut into
levels in the same way. Two things differ. Many figures are better when they are lower. And shares may be 0, so a little
is added before logarithms are taken.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pytest_gpucap.history.detection import Rule
from pytest_gpucap.history.nightly import FAR_TOO_WIDE, WIDE, Member, NightlySeries, identity_of, series_from
from pytest_gpucap.history.store import Run, oldest_first
from pytest_gpucap.results.measured import Interval, SecondaryResult
from pytest_gpucap.results.result import Result
from pytest_gpucap.secondary import METRICS, SecondaryName

SHARE_FLOOR: Final = 0.001
"""Added to every share: changes of less than a tenth of a per cent of the requests are none."""
_RUN_SD: Final = {
    SecondaryName.STARTUP: 0.08,
    SecondaryName.KV_TOKENS: 0.002,
    SecondaryName.JOULES_PER_1K_TOKENS: 0.02,
    SecondaryName.USD_PER_1M_TOKENS: 0.017,
    SecondaryName.ACCEPTANCE: 0.02,
    SecondaryName.PREFIX_HIT_RATE: 0.02,
    SecondaryName.PREEMPTIONS: 0.5,
}
"""Run-to-run standard deviation (of the logarithm) that is assumed before a series shows its own: a start-up waits for
disks, preemptions are few and come in crowds, a KV cache is what is left of the memory, a cost is one over the rate."""


def rule_of(name: SecondaryName) -> Rule:
    """The alarm's rule for one figure."""
    return Rule(prior_sd=_RUN_SD[name])


def figures_of(runs: Iterable[Run]) -> list[NightlySeries]:
    """The series of every limit beside the rate in these runs: of cold starts and warm ones apart.

    A figure without an interval that ends, and one that is only a bound, has no place in a series.

    Args:
        runs: in any order.
    """
    grouped: dict[tuple[str, SecondaryName, str], list[Member]] = {}
    seen: dict[tuple[datetime, str, SecondaryName, int, Interval], Path] = {}
    for run in oldest_first(runs):
        for result in run.results:
            if not result.trusted:
                continue
            key = identity_of(result)
            for each in result.secondary:
                figure = _figure(each)
                if figure is None:
                    continue
                # A session's own result file and the copies made of it are one run.
                known = seen.setdefault((run.started, key, each.name, result.seed, figure), run.path)
                if known == run.path:
                    grouped.setdefault((key, each.name, _start(each, result)), []).append(
                        Member(run.started, run, result, figure)
                    )
    found = [_series(key, name, start, told) for (key, name, start), told in grouped.items()]
    return sorted(found, key=lambda series: (series.simulated, series.test, series.identity))


def _figure(limited: SecondaryResult) -> Interval | None:
    found = limited.measured
    if found is None or not (0 <= found.low <= found.value <= found.high < math.inf):
        return None
    if not METRICS[limited.name].is_share and found.low <= 0:
        return None  # a bound, or nothing that has a logarithm
    return found


def _start(limited: SecondaryResult, result: Result) -> str:
    return (result.environment.start or "") if limited.name is SecondaryName.STARTUP else ""


def _series(key: str, name: SecondaryName, start: str, told: list[Member]) -> NightlySeries:
    floor = SHARE_FLOOR if METRICS[name].is_share else 0.0
    widths = [math.log((each.rate.high + floor) / (each.rate.low + floor)) / 2 for each in told]
    widest = max(WIDE, FAR_TOO_WIDE * statistics.median(widths))
    judged = [width <= widest for width in widths]
    series = series_from(told, judged, key)
    identity = json.dumps({"of": key, "figure": name, "start": start}, sort_keys=True)
    kind: Literal["cold", "warm"] | None = "cold" if start == "cold" else "warm" if start == "warm" else None
    return replace(series, identity=identity, figure=name, start=kind, floor=floor)
