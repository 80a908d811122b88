"""What the windows themselves show: a lower bound of the rate, and a limit that one request alone breaks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pytest_gpucap.arrays import Floats
from pytest_gpucap.estimate.queue_model import evaluate
from pytest_gpucap.estimate.samples import quantile
from pytest_gpucap.estimate.sustainable_rate import ALONE_SHARE, alone_rps
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load.latencies import limited
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import NORMAL_95, RateEstimate
from pytest_gpucap.measure.run import MeasuringRun, OutOfTime, Window
from pytest_gpucap.requirement import GoodputLimit, Limit, Metric, Requirement
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.windows import Phase, WindowId


def throughput_seen_rps(samples: Iterable[Sample], mean_output: float) -> float:
    """The highest rate that a window's tokens amount to; 0 without windows."""
    return max((_throughput_rps(group, mean_output) for group in _windows(samples)), default=0.0)


def bound_shown(
    found: RateEstimate, samples: Sequence[Sample], requirement: Requirement, *, keeps_design: bool
) -> float | None:
    """The rate that is certain, where the estimate lies beyond all that was measured; None where it does not.

    It is what a window delivered within every limit, but no more than the low end of the estimate's interval: that end
    allows for a queue in front of a server that gains nothing from more requests in flight.

    Args:
        found: the estimate.
        samples: every window.
        requirement: whose limits count.
        keeps_design: the verdict says that the server keeps the design rate, which is then shown as well.
    """
    mean_output = traffic_for(requirement.workload).mean_output
    seen = throughput_seen_rps(samples, mean_output)
    value = found.rate.value
    if value <= (seen if found.extrapolated else c.EXTRAPOLATED * seen):
        return None
    limits = requirement.slo.limits
    within = [_throughput_rps(group, mean_output) for group in _windows(samples) if _keeps(group, limits)]
    shown = min(max(within, default=0.0), found.rate.low)
    if keeps_design:
        shown = max(shown, float(requirement.driven_rate))
    return shown if shown > 0 else None


def completed_rate(run: MeasuringRun, window: Window) -> Interval | None:
    """Requests per second that were answered in a window, as a Poisson count tells them; None where none was."""
    journal, seconds = run.journal, window.end_s - window.start_s
    ended = (journal.status == Status.OK) & (journal.end_s >= window.start_s) & (journal.end_s < window.end_s)
    count = int(ended.sum())
    if count == 0:
        return None
    half = NORMAL_95 / math.sqrt(count)
    return Interval(count / seconds, count / seconds * math.exp(-half), count / seconds * math.exp(half))


def _windows(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The slices of each window together."""
    groups: list[list[Sample]] = []
    for sample in samples:
        if groups and groups[-1][-1].window.whole == sample.window.whole and sample.window.slice > 1:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def _throughput_rps(group: Sequence[Sample], mean_output: float) -> float:
    seconds = sum(sample.end_s - sample.start_s for sample in group)
    tokens = sum(sample.output_tokens_per_s * (sample.end_s - sample.start_s) for sample in group)
    return tokens / mean_output / seconds if seconds > 0 else 0.0


def _keeps(group: Sequence[Sample], limits: Sequence[Limit]) -> bool:
    """Whether a window's own requests kept every limit."""
    for limit in limits:
        counted = [
            (sample.attainment[limit.name], _counted(sample, limit))
            for sample in group
            if limit.name in sample.attainment
        ]
        count = sum(weight for _, weight in counted)
        if not count or sum(share * weight for share, weight in counted) < float(limit.quantile) * count:
            return False
    return True


def _counted(sample: Sample, limit: Limit) -> int:
    """How many requests, or gaps, the share within a limit is of; of a window's goodput, also those that failed."""
    (metric, _), *_ = limit.thresholds
    failed = sum(sample.errors.values()) if limit.failed_break else 0
    found = sample.latencies.get(Metric.E2E.value if limit.failed_break else metric.value)
    return failed + (0 if found is None else found.count)


def broken_alone(run: MeasuringRun, found: RateEstimate) -> tuple[str, str] | None:
    """The limit that a request breaks without any other in flight, and a sentence; None where there is none.

    The queue model says whether it is likely. A hold of one request at a time then shows it, if time is left for one.
    """
    suspects = _suspects(run, found)
    if not suspects:
        return None
    try:
        run.settle()  # alone means alone
        alone_s = ALONE_SHARE / alone_rps(found.model, traffic_for(run.requirement.workload, found.model.own_paces))
        window = run.hold(WindowId(Phase.ALONE), 1, max(c.SINGLE_S, c.ALONE_REQUESTS * alone_s), hot=False)
    except OutOfTime:
        return None
    for limit in suspects:
        values = latencies_of(run, window, limit)
        if not values.size:
            continue
        middle, tail = quantile(values, 0.5), quantile(values, float(limit.quantile))
        if tail > limit.most:
            return limit.name, f"{_broken(limit, values, middle, tail)}: no number of GPUs helps"
    return None


def _broken(limit: Limit, values: Floats, middle: float, tail: float) -> str:
    """How requests that run alone break a limit, from what it is set on, its median and its own quantile."""
    if isinstance(limit, GoodputLimit):
        kept = float((values <= limit.most).mean())
        together = ", ".join(f"{metric.value.upper()} {_seconds(limit_s)}" for metric, limit_s in limit.thresholds)
        return f"of requests that run alone, {kept:.1%} keep all of {together}; {limit.required} must"
    (metric, limit_s), *_ = limit.thresholds
    took = f"one request alone takes {_seconds(middle)}"
    if middle <= limit_s:
        took = f"of requests that run alone, the slowest take {_seconds(tail)}"
    return f"{took} ({metric.value.upper()}), limit {_seconds(limit_s)}"


def _suspects(run: MeasuringRun, found: RateEstimate) -> list[Limit]:
    """The limits that the queue model breaks at a rate at which requests hardly ever meet."""
    limits, traffic = run.requirement.slo.limits, traffic_for(run.requirement.workload, found.model.own_paces)
    if not limits:
        return []
    model = found.model
    want_gaps = any(limit.of_gaps for limit in limits)
    evaluation = evaluate(model, traffic, alone_rps(model, traffic), want_gaps=want_gaps)
    return [limit for limit in limits if evaluation.of_limit(limit) > 1.0]


def latencies_of(run: MeasuringRun, window: Window, limit: Limit) -> Floats:
    """What a limit is set on, of the whole requests that became due in a window, sorted; shape (n,)."""
    rows = slice(window.span.first_row, window.span.end_row)
    journal = run.journal
    if limit.of_gaps:
        gaps = window.span.gaps
        return np.array([gaps.quantile_s(float(limit.quantile))] if gaps.total else [])
    values = limited(journal, limit)[rows]
    known = ~np.isnan(values)
    return np.sort(values[known if limit.at_first else known & (journal.status[rows] == Status.OK)])


def _seconds(value: float) -> str:
    """A duration with three significant figures: ``412 ms``, ``1.57 s``."""
    if value < 1.0:
        return f"{float(f'{value * 1000:.3g}'):g} ms"
    return f"{float(f'{value:.3g}'):g} s" if math.isfinite(value) else "?"
