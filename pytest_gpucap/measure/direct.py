"""The direct run, where answers show no pace: no model, only what an open loop shows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pytest_gpucap.arrays import Bools, Floats
from pytest_gpucap.estimate.bins import integral
from pytest_gpucap.estimate.samples import quantile
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import critical_concurrency
from pytest_gpucap.measure.late import late_by
from pytest_gpucap.measure.of_sessions import error_of_share, owners
from pytest_gpucap.measure.pace import BUFFERED, NoPace, missing_pace, unjudgeable
from pytest_gpucap.measure.run import MeasuringRun, Window, overload_at
from pytest_gpucap.requirement import GoodputLimit, Limit, Metric
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId


def run_without_pace(
    run: MeasuringRun, design_rps: float, critical: int, why: NoPace, completed_rps: float = 0.0
) -> tuple[Outcome, str]:
    """Decide by an open loop, because answers show no pace to which a curve could be fitted.

    Whole latencies, errors and the backlog are seen all the same. A limit on the time between tokens cannot be judged.
    Behind a proxy that buffers, TTFT is the time of a buffer, or of the whole answer: it can keep its limit, but not
    break it. The open loop goes on for `constants.DIRECT_S` in all where it does not separate before.

    Args:
        run: the measurement.
        design_rps: design rate per replica.
        critical: requests in flight at the design rate with which a limit just binds.
        why: there is no pace.
        completed_rps: what the server answered in the hold before; 0 where nothing is known of it.
    """
    if refused := _refused(run, why):
        return refused
    if ended := _overloaded_below(run, design_rps, completed_rps, why):
        return ended
    overload = _overload(run, design_rps, critical)
    length_s = _length_s(run, design_rps)
    window: Window | None = None
    outcome, told = Outcome.INCONCLUSIVE, ""
    for cycle, seconds in ((0, length_s), (2, c.DIRECT_S - length_s)):
        if outcome is not Outcome.INCONCLUSIVE or seconds < c.LEAST_PHASE_S:
            break
        part = run.open_loop(WindowId(Phase.DIRECT, cycle), design_rps, seconds, overload=overload)
        if run.problems:
            return Outcome.INVALID, run.problems[0].text
        window = _joined(window, part) if window else part
        # A slow server's answers may have been too few to tell before.
        why = missing_pace(run.journal, run.requirement.workload, part.span) or why
        if refused := _refused(run, why):
            return refused
        outcome, told = _seen(run, window, overload, why)
    if outcome is Outcome.INVALID:
        return _invalid(run, told)
    return (
        outcome,
        f"a direct run at the design rate of {design_rps:.3g} req/s {told}; no model was fitted: {why.value}",
    )


def _overloaded_below(
    run: MeasuringRun, design_rps: float, completed_rps: float, why: NoPace
) -> tuple[Outcome, str] | None:
    """FAIL if a rate far below the design rate overloads the server, INVALID if the run has problems.

    A design rate far beyond everything that was seen would overload the load generator as well, and tell no more.
    """
    rate = c.DIRECT_STEP * completed_rps
    while 0.0 < rate <= design_rps / c.DIRECT_STEP:
        overload = overload_at(critical_concurrency(run.requirement, run.settings, rate))
        window = run.open_loop(WindowId(Phase.APPROACH, rate_rps=rate), rate, c.DIRECT_STEP_S, overload=overload)
        if run.problems:
            return Outcome.INVALID, run.problems[0].text
        if window.span.stopped:
            told = f"{rate:.3g} req/s, far below the design rate of {design_rps:.3g} req/s, overloaded the server"
            return Outcome.FAIL, f"a direct run at {told}; no model was fitted: {why.value}"
        rate *= c.DIRECT_STEP
    return None


def _overload(run: MeasuringRun, design_rps: float, critical: int) -> int:
    """Requests in flight with which a direct run at the design rate is called off, and so fails.

    A queue's tail is exponential (Kingman 1970). So where a share of 1 - q of the requests may take longer than the
    limit, a share of (1 - q)^x takes x times as long, and meets about x times the critical number in flight. What
    arrives while the engine stops comes on top.
    """
    allowed = max((1.0 - float(limit.quantile) for limit in run.requirement.slo.limits), default=0.0)
    multiple = math.log(c.DIRECT_TAIL) / math.log(allowed) if allowed else c.OVERLOAD
    return overload_at(max(multiple / c.OVERLOAD, 1.0) * critical + design_rps * c.DIRECT_STOP_S / c.OVERLOAD)


def _joined(window: Window, further: Window) -> Window:
    """Two open loops at one rate, the second of which followed the first without a pause."""
    first, second = window.span, further.span
    gaps = replace(second.gaps, counts=first.gaps.counts + second.gaps.counts)
    span = replace(second, start_s=first.start_s, first_row=first.first_row, gaps=gaps)
    return replace(further, span=span, start_s=window.start_s, samples=(*window.samples, *further.samples))


def _refused(run: MeasuringRun, why: NoPace) -> tuple[Outcome, str] | None:
    """INVALID if a limit cannot be judged."""
    names = ", ".join(limit.name for limit in unjudgeable(run.requirement.slo, why))
    return _invalid(run, f"{names} cannot be judged: {why.value}") if names else None


def _seen(run: MeasuringRun, window: Window, overload: int, why: NoPace) -> tuple[Outcome, str]:
    """What a direct run without a pace showed."""
    if window.span.stopped:
        return Outcome.FAIL, f"overloaded the server: more than {overload} requests piled up"
    limits = run.requirement.slo.limits
    first_tokens = [limit for limit in limits if Metric.TTFT in limit.metrics] if why in BUFFERED else []
    # A request that breaks another threshold is no good one, whenever its first token came.
    goodputs = [limit for limit in first_tokens if isinstance(limit, GoodputLimit)]
    weaker = [each for limit in goodputs if (each := limit.apart_from(Metric.TTFT))]
    others = "the last" if why is NoPace.AT_ONCE else "others"
    outcome, told = _judged(run, window, (*(limit for limit in limits if limit not in first_tokens), *weaker))
    if outcome is Outcome.PASS and (growth := _backlog_growth(run, window)):
        return Outcome.FAIL, growth
    for limit in first_tokens:
        if outcome is not Outcome.PASS:
            break
        outcome, told = _judged(run, window, (limit,))
        if outcome is Outcome.FAIL:
            return (
                Outcome.INVALID,
                f"{limit.name} cannot be judged: {why.value} The first token came with {others}, later than the limit",
            )
    return outcome, told


def _invalid(run: MeasuringRun, text: str) -> tuple[Outcome, str]:
    run.problems.append(Problem(ProblemSource.SERVER, ProblemKind.NO_PACE, text))
    return Outcome.INVALID, text


def _length_s(run: MeasuringRun, design_rps: float) -> float:
    """Seconds of a direct run without a pace: long against a request, and enough requests for every percentile."""
    journal = run.journal
    ended = np.sort((journal.end_s - journal.due_s)[journal.status == Status.OK])
    if ended.size < c.LEAST_ANSWERS:
        return c.DIRECT_S
    long_enough_s = c.DIRECT_BLOCKS * c.DIRECT_BLOCK_REQUESTS_S * quantile(ended, 0.95)
    allowed = min((1.0 - float(limit.quantile) for limit in run.requirement.slo.limits), default=1.0)
    # A tenth more, because arrivals are random.
    enough_s = 1.1 * c.NONE_SEEN / allowed / design_rps
    return min(c.DIRECT_S, max(c.DIRECT_LEAST_S, long_enough_s, enough_s))


def _judged(run: MeasuringRun, window: Window, limits: tuple[Limit, ...]) -> tuple[Outcome, str]:
    """Decide on the share of requests within each limit, by blocks of one long open loop.

    Blocks, because neighbouring requests share a busy period and are no independent trials (method of batch means).
    PASS takes the error that a server just on the limit would show, as a score test does: the variance of a compound
    Poisson count is in proportion to its mean.
    """
    outcome = Outcome.PASS
    for limit in limits:
        shares = block_shares(run, window, limit)
        if shares.size < 2:  # noqa: PLR2004 - no spread of one
            return Outcome.INCONCLUSIVE, f"left {limit.name} undecided"
        mean, error = float(shares.mean()), float(shares.std(ddof=1)) / math.sqrt(shares.size)
        error = max(error, _error_by_session(run, window, limit))
        allowed = 1.0 - float(limit.quantile)
        if mean - c.DIRECT_Z * error > allowed:
            return Outcome.FAIL, _broke(limit, mean)
        none_seen = c.NONE_SEEN / max(1, window.span.end_row - window.span.first_row)
        # What comes in busy periods varies with how much comes: few that broke the limit show too small an error.
        at_limit = error * math.sqrt(max(1.0, allowed / mean)) if mean > 0.0 else error
        if max(mean + c.DIRECT_Z * at_limit, 0.0 if limit.of_gaps else none_seen) > allowed:
            outcome = Outcome.INCONCLUSIVE
    return outcome, "kept every limit" if outcome is Outcome.PASS else "did not separate"


def _broke(limit: Limit, share: float) -> str:
    """How a limit was broken, in so large a share of the requests."""
    if isinstance(limit, GoodputLimit):
        return f"let {1.0 - share:.1%} of the requests keep all limits together, {limit.required} must"
    return f"broke {limit.name} in {share:.1%} of the requests"


def _backlog_growth(run: MeasuringRun, window: Window) -> str:
    """How the requests in flight grew over the blocks; empty where they did not grow beyond chance."""
    edges = np.linspace(window.start_s, window.end_s, c.DIRECT_BLOCKS + 1)
    levels = np.diff(integral(edges, run.journal.due_s, run.journal.end_s)) / np.diff(edges)
    at = np.arange(levels.size) - (levels.size - 1) / 2.0
    slope = float((at * levels).sum() / (at**2).sum())
    residual = levels - levels.mean() - slope * at
    error = math.sqrt(float((residual**2).sum()) / (levels.size - 2) / float((at**2).sum()))
    rise = slope * (levels.size - 1)
    if slope <= c.GROWTH_T * error or rise <= max(c.GROWTH_REQUESTS, c.GROWTH_SHARE * float(levels.mean())):
        return ""
    return f"let the backlog grow from {levels[0]:.3g} to {levels[-1]:.3g} requests in flight"


def _error_by_session(run: MeasuringRun, window: Window, limit: Limit) -> float:
    """Standard error of the share of requests beyond a limit, with sessions as the units; 0 without sessions."""
    if limit.of_gaps:
        return 0.0
    late, known = _late(run, window, limit)
    whose = owners(run.journal, np.arange(window.span.first_row, window.span.end_row))
    return error_of_share(late[known], whose[known])


def _late(run: MeasuringRun, window: Window, limit: Limit) -> tuple[Bools, Bools]:
    """Which requests of a window are beyond a limit, and of which that is known; shape (n,) each."""
    journal, rows = run.journal, slice(window.span.first_row, window.span.end_row)
    late, known = late_by(journal, rows, window.end_s, limit)
    # Without a model nothing tells what a failed request would have taken.
    failed = journal.failed[rows]
    late |= failed & np.isnan(journal.first_s[rows]) if limit.at_first else failed
    return late, known | late


def block_shares(run: MeasuringRun, window: Window, limit: Limit) -> Floats:
    """Share of requests beyond the limit in each block, shape (blocks,). A request in flight counts by its age."""
    journal, end_s = run.journal, window.end_s
    if limit.of_gaps:
        return np.array([window.span.gaps.share_above(limit.most)] * 2)
    due = journal.due_s[window.span.first_row : window.span.end_row]
    late, known = _late(run, window, limit)
    block = np.minimum(
        ((due - window.start_s) / (end_s - window.start_s) * c.DIRECT_BLOCKS).astype(int), c.DIRECT_BLOCKS - 1
    )
    return np.array([late[known & (block == b)].mean() for b in range(c.DIRECT_BLOCKS) if (known & (block == b)).any()])
