"""What more server time would decide about an INCONCLUSIVE check, as far as its own evidence can tell."""

from __future__ import annotations

import math
from statistics import NormalDist

from pytest_gpucap.decisions.verdict import rps
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import NORMAL_95
from pytest_gpucap.results.measured import Interval, MoreTime, Sample, Verdict
from pytest_gpucap.results.windows import Phase

_CYCLE_S = c.OPEN_S
_DECISION_Z = NormalDist().inv_cdf(1.0 - c.WRONG_CHANCE)
"""Standard errors between ln(rate) and ln(design rate) that decide."""
_FIRST_ESTIMATE_S = c.WARM_UP_S + c.LOW_HOLD_S + c.TOP_UP_S + c.HOLD_S + _CYCLE_S
"""A check with two holds and one open loop, which is what most need for an estimate."""


def more_time(verdict: Verdict, max_time_s: float, *, of_session: bool = False) -> MoreTime:
    """What more time would decide.

    Sampling noise falls with the square root of the time; the queue model's own error does not fall. So the noise that
    may be left tells the time, and where the model's error alone is too large, no time helps. Nor does it once a check
    has made all its cycles, because it makes no more however much time it is given.

    Args:
        verdict: that is INCONCLUSIVE.
        max_time_s: server time that it was allowed.
        of_session: that was what the session's limit left, so a higher limit of its own would not help.
    """
    samples, design = verdict.measurement.samples, verdict.design_rate_rps
    direct = [sample for sample in samples if sample.window.phase is Phase.DIRECT]
    if direct:
        return _direct(direct, max_time_s, of_session=of_session)
    found = verdict.measurement.sustainable_rate
    if found is None:
        spent_s = sum(verdict.measurement.spent_s.values())
        missing_s = max(c.LEAST_PHASE_S, _FIRST_ESTIMATE_S - spent_s)
        return MoreTime(
            missing_s,
            f"about {_time(missing_s)} more would give a first estimate: "
            f"{_allow(max_time_s + missing_s, of_session=of_session)} at least",
        )
    cycles = len({sample.window.whole for sample in samples if sample.window.phase is Phase.DESIGN_RATE})
    near = f"{_shown(found)} lies within {abs(found.value / design - 1):.1%} of {rps(design)} req/s"
    if cycles >= c.MOST_CYCLES:
        return MoreTime(
            None,
            f"no more time would decide: {near}, and what {cycles} cycles leave open is drift and the queue model's "
            "own error; change the budget or the headroom, or accept INCONCLUSIVE",
        )
    needed_s = _needed_s(found, design, samples[-1].end_s - samples[0].start_s)
    if needed_s is None or needed_s > (c.MOST_CYCLES - cycles) * _CYCLE_S:
        return MoreTime(
            None,
            f"no more time would decide: {near}, nearer than all {c.MOST_CYCLES} cycles of a check could tell; change "
            "the budget or the headroom, or accept INCONCLUSIVE",
        )
    return MoreTime(
        needed_s,
        f"about {_time(needed_s)} more at this rate would separate {_shown(found)} from {rps(design)} req/s: "
        f"{_allow(max_time_s + needed_s, of_session=of_session)}",
    )


def _needed_s(found: Interval, design_rps: float, measured_s: float) -> float | None:
    """Further seconds until the interval leaves the design rate out; None if the model's error alone covers it.

    A check decides on whole cycles, so it is one of them at least.
    """
    gap = abs(math.log(found.value / design_rps)) / _DECISION_Z
    error = math.log(found.high / found.low) / (2 * NORMAL_95) if found.low > 0 and found.high < math.inf else math.inf
    noise = error**2 - c.QUEUE_MODEL_ERROR**2
    allowed = gap**2 - c.QUEUE_MODEL_ERROR**2
    if allowed <= 0 or not math.isfinite(noise):
        return None
    return max(_CYCLE_S, measured_s * (noise / allowed - 1))


def _direct(samples: list[Sample], max_time_s: float, *, of_session: bool) -> MoreTime:
    missing_s = c.DIRECT_S - (samples[-1].end_s - samples[0].start_s)
    if missing_s < c.LEAST_PHASE_S:
        return MoreTime(
            None,
            f"no more time would decide: a whole direct run of {_time(c.DIRECT_S)} does not separate; "
            "change the budget or the headroom",
        )
    return MoreTime(
        missing_s,
        f"about {_time(missing_s)} more would complete the direct run: "
        f"{_allow(max_time_s + missing_s, of_session=of_session)}",
    )


def _allow(total_s: float, *, of_session: bool) -> str:
    return "allow the session so much more" if of_session else f"allow a max time of {_time(total_s)}"


def _shown(rate: Interval) -> str:
    return f"{rps(rate.value)} ({rps(rate.low)} to {rps(rate.high)})"


def _time(seconds: float) -> str:
    """Rounded up: an estimate has no more figures than that."""
    if seconds < 100:  # noqa: PLR2004 - below that people say seconds
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} minutes"
