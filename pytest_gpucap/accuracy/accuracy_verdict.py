"""What the share of right answers does to a verdict on capacity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec

from pytest_gpucap.accuracy.measurement import IN_FLIGHT, measure_accuracy
from pytest_gpucap.engines.protocol import Server
from pytest_gpucap.results.measured import Accuracy, Interval, MoreTime, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource

LEAST_TIME_S: Final = 60.0
"""The answers get what is left of the verdict's time, and at least this."""
MOST_IN_FLIGHT: Final = 64
MOST_ROOTS: Final = 30
"""Root of the most times as many questions that are advised: nobody would ask more than that."""


def with_accuracy(verdict: Verdict, server: Server, *, max_time_s: float) -> Verdict:
    """Ask for answers and apply them to the verdict; it stays as it is where the requirement has no accuracy limit.

    Args:
        verdict: on capacity.
        server: the one that was measured, idle now.
        max_time_s: what the whole verdict may take.
    """
    measurement = verdict.measurement
    requirement = measurement.requirement
    if requirement.slo.min_accuracy is None or verdict.outcome is Outcome.INVALID:
        return verdict
    accuracy = measure_accuracy(
        server,
        requirement.workload,
        min_accuracy=requirement.slo.min_accuracy,
        max_error_rate=requirement.slo.max_error_rate,
        seed=measurement.seed,
        time_s=max(LEAST_TIME_S, max_time_s - sum(measurement.spent_s.values())),
        in_flight=_in_flight(measurement.samples),
    )
    accuracy = msgspec.structs.replace(accuracy, good_rps=good_rate(measurement.sustainable_rate, accuracy.share))
    spent_s = {**measurement.spent_s, "answers": accuracy.spent_s}
    return apply_accuracy(replace(verdict, measurement=replace(measurement, spent_s=spent_s)), accuracy)


def apply_accuracy(verdict: Verdict, accuracy: Accuracy) -> Verdict:
    """The verdict on a requirement whose answers must be right as well.

    Capacity and accuracy are separate limits. More GPUs make no answer right, so wrong answers do not change the number
    of GPUs needed. They fail the requirement, and do not count as good throughput.
    """
    outcome, reason = _outcome(accuracy)
    decided = outcome is not Outcome.PASS and (
        verdict.outcome is Outcome.PASS or (verdict.outcome, outcome) == (Outcome.INCONCLUSIVE, Outcome.FAIL)
    )
    verdict = replace(verdict, accuracy=msgspec.structs.replace(accuracy, decided=decided))
    if decided:
        measurement = verdict.measurement
        if outcome is Outcome.INVALID:
            measurement = replace(measurement, problems=(*measurement.problems, _unjudged(reason)))
        more = _more_questions(accuracy) if outcome is Outcome.INCONCLUSIVE else None
        return replace(verdict, outcome=outcome, reason=reason, measurement=measurement, more_time=more)
    if verdict.outcome is Outcome.FAIL and outcome is not Outcome.PASS:
        return replace(verdict, reason=f"{verdict.reason}; {reason}")
    return verdict


def _more_questions(accuracy: Accuracy) -> MoreTime:
    """Time does not decide on answers, but more questions may: the interval shrinks with the square root of them."""
    share, least = accuracy.share, accuracy.min_accuracy
    assert share is not None and least is not None  # noqa: S101, PT018 - what an INCONCLUSIVE of the answers has
    half = share.value - share.low if share.value >= least else share.high - share.value
    gap = abs(share.value - least)
    asked = accuracy.questions or accuracy.answers
    if accuracy.problem:
        return MoreTime(None, f"no more time would decide: {accuracy.problem}")
    if gap <= 0 or half / gap > MOST_ROOTS:
        return MoreTime(None, "no more time would decide: the share is too near to what is required")
    wanted = math.ceil(asked * (half / gap) ** 2)
    return MoreTime(None, f"no more time would decide, but about {wanted} questions in place of {asked} would")


def _unjudged(reason: str) -> Problem:
    return Problem(ProblemSource.ANSWERS, ProblemKind.NO_ANSWERS, reason)


def _outcome(accuracy: Accuracy) -> tuple[Outcome, str]:
    """The outcome of the answers alone, and its reason."""
    if accuracy.min_accuracy is None:
        return Outcome.PASS, ""
    if accuracy.share is None:
        return Outcome.INVALID, f"the answers could not be judged: {accuracy.problem}"
    if accuracy.share.high < accuracy.min_accuracy:
        return Outcome.FAIL, accuracy.claim
    if accuracy.undecided:
        return Outcome.INCONCLUSIVE, f"{accuracy.claim}; {accuracy.undecided}"
    return Outcome.PASS, accuracy.claim


def good_rate(rate: Interval | None, share: Interval | None) -> Interval | None:
    """Right answers per second: the ends of both intervals multiplied, which is wider than needed."""
    if rate is None or share is None:
        return None
    ends = (rate.value * share.value, rate.low * share.low, rate.high * share.high)
    return Interval(*ends, min(rate.confidence, share.confidence))


def _in_flight(samples: Sequence[Sample]) -> int:
    """How many questions to ask at once: as many as the measurement had requests in flight at most, within bounds."""
    held = [sample.in_flight_mean for sample in samples if sample.in_flight_mean == sample.in_flight_mean]
    return min(MOST_IN_FLIGHT, max(1, round(max(held, default=IN_FLIGHT))))
