"""Latency percentiles of two runs at equal load: the same requests offered, or the same concurrency held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any, Final

from pytest_gpucap.decisions.regression import START_SD, decide
from pytest_gpucap.report.formatting import significant
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.record import Record, plain

_SAME_RATE: Final = 1e-6
"""Rates within this share are the same: arrivals of one seed at one rate repeat exactly, and so do their windows."""
_LEAST_WINDOWS: Final = 3
"""Fewer windows have no scatter to judge by."""
_KEPT: Final = frozenset({"p50", "p90", "p95", "p99"})
"""Percentiles that a result holds."""
_USUAL: Final = ("ttft_p95", "e2e_p95")
_LOOP_GAIN: Final = 2.0
"""At a given rate a slower engine holds more requests, which slows it further: its latency rises by about twice its own
slowness at the loads of a check. At a given concurrency by just that."""
_NEIGHBOURS: Final = 1.5
"""Windows next to each other share their fate: their standard error is taken this much larger."""

_Window = Mapping[str, Any]


def compared(base: Record, head: Record, max_regression: float, *, start_sd: float = START_SD) -> list[dict[str, Any]]:
    """Each limit's percentile in both results, in seconds, with the ratio head over base (above 1: slower).

    Compared over the open-loop windows that had the same arrivals in both, or else in the closed loop with the most
    requests in flight that both held; TTFT only over the former, since in a full closed loop it is the time until
    another request ends. Limits whose percentile no result keeps are left out, and so is everything where no load was
    the same. Without any limit p95 TTFT and p95 E2E are compared.

    The decision is that on rates, with `max_regression` of the speed allowed to be lost. It fails no test: what a
    latency costs in capacity is in the sustainable rate already.

    Args:
        base: a result, or what has its limits and samples.
        head: another, likewise.
        max_regression: share of the speed that may be lost.
        start_sd: of ln(pace), what the windows of either do not see of their server: what its next start differs by.
    """
    found = []
    for limit in base["slo"]["limits"] or dict.fromkeys(_USUAL):
        metric, _, percentile = limit.partition("_")
        if percentile not in _KEPT:
            continue
        key = f"{percentile}_s"
        result = _open(base["samples"], head["samples"], metric, key, start_sd)
        if result is None and metric != "ttft":
            result = _closed(base["samples"], head["samples"], metric, key, start_sd)
        if result is not None:
            ratio = result["ratio"]
            speed = Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
            found.append({"limit": limit, **plain(result), "decision": decide(speed, max_regression).value})
    return found


def _open(
    base: Sequence[_Window], head: Sequence[_Window], metric: str, key: str, start_sd: float
) -> dict[str, Any] | None:
    """Windows with the same arrivals, paired: what the arrivals do to a latency they do to both."""
    theirs = {window["label"]: window for window in head if window["kind"] == "open" and window["offered_rps"]}
    pairs = [
        (window["offered_rps"], one, other)
        for window in base
        if window["kind"] == "open"
        and (partner := theirs.get(window["label"])) is not None
        and math.isclose(window["offered_rps"] or 0.0, partner["offered_rps"], rel_tol=_SAME_RATE)
        and (one := _value(window, metric, key)) is not None
        and (other := _value(partner, metric, key)) is not None
    ]
    if len(pairs) < _LEAST_WINDOWS:
        return None
    differences = [other - one for _, one, other in pairs]
    return {
        "load": f"{significant(fmean(rate for rate, _, _ in pairs))} req/s",
        "base_s": math.exp(fmean(one for _, one, _ in pairs)),
        "head_s": math.exp(fmean(other for _, _, other in pairs)),
        "ratio": _ratio(fmean(differences), [differences], _LOOP_GAIN * start_sd),
    }


def _closed(
    base: Sequence[_Window], head: Sequence[_Window], metric: str, key: str, start_sd: float
) -> dict[str, Any] | None:
    """The highest concurrency that both held."""
    for held in sorted({window["concurrency"] for window in base if window["kind"] == "closed"}, reverse=True):
        ours, theirs = (
            [
                value
                for window in side
                if window["kind"] == "closed"
                and window["concurrency"] == held
                and (value := _value(window, metric, key)) is not None
            ]
            for side in (base, head)
        )
        if min(len(ours), len(theirs)) >= _LEAST_WINDOWS:
            return {
                "load": f"{held} in flight",
                "base_s": math.exp(fmean(ours)),
                "head_s": math.exp(fmean(theirs)),
                "ratio": _ratio(fmean(theirs) - fmean(ours), [ours, theirs], start_sd),
            }
    return None


def _value(window: _Window, metric: str, key: str) -> float | None:
    """Logarithm of a percentile in seconds."""
    value = (window["latencies"].get(metric) or {}).get(key)
    return math.log(value) if value else None


def _ratio(difference: float, scattered: Sequence[Sequence[float]], start_sd: float) -> Interval:
    """A ratio from its logarithm, with the 95% interval by Student's t.

    From the scatter of each of `scattered` (degrees of freedom by Satterthwaite 1946, as Welch has it), and the noise
    of one start on either side, which is known.
    """
    from scipy.stats import t  # a heavy import that most sessions never need

    parts = [(_NEIGHBOURS**2 * variance(values) / len(values), len(values) - 1) for values in scattered]
    total = sum(part for part, _ in parts) + 2 * start_sd**2
    freedom = total**2 / max(sum(part**2 / degrees for part, degrees in parts), total**2 * 1e-9)
    error = float(t.ppf(0.975, freedom)) * math.sqrt(total)
    return Interval(math.exp(difference), math.exp(difference - error), math.exp(difference + error))
