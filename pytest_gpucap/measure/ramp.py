"""The first holds: concurrency rises as long as throughput rises, and no further than the question needs.

A server's throughput may peak far below the concurrency that its SLO allows. Where engine and API server are separate
processes, each on one core, tokens queue between them beyond some concurrency, and throughput falls. A server that was
driven there needs long to recover. So the ramp starts low, and goes back once throughput falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_gpucap.estimate.bins import bin_width_s, bins_of
from pytest_gpucap.estimate.paces import MEMORY_S, PATH_BIN_S, long_run_variance
from pytest_gpucap.estimate.traffic import traffic_for
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import fitted, typical_step_s, window_paces
from pytest_gpucap.measure.filling_cache import still_fills
from pytest_gpucap.measure.pace import NoPace, missing_pace
from pytest_gpucap.measure.run import MeasuringRun, Window
from pytest_gpucap.requirement import Metric
from pytest_gpucap.results.windows import Phase, WindowId


@dataclass(slots=True)
class Ramp:
    """How far up the holds went.

    Attributes:
        windows: those that count, in order; none where the first hold ran out of requests.
        level: concurrency to hold from here on.
        peak: the concurrency of greatest throughput, where throughput was seen to fall beyond it; else None.
        no_pace: why the first hold's answers show no pace. The ramp then ends with it; None where they show one.
    """

    windows: list[Window]
    level: int
    peak: int | None = None
    no_pace: NoPace | None = None


def throughput_rps(run: MeasuringRun, window: Window) -> float:
    """Requests per second that the tokens of a window amount to: the median over bins, which ignores engine stops."""
    step_s = typical_step_s(run.journal, [window])
    bins = bins_of(run.journal, window.start_s, window.end_s, bin_width_s(step_s))
    mean_output = traffic_for(run.requirement.workload).mean_output
    return float(np.median(bins.tokens / bins.width_s)) / mean_output


def throughput_error(run: MeasuringRun, window: Window) -> float:
    """Standard error of ln(throughput) of a hold, from how it differs from half second to half second in it.

    A short hold is taken in shorter parts: on a busy host it is the one whose throughput falls by chance.
    """
    width_s = min(PATH_BIN_S, (window.end_s - window.start_s) / c.PEAK_BINS)
    bins = bins_of(run.journal, window.start_s, window.end_s, width_s)
    log = np.log(bins.tokens[bins.tokens > 0] / bins.width_s[bins.tokens > 0])
    if log.size < 6:  # noqa: PLR2004 - too few for a variance with neighbours
        return 0.0
    return math.sqrt(long_run_variance(log, round(MEMORY_S / width_s)) / log.size)


def ramp_up(run: MeasuringRun, top: int, enough_rps: float) -> Ramp:
    """Hold at rising concurrency up to `top`, until throughput reaches `enough_rps` or falls.

    The first hold also warms the server up. A fall counts once a second hold at the same concurrency confirms it. The
    holds then go back to a concurrency below the best.
    """
    level = min(top, max(1, round(c.LOW_SHARE * top)), c.FIRST_HOLD)
    workload = run.requirement.workload
    try:
        window = run.hold(WindowId(Phase.WARM_UP), level, c.LOW_HOLD_S, discard_s=c.WARM_UP_S)
    except LoadError:
        # A buffer that answers by itself is faster than the load was made for.
        if no_pace := missing_pace(run.journal, workload):
            return Ramp([], level, no_pace=no_pace)
        raise
    if no_pace := missing_pace(run.journal, workload, window.span):
        return Ramp([window], level, no_pace=no_pace)
    ramp = Ramp([], level)
    if far_beyond(run, window):
        retreat(run, ramp, window, (level, 0.0))
        return ramp
    ramp.windows.append(extended(run, window, level))
    best, best_rps = level, throughput_rps(run, ramp.windows[-1])
    # Even steps, so that the last is not a remainder; steps slightly larger than 1 / LOW_SHARE save a hold.
    steps = max(1, math.ceil(math.log(top / level) / -math.log(c.LOW_SHARE) - c.STEP_SLACK))
    factor = (top / level) ** (1.0 / steps)
    while level < top and not run.problems:
        # One batch size gives a pace, but not a curve.
        if len(ramp.windows) > 1 and best_rps >= enough_rps:
            break
        level = min(top, max(level + 1, round(level * factor)))
        seconds = c.HOLD_S if level == top else c.LOW_HOLD_S
        window = run.hold(WindowId(Phase.RAMP, concurrency=level), level, seconds, discard_s=c.TOP_UP_S)
        if far_beyond(run, window):
            ramp.level = level
            retreat(run, ramp, window, (best, best_rps))
            break
        window, rps = steady_throughput(run, window, level, best_rps * c.DOUBTFUL_RISE)
        if rps < best_rps * (1.0 - c.FALL_SHARE) and peak_confirmed(run, ramp, best, rps):
            break
        ramp.windows.append(window)
        ramp.level = level
        if rps > best_rps:
            best, best_rps = level, rps
    settle(run, ramp)
    return ramp


def far_beyond(run: MeasuringRun, window: Window) -> bool:
    """Whether the usual request of a hold took far longer than a limit allows."""
    journal = run.journal
    for metric, limit_s in run.requirement.slo.thresholds:
        if metric is Metric.ITL:
            continue
        beyond = c.FAR_BEYOND
        if metric is Metric.TTFT:
            # In a closed loop a request comes when another has just left, and waits for less than its usual time.
            beyond = 1.0
            rows = (journal.due_s >= window.start_s) & (journal.due_s < window.end_s - limit_s) & ~journal.hot
            values = np.where(np.isnan(journal.ttft_s[rows]), np.inf, journal.ttft_s[rows])
        else:
            ended = (journal.end_s >= window.start_s) & (journal.end_s < window.end_s) & ~journal.hot
            values = (journal.tpot_s if metric is Metric.TPOT else journal.e2e_s)[ended]
            values = values[~np.isnan(values)]
        if values.size >= c.LEAST_ANSWERS and float(np.median(values)) > beyond * limit_s:
            return True
    return False


def retreat(run: MeasuringRun, ramp: Ramp, window: Window, best: tuple[int, float]) -> None:
    """Go back from a hold far beyond what the server sustains.

    Args:
        run: the measurement.
        ramp: at the level of this hold; holds before it count.
        window: the hold, which does not count.
        best: requests in flight and throughput of the best hold before it.
    """
    run.given_up.append(window)
    if not ramp.windows:
        below(run, ramp, c.FAR_LOWER * ramp.level)
        return
    fallen_rps = throughput_rps(run, window)
    if fallen_rps < best[1] * (1.0 - c.FALL_SHARE) and peak_confirmed(run, ramp, best[0], fallen_rps):
        return
    below(run, ramp, math.sqrt(ramp.level * best[0]))


def below(run: MeasuringRun, ramp: Ramp, level: float) -> None:
    """Hold at `level`, and at fewer while that is still far beyond what the server sustains."""
    while True:
        window = _held_afresh(run, ramp, level, c.HOLD_S)
        if ramp.level == 1 or run.problems or not far_beyond(run, window):
            break
        run.given_up.append(window)
        level = c.FAR_LOWER * ramp.level
    ramp.windows.append(window)


def _held_afresh(run: MeasuringRun, ramp: Ramp, level: float, seconds: float) -> Window:
    """Empty the server, and hold at `level` from here on."""
    run.settle()
    ramp.level = max(1, round(level))
    return run.hold(WindowId(Phase.RAMP, concurrency=ramp.level), ramp.level, seconds, discard_s=c.REFILL_S)


def settle(run: MeasuringRun, ramp: Ramp) -> bool:
    """Go on holding where the last hold suggests that the server still gets faster.

    If it does, earlier holds do not count.

    Returns:
        Whether it did.
    """
    if run.problems or ramp.peak is not None or not ramp.windows:
        return False
    if len(ramp.windows) > 1 and still_fills(run, ramp.windows[:1], ramp.windows[-1:]):
        return _until_filled(run, ramp)
    if trend(run, ramp.windows[-1], c.SETTLING_LN, c.SETTLING_Z) >= 0:
        return False
    holds = [ramp.windows[-1]]
    warming = False
    for _ in range(c.MOST_SETTLING):
        holds.append(run.hold(WindowId(Phase.EXTENDED), ramp.level, c.HOLD_S, hot=False))
        if run.problems:
            return False
        if len(holds) < c.LEAST_SETTLING:
            continue
        # Where the pace wanders, one hold's second half is faster than its first by chance.
        warming = window_paces(run.journal, holds, fitted(run.journal, holds)).falls(c.TREND_Z)
        rates = [throughput_rps(run, hold) for hold in holds[-4:]]
        if not warming or math.log(sum(rates[2:]) / sum(rates[:2])) < c.SETTLED_LN:
            break
    if not warming:
        ramp.windows += holds[1:]
        return True
    _keep_only(run, ramp, holds[-2:])
    return True


def _until_filled(run: MeasuringRun, ramp: Ramp) -> bool:
    """Go on holding while the server finds more and more of its prompts in its cache. Earlier holds do not count.

    Returns:
        Whether it came to find no more.
    """
    holds = [ramp.windows[-1]]
    for _ in range(c.MOST_SETTLING):
        holds.append(run.hold(WindowId(Phase.EXTENDED), ramp.level, c.HOLD_S, hot=False))
        if run.problems:
            return False
        if len(holds) >= c.LEAST_SETTLING and not still_fills(run, holds[-4:-2], holds[-2:]):
            break
    _keep_only(run, ramp, holds[-2:])
    return True


def _keep_only(run: MeasuringRun, ramp: Ramp, holds: list[Window]) -> None:
    """Let no holds count but these, and one with fewer requests: one batch size gives a pace, but not a curve."""
    ramp.windows[:] = holds
    if ramp.level > 1:
        ramp.windows.append(_held_afresh(run, ramp, c.LOW_SHARE * ramp.level, c.LOW_HOLD_S))


def steady_throughput(run: MeasuringRun, window: Window, level: int, doubtful_rps: float) -> tuple[Window, float]:
    """A hold and its throughput. A second hold takes its place if throughput is low or the server still slows down."""
    rps = throughput_rps(run, window)
    if rps < doubtful_rps or trend(run, window) > 0:
        window = run.hold(WindowId(Phase.RAMP_AGAIN, concurrency=level), level, c.HOLD_S, hot=False)
        rps = throughput_rps(run, window)
    return window, rps


def peak_confirmed(run: MeasuringRun, ramp: Ramp, best: int, fallen_rps: float) -> bool:
    """Throughput seems to fall beyond `best`: cancel what is in flight, and hold below `best`.

    A long backlog takes long to drain, and meanwhile the server is in no steady state.

    Returns:
        False if the hold below has clearly less throughput than the one beyond, or no more than chance may give it
        where the pace wanders. Then `best` was chance, and throughput does not fall.
    """
    level = max(1, round(c.BELOW_PEAK_SHARE * best))
    run.settle()
    window = run.hold(WindowId(Phase.BELOW_PEAK), level, c.HOLD_S, discard_s=c.REFILL_S)
    ramp.windows.append(window)
    below_rps = throughput_rps(run, window)
    if below_rps < fallen_rps * (1.0 - c.NO_PEAK_SHARE):
        return False
    by_chance = c.PEAK_Z * math.sqrt(2.0) * throughput_error(run, window)
    if by_chance > c.FALL_SHARE and math.log(below_rps / max(fallen_rps, 1e-9)) < by_chance:
        return False
    ramp.peak, ramp.level = best, level
    return True


def extended(run: MeasuringRun, hold: Window, concurrency: int) -> Window:
    """The hold, or a later one if its halves show that the server was still warming up."""
    for _ in range(c.MOST_EXTENSIONS):
        if trend(run, hold) == 0.0:
            break
        hold = run.hold(WindowId(Phase.EXTENDED), concurrency, c.HOLD_S, hot=False)
    return hold


def trend(run: MeasuringRun, hold: Window, least_ln: float = c.UNSTEADY_LN, z: float = c.UNSTEADY_Z) -> float:
    """By how much the hold's second half was slower than its first, in the logarithm; 0 within the noise."""
    step_s = typical_step_s(run.journal, [hold])
    bins = bins_of(run.journal, hold.start_s, hold.end_s, min(bin_width_s(step_s), c.HOLD_S / 8))
    usable = (bins.decoding > 1) & (bins.tokens > 0)
    if usable.sum() < 6:  # noqa: PLR2004 - too few bins to compare halves
        return 0.0
    log_pace = [
        math.log(w * n / t)
        for w, n, t in zip(bins.width_s[usable], bins.decoding[usable], bins.tokens[usable], strict=True)
    ]
    half = len(log_pace) // 2
    first, second = sorted(log_pace[:half]), sorted(log_pace[-half:])
    difference = second[half // 2] - first[half // 2]
    spread = sorted(abs(a - b) for a, b in zip(log_pace[1:], log_pace[:-1], strict=True))
    noise = 1.05 * spread[len(spread) // 2] * math.sqrt(math.pi / half)
    return difference if abs(difference) > max(least_ln, z * noise) else 0.0


def overloaded(window: Window, peak: int | None) -> bool:
    """Whether an open loop left the range in which throughput rises with requests in flight.

    Beyond the peak the server behaves differently, so such a window says nothing of it below the peak.
    """
    if peak is None:
        return False
    return window.span.stopped or any(s.in_flight_mean > peak for s in window.samples)
