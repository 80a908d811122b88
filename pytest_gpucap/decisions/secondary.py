"""What secondary limits say: the measured figure with its interval against the declared one, and what follows.

A figure that is read (a start-up time, the tokens of a KV cache) has no sampling error, so it decides by itself. A
figure that is a quotient over windows (energy over tokens, hits over lookups) is known as well as the windows agree.
Its interval is that of a ratio estimator (Cochran, "Sampling Techniques", 1977, 6.4), with Student's t for so few
windows. Windows that follow each other are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec

from pytest_gpucap.decisions.students_t import t_quantile
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results.measured import (
    Interval,
    Measurement,
    MoreTime,
    Outcome,
    Sample,
    SecondaryResult,
    Verdict,
    judged_samples,
)
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.secondary import Bound, SecondaryFigure, SecondaryLimit, SecondaryName, StartFigures

_CONFIDENCE: Final = 0.95
_FEWEST: Final = 2
"""Windows that can disagree."""
_SECONDS_PER_HOUR: Final = 3600.0
_WORST_FIRST: Final = (Outcome.FAIL, Outcome.INVALID, Outcome.INCONCLUSIVE, Outcome.PASS)
"""A limit that is certainly broken stays broken, whatever could not be measured."""
_QUOTIENTS: Final = {
    SecondaryName.JOULES_PER_1K_TOKENS: (1000.0, "J", "output tokens"),
    SecondaryName.ACCEPTANCE: (1.0, "accepted", "drafted tokens"),
    SecondaryName.PREFIX_HIT_RATE: (1.0, "cached", "prompt tokens"),
    SecondaryName.PREEMPTIONS: (1.0, "preemptions", "requests"),
}
"""Factor, and what stands over and under the line."""
_MOST: Final = {SecondaryName.ACCEPTANCE: 1.0, SecondaryName.PREFIX_HIT_RATE: 1.0}
"""Quotients that cannot be greater."""


def quotient(parts: Sequence[tuple[float, float]], factor: float = 1.0, most: float = math.inf) -> Interval | None:
    """The quotient of two sums over windows, with its 95% interval from how far the windows disagree.

    Args:
        parts: (over, under) of each window.
        factor: on the quotient.
        most: the quotient cannot be greater.

    Returns:
        None if nothing stands under the line. The interval of a single window is open.
    """
    over, under, count = sum(a for a, _ in parts), sum(b for _, b in parts), len(parts)
    if under <= 0:
        return None
    value = over / under
    half = math.inf
    if count >= _FEWEST:
        squares = sum((a - value * b) ** 2 for a, b in parts)
        error = math.sqrt(squares * count / (count - 1)) / under
        half = t_quantile((1 + _CONFIDENCE) / 2, count - 1) * error
    low, high = max(0.0, value - half), min(most, value + half)
    return Interval(value * factor, low * factor, high * factor, _CONFIDENCE)


def quotient_of(name: SecondaryName, parts: Sequence[tuple[float, float]]) -> Interval | None:
    """One of the quotients in the unit of its metric; None if nothing stands under the line."""
    return quotient(parts, _QUOTIENTS[name][0], _MOST.get(name, math.inf))


def cost_of(per_hour: float, rate_rps: float, tokens: float) -> float:
    """The price of an hour over the output tokens that a rate makes in it, for 1,000,000 of them.

    Args:
        per_hour: of one replica, in USD.
        rate_rps: of one replica; above 0, or the cost is infinite.
        tokens: output tokens of a request.
    """
    return per_hour / (rate_rps * tokens * _SECONDS_PER_HOUR) * 1e6 if rate_rps > 0 else math.inf


def judged(limit: SecondaryLimit, starts: Sequence[StartFigures], measurement: Measurement) -> SecondaryResult:
    """One limit, judged by what the starts of the server showed.

    Of a figure that is read the worst start counts; of a quotient the windows of all starts.

    Args:
        limit: as declared.
        starts: what each start showed.
        measurement: of all of them.
    """
    figures = [start[limit.name] for start in starts]
    result = SecondaryResult(
        name=limit.name,
        unit=limit.metric.unit,
        bound=limit.metric.bound,
        limit=limit.limit,
        measured=None,
        outcome=Outcome.INVALID,
    )
    if missing := next((figure.why for figure in figures if figure.why), "" if figures else "no start was measured"):
        return msgspec.structs.replace(result, reason=missing)
    if limit.name is SecondaryName.USD_PER_1M_TOKENS:
        return _with_cost(result, figures[0], measurement)
    if limit.name in _QUOTIENTS:
        return _with_quotient(result, [part for figure in figures for part in figure.parts])
    return _with_worst(result, figures)


def _with_worst(result: SecondaryResult, figures: Sequence[SecondaryFigure]) -> SecondaryResult:
    """A figure that is read: of several starts the worst."""
    told = [(figure.value, figure.beside) for figure in figures if figure.value is not None]
    pick = max if result.bound is Bound.AT_MOST else min
    value, beside = pick(told, key=lambda each: each[0])
    count = len(told)
    return msgspec.structs.replace(
        result,
        measured=Interval(value, value, value, 1.0),
        outcome=_outcome(result, value, value),
        arithmetic=f"the worst of {count} starts" if count > 1 else "",
        beside=beside,
    )


def _with_quotient(result: SecondaryResult, parts: Sequence[tuple[float, float]]) -> SecondaryResult:
    factor, over, under = _QUOTIENTS[result.name]
    found = quotient_of(result.name, parts)
    if found is None:
        return msgspec.structs.replace(result, reason=f"there were no {under} in the measuring windows")
    above, below = (sum(part[place] for part in parts) for place in (0, 1))
    times = "" if factor == 1 else f" x {factor:,.0f}"
    arithmetic = f"{above:,.0f} {over} / {below:,.0f} {under}{times}"
    if result.limit == 0:
        # One is too many. Readings come twice a second, so the edge of a window cuts single ones into parts.
        outcome = Outcome.PASS if round(above) == 0 else Outcome.FAIL
    else:
        outcome = _outcome(result, found.low, found.high)
    undecided = "its windows do not separate it from the limit" if outcome is Outcome.INCONCLUSIVE else ""
    return msgspec.structs.replace(result, measured=found, outcome=outcome, arithmetic=arithmetic, reason=undecided)


def _with_cost(result: SecondaryResult, figure: SecondaryFigure, measurement: Measurement) -> SecondaryResult:
    """The price of an hour over the tokens that the sustainable rate makes in it."""
    per_hour = figure.value
    each = tokens_per_request(measurement.requirement.workload, measurement.samples)
    rate, at_least = measurement.sustainable_rate, measurement.at_least_rps
    if per_hour is None or each is None or (rate is None and at_least is None):
        return msgspec.structs.replace(result, reason="there is no rate whose tokens could be counted")

    cost = partial(_cost_at, per_hour, each)
    if at_least is not None:
        found = Interval(cost(at_least), 0.0, cost(at_least))
        shown = at_least
    else:
        assert rate is not None  # noqa: S101 - see above
        found = Interval(cost(rate.value), cost(rate.high), cost(rate.low), rate.confidence)
        shown = rate.value
    outcome = _outcome(result, found.low, found.high)
    bound = "at least " if at_least is not None else ""
    unknown = "the rate is not known well enough" if at_least is None else "more than that rate was not measured"
    undecided = unknown if outcome is Outcome.INCONCLUSIVE else ""
    return msgspec.structs.replace(
        result,
        measured=found,
        outcome=outcome,
        arithmetic=f"{per_hour:g} USD/h / ({bound}{shown:.3g} req/s x {each:.4g} tokens x 3,600 s) x 1,000,000",
        reason=undecided,
    )


def _cost_at(per_hour: float, tokens: float, rate_rps: float) -> float:
    return cost_of(per_hour, rate_rps, tokens)


def tokens_per_request(workload: Workload, samples: Sequence[Sample]) -> float | None:
    """Mean output tokens of a request: as asked for, or as seen where answers may end earlier; None: none was seen."""
    if workload.ignore_eos:
        return workload.output_tokens.mean
    windows = [(each, each.end_s - each.start_s) for each in judged_samples(samples)]
    requests = sum(each.completed_rps * seconds for each, seconds in windows)
    made = sum(each.output_tokens_per_s * seconds for each, seconds in windows)
    return made / requests if requests > 0 and made > 0 else None


def _outcome(result: SecondaryResult, low: float, high: float) -> Outcome:
    """PASS if the whole interval keeps the limit, FAIL if all of it breaks it."""
    if result.bound is Bound.AT_MOST:
        kept, broken = high <= result.limit, low > result.limit
    else:
        kept, broken = low >= result.limit, high < result.limit
    return Outcome.PASS if kept else Outcome.FAIL if broken else Outcome.INCONCLUSIVE


def worst(results: Sequence[SecondaryResult]) -> SecondaryResult | None:
    """The result that decides over the others; None if all limits are kept."""
    bad = [each for each in results if each.outcome is not Outcome.PASS]
    return min(bad, key=lambda each: _WORST_FIRST.index(each.outcome), default=None)


def stated(result: SecondaryResult) -> str:
    """``start-up 120 s, at most 90 s allowed``; of a quotient with its arithmetic, and with why it is undecided."""
    if result.outcome is Outcome.INVALID:
        return f"{result.name} could not be measured: {result.reason}"
    return "; ".join(filter(None, [": ".join(filter(None, [result.claim, result.arithmetic])), result.reason]))


def with_secondary(verdict: Verdict, results: Sequence[SecondaryResult]) -> Verdict:
    """The verdict on a requirement that has limits beside the rate.

    A budget that holds fails with any limit that is broken. More GPUs keep no such limit, so the number of GPUs needed
    stays as it is. A verdict that is bad already keeps its reason, and is told what else is broken.
    """
    measurement = replace(verdict.measurement, secondary=tuple(results))
    verdict = replace(verdict, measurement=measurement)
    found = worst(results)
    if found is None or verdict.outcome is Outcome.INVALID:
        return verdict
    reason = stated(found)
    if _WORST_FIRST.index(found.outcome) >= _WORST_FIRST.index(verdict.outcome):
        return replace(verdict, reason=f"{verdict.reason}; {reason}")
    measurement = replace(
        measurement,
        secondary=tuple(msgspec.structs.replace(each, decided=each is found) for each in results),
        problems=(*measurement.problems, *([unmeasured(found)] if found.outcome is Outcome.INVALID else [])),
    )
    more = MoreTime(None, "no more time would decide on this limit") if found.outcome is Outcome.INCONCLUSIVE else None
    accuracy = None if verdict.accuracy is None else msgspec.structs.replace(verdict.accuracy, decided=False)
    return replace(
        verdict, outcome=found.outcome, reason=reason, measurement=measurement, more_time=more, accuracy=accuracy
    )


def unmeasured(result: SecondaryResult) -> Problem:
    """Why a measurement cannot be trusted to keep this limit."""
    return Problem(ProblemSource.MEASUREMENT, ProblemKind.NOT_MEASURED, stated(result))
