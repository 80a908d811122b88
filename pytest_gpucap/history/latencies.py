"""Latency percentiles of two runs at equal load: the same requests offered, or the same concurrency held."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Final

from pytest_gpucap.decisions.regression import START_SD, decide
from pytest_gpucap.decisions.students_t import t_quantile
from pytest_gpucap.report.formatting import significant
from pytest_gpucap.requirement import Metric, limited_percentile
from pytest_gpucap.results.comparison import LatencyComparison
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Interval, Sample
from pytest_gpucap.results.windows import Phase, WindowId

_Place = tuple[Phase, int, int | None, str, int]

_SAME_RATE: Final = 1e-6
"""Rates within this share are the same: one seed at one rate gives the same arrivals, and so the same windows."""
_AT_DESIGN_RATE: Final = frozenset({Phase.DESIGN_RATE, Phase.DIRECT, Phase.STEADY})
"""Open loops of a check at its design rate, whatever it concluded from them."""
_LEAST_WINDOWS: Final = 3
"""Fewer windows have no scatter to judge by."""
_USUAL: Final = ("ttft_p95", "e2e_p95")
_SIDE_BY_SIDE: Final = tuple(
    f"{metric}_p{percent}" for metric in ("ttft", "tpot", "itl", "e2e") for percent in (50, 95)
)
"""What is shown of two ways to serve a model, whatever they are limited by."""
_LOOP_GAIN: Final = 2.0
"""At a given rate a slower engine holds more requests, which slows it further: at the loads of a check its latency
rises by about twice its own slowness. At a given concurrency it rises by just that."""
_TOGETHER_S: Final = 1e-5
"""Tokens that arrive together, several in one chunk of the stream, have no time between them that could be compared."""
_NEIGHBOURS: Final = 1.5
"""Neighbouring windows are correlated: their standard error is multiplied by this."""


def side_by_side(limits: Iterable[str]) -> tuple[str, ...]:
    """What is compared of two ways to serve a model: p50 and p95 of all latencies, after those that have a limit."""
    return tuple(dict.fromkeys([*limits, *_SIDE_BY_SIDE]))


def compare_latencies(
    limits: Iterable[str],
    base: Sequence[Sample],
    head: Sequence[Sample],
    max_regression: float,
    *,
    start_sd: float = START_SD,
    design_rate_rps: float | None = None,
) -> tuple[LatencyComparison, ...]:
    """Each limit's percentile in both results, in seconds, with the ratio head over base (above 1: slower).

    They are compared over the open-loop windows that had the same arrivals in both, or else over those at the equal
    design rate, or else in the closed loop with the most requests in flight that both held. TTFT is compared in open
    loops only: in a full closed loop it is the time until another request ends. Limits whose percentile no result holds
    are left out, and so is everything where no load was the same, or where tokens arrived together. Without any limit
    p95 TTFT and p95 E2E are compared.

    The decision is the one made on rates, with `max_regression` of the speed allowed to be lost. It fails no test: the
    sustainable rate already holds what a latency costs in capacity.

    Args:
        limits: their names, such as ``ttft_p95``.
        base: samples of the base.
        head: samples of the head.
        max_regression: share of the speed that may be lost.
        start_sd: standard deviation of ln(pace) from one start of a server to the next, which no window shows.
        design_rate_rps: of one replica, where it is the same in both; None: it is not, or windows of other arrivals are
            not to be compared.
    """
    found = []
    for limit in tuple(limits) or _USUAL:
        limited = limited_percentile(limit)
        if limited is None or limited.percent not in KEPT_PERCENTILES:
            continue
        metric, percent = limited.metric, int(limited.percent)
        load = _open(base, head, metric, percent, start_sd)
        if load is None and design_rate_rps is not None:
            load = _at_design_rate(base, head, metric, percent, start_sd, design_rate_rps)
        if load is None and metric is not Metric.TTFT:
            load = _closed(base, head, metric, percent, start_sd)
        if load is not None:
            speed = Interval(1 / load.ratio.value, 1 / load.ratio.high, 1 / load.ratio.low)
            decision = decide(speed, max_regression)
            found.append(LatencyComparison(limit, load.text, load.base_s, load.head_s, load.ratio, decision))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _AtLoad:
    """One percentile of both at a load that both had."""

    text: str
    base_s: float
    head_s: float
    ratio: Interval


def _open(base: Sequence[Sample], head: Sequence[Sample], metric: str, percent: int, start_sd: float) -> _AtLoad | None:
    """Windows with the same arrivals, in pairs: what the arrivals do to a latency, they do to both."""
    theirs: dict[_Place, list[Sample]] = {}
    for sample in head:
        theirs.setdefault(_place(sample.window), []).append(sample)
    rates, ours_log, theirs_log = [], [], []
    for sample in base:
        partner = _partner(sample, theirs.get(_place(sample.window), ()))
        if partner is None or sample.offered_rps is None:
            continue
        one, other = _log(sample, metric, percent), _log(partner, metric, percent)
        if one is not None and other is not None:
            rates.append(sample.offered_rps)
            ours_log.append(one)
            theirs_log.append(other)
    if len(rates) < _LEAST_WINDOWS:
        return None
    steps = [other - one for one, other in zip(ours_log, theirs_log, strict=True)]
    return _AtLoad(
        text=f"{significant(fmean(rates))} req/s",
        base_s=math.exp(fmean(ours_log)),
        head_s=math.exp(fmean(theirs_log)),
        ratio=_ratio(fmean(steps), [steps], _LOOP_GAIN * start_sd),
    )


def _place(window: WindowId) -> _Place:
    """Where a window stands in its measurement.

    Its rate is left out: files of schema version 1 hold it in three figures, and the sample has it in full.
    """
    return window.phase, window.cycle, window.concurrency, window.server, window.slice


def _partner(sample: Sample, others: Iterable[Sample]) -> Sample | None:
    """Of the same windows of the other side, the one that had the same arrivals."""
    if not _is_open(sample):
        return None
    rate = sample.offered_rps or 0.0
    return next(
        (each for each in others if _is_open(each) and math.isclose(rate, each.offered_rps or 0.0, rel_tol=_SAME_RATE)),
        None,
    )


def _is_open(sample: Sample) -> bool:
    return sample.kind == "open" and bool(sample.offered_rps)


def _at_design_rate(
    base: Sequence[Sample],
    head: Sequence[Sample],
    metric: str,
    percent: int,
    start_sd: float,
    rate_rps: float,
) -> _AtLoad | None:
    """Open loops at one rate, each with arrivals of its own: what those do to a latency is a part of its scatter."""
    ours, theirs = (
        [
            value
            for sample in side
            if sample.window.phase in _AT_DESIGN_RATE and (value := _log(sample, metric, percent)) is not None
        ]
        for side in (base, head)
    )
    if min(len(ours), len(theirs)) < _LEAST_WINDOWS:
        return None
    return _AtLoad(
        text=f"{significant(rate_rps)} req/s",
        base_s=math.exp(fmean(ours)),
        head_s=math.exp(fmean(theirs)),
        ratio=_ratio(fmean(theirs) - fmean(ours), [ours, theirs], _LOOP_GAIN * start_sd),
    )


def _closed(
    base: Sequence[Sample], head: Sequence[Sample], metric: str, percent: int, start_sd: float
) -> _AtLoad | None:
    """The highest concurrency that both held."""
    for held in sorted({sample.concurrency for sample in base if sample.kind == "closed"}, reverse=True):
        ours, theirs = (
            [
                value
                for sample in side
                if sample.kind == "closed"
                and sample.concurrency == held
                and (value := _log(sample, metric, percent)) is not None
            ]
            for side in (base, head)
        )
        if min(len(ours), len(theirs)) >= _LEAST_WINDOWS:
            return _AtLoad(
                text=f"{held} in flight",
                base_s=math.exp(fmean(ours)),
                head_s=math.exp(fmean(theirs)),
                ratio=_ratio(fmean(theirs) - fmean(ours), [ours, theirs], start_sd),
            )
    return None


def _log(sample: Sample, metric: str, percent: int) -> float | None:
    """Logarithm of a percentile in seconds; None where the sample has none, or tokens arrived together."""
    latency = sample.latencies.get(metric)
    value = math.nan if latency is None else latency.percentile(percent)
    return math.log(value) if value > _TOGETHER_S else None


def _ratio(difference: float, scattered: Sequence[Sequence[float]], start_sd: float) -> Interval:
    """A ratio from its logarithm, with the 95% interval by Student's t.

    Its error is the scatter of each of `scattered` (degrees of freedom by Satterthwaite 1946, as in Welch's test) and
    the known noise of one start on either side.
    """
    parts = [(_NEIGHBOURS**2 * variance(values) / len(values), len(values) - 1) for values in scattered]
    total = sum(part for part, _ in parts) + 2 * start_sd**2
    freedom = total**2 / max(sum(part**2 / degrees for part, degrees in parts), total**2 * 1e-9)
    error = t_quantile(0.975, freedom) * math.sqrt(total)
    return Interval(math.exp(difference), math.exp(difference - error), math.exp(difference + error))
