"""`sweep`: the latency-throughput curve, its knee, and what batching gains and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_gpucap.estimate import queue_model
from pytest_gpucap.estimate.samples import sample_of
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import NORMAL_95, RateEstimate
from pytest_gpucap.measure.measuring import Search, measured, measurement_from
from pytest_gpucap.measure.per_replica import per_replica
from pytest_gpucap.measure.run import CalledOff, MeasuringRun, OutOfTime, Window, no_load, overload_at
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Curve, Interval, Sample
from pytest_gpucap.results.windows import Phase, WindowId


def run_sweep(runner: LoadRunner, requirement: Requirement, settings: Settings, observer: Observer) -> Curve:
    """See `pytest_gpucap.measure.procedure.sweep`."""
    run = MeasuringRun(runner, requirement, settings, observer)
    search = Search()
    saturated: Interval | None = None
    points: list[Sample] = []
    single: Interval | None = None
    knee: float | None = None
    try:
        measured(run, search)
        found = search.found
        if found is not None and not run.problems:
            knee = knee_rps(found, requirement)
            single, saturated = _points(run, found, points)
        run.settle()
    except LoadError as error:
        run.problems.append(no_load(error))
    measurement = per_replica(measurement_from(run, search, saturated))
    gain = None
    if measurement.sustainable_rate is not None and single is not None:
        gain = _ratio(measurement.sustainable_rate, single)
        measurement = replace(measurement, single_rate=single)
    points.sort(key=lambda sample: sample.completed_rps)
    return Curve(measurement, tuple(points), None if knee is None else knee / requirement.fleet, gain)


def _points(run: MeasuringRun, found: RateEstimate, points: list[Sample]) -> tuple[Interval | None, Interval | None]:
    """One at a time, then rising rates, then saturation; what time allows of it."""
    single: Interval | None = None
    saturated: Interval | None = None
    try:
        run.settle()  # alone means alone
        which = WindowId(Phase.ALONE)
        window = run.hold(which, 1, max(c.SINGLE_S, _alone_s(run, found) * 2.5), discard_s=1.0, hot=False)
        points.append(_whole(run, window, which))
        # A stop of the engine may leave a third of it without a token.
        single = _throughput(run, [each for each in window.samples if each.output_tokens_per_s > 0])
        most = min(found.model.most_running, math.ceil(found.speed.most))
        for rate, in_flight in placed(found, run.requirement, c.POINTS):
            level = min(in_flight, most)
            run.hold(WindowId(Phase.APPROACH, rate_rps=rate), level, c.LEAST_PHASE_S, hot=False)
            which = WindowId(Phase.POINT, rate_rps=rate)
            overload = overload_at(max(level, most))
            window = run.open_loop(which, rate, c.POINT_S, discard_s=c.POINT_LEAD_S, overload=overload)
            if window.samples:
                points.append(_whole(run, window, which))
            if window.span.stopped:
                # Higher rates would overload the server as well, and an overloaded server is slow to recover.
                run.settle()
                break
        which = WindowId(Phase.SATURATION)
        window = run.hold(which, most, c.HOLD_S, discard_s=3.0, hot=run.in_flight == 0)
        points.append(_whole(run, window, which))
        saturated = _throughput(run, window.samples)
    except (OutOfTime, CalledOff):
        pass  # the points so far are a curve all the same
    return single, saturated


def placed(found: RateEstimate, requirement: Requirement, count: int) -> list[tuple[float, int]]:
    """Rates, with the requests in flight they lead to, at which the queue model's mean latency rises by equal factors.

    Evenly spaced rates would waste themselves where the curve is flat, and step over its bend. The last is a little
    beyond the sustainable rate.
    """
    traffic = traffic_for(requirement.workload)
    grid = found.rate.value * np.linspace(0.15, 1.05, 10)
    bound = 0.985 * queue_model.saturation_rps(found.model, traffic)
    grid = np.minimum(grid, bound)
    evaluations = [queue_model.evaluate(found.model, traffic, float(rate)) for rate in grid]
    latency = np.log([float(np.mean(np.minimum(e.e2e_s, 1e6))) for e in evaluations])
    # Beyond the sustainable rate a queue may grow without end; that rise would take every point for itself.
    latency = np.minimum(latency, latency[-2] + math.log(c.POINT_RISE))
    latency = np.maximum.accumulate(latency + 1e-9 * np.arange(latency.size))
    wanted = np.interp(np.linspace(latency[0], latency[-1], count + 1), latency, grid)
    in_flight = np.interp(wanted, grid, [float(e.seen.mean()) for e in evaluations])
    return [(float(rate), max(1, round(float(n)))) for rate, n in zip(wanted, in_flight, strict=True)]


def knee_rps(found: RateEstimate, requirement: Requirement) -> float | None:
    """Where throughput stops paying for latency: the rate of greatest power, throughput over latency.

    Kleinrock 1979, "Power and deterministic rules of thumb for probabilistic problems in computer communications". None
    where the batch size of greatest power was not measured.
    """
    traffic = traffic_for(requirement.workload)
    n = np.arange(1, found.model.most_running + 1)
    rate = 1.0 / (traffic.mean_output * found.model.speed[n] / n + found.model.prefill_s * traffic.mean_prompt)
    power = rate * rate / n
    best = int(np.argmax(power))
    if n[best] > c.EXTRAPOLATED * found.speed.most:
        return None
    return float(rate[best])


def _alone_s(run: MeasuringRun, found: RateEstimate) -> float:
    """Seconds of one request alone."""
    return float(found.model.speed[1]) * run.requirement.workload.output_tokens.mean


def _whole(run: MeasuringRun, window: Window, which: WindowId) -> Sample:
    wanted = run.requirement
    return sample_of(
        run.journal, window.span, which, wanted.slo, window.start_s, window.end_s, workload=wanted.workload
    )


def _throughput(run: MeasuringRun, samples: Sequence[Sample]) -> Interval | None:
    """Requests per second that the tokens of a hold's slices amount to.

    Tokens, because one slot completes few whole requests. None where one slice or none is left, or one had no token.
    """
    mean_output = traffic_for(run.requirement.workload).mean_output
    rates = np.array([s.output_tokens_per_s / mean_output for s in samples])
    if rates.size < 2 or rates.min() <= 0:  # noqa: PLR2004 - no spread of one
        return None
    error = max(float(rates.std(ddof=1) / math.sqrt(rates.size) / rates.mean()), c.DRIFT_SD)
    mean = float(rates.mean())
    return Interval(mean, mean * math.exp(-NORMAL_95 * error), mean * math.exp(NORMAL_95 * error))


def _ratio(a: Interval, b: Interval) -> Interval:
    """A / b with the interval of independent relative errors."""
    half = math.hypot(math.log(a.high / a.low) / 2, math.log(b.high / b.low) / 2)
    value = a.value / b.value
    return Interval(value, value * math.exp(-half), value * math.exp(half))
