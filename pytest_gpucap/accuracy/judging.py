"""The share of answers that are right, its interval, and what it does to a verdict.

The same questions are asked several times, so the answers are no independent draws: a question that is answered wrong
once is mostly answered wrong again. The interval is that of Korn and Graubard ("Confidence intervals for proportions
with small expected number of positive counts estimated from survey data", Survey Methodology 24, 1998): Clopper and
Pearson's exact one, with the number of answers replaced by the number of independent ones that would vary as much, and
shortened for the degrees of freedom. A server that always says the same to a question is thereby judged on as many
answers as there are questions, however often they are asked; the interval speaks of such questions, not of these alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from scipy.special import betaincinv, stdtrit

from pytest_gpucap.results.measured import Accuracy, Interval, Outcome, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource

CONFIDENCE = 0.95


def share_interval(right: Sequence[int], asked: Sequence[int], confidence: float = CONFIDENCE) -> Interval:
    """The share of right answers, clustered by question.

    Args:
        right: right answers to each question, shape (q,).
        asked: answers to each question, shape (q,), none of them 0.
        confidence: of the two-sided interval.

    Raises:
        ValueError: if there is no question, or more right answers than answers.
    """
    hits, counts = np.asarray(right, float), np.asarray(asked, float)
    questions = counts.size
    if questions == 0 or (counts < 1).any() or (hits > counts).any() or (hits < 0).any():
        raise ValueError("an accuracy needs questions with at least one answer each, and no more right ones than those")
    n = counts.sum()
    share = hits.sum() / n
    independent = n if (counts == 1).all() else float(questions)
    if questions > 1 and 0 < share < 1 and not (counts == 1).all():
        # Linearised variance of a ratio of totals over clusters.
        variance = questions / (questions - 1) * ((hits - share * counts) ** 2).sum() / n**2
        independent = float(np.clip(share * (1 - share) / variance, 1.0, n)) if variance > 0 else n
    if questions > 1 and not (counts == 1).all():
        half = (1 + confidence) / 2
        independent *= min(1.0, float(stdtrit(max(n - 1, 1), half) / stdtrit(questions - 1, half)) ** 2)
    good, bad = share * independent, (1 - share) * independent
    tail = (1 - confidence) / 2
    low = 0.0 if good <= 0 else float(betaincinv(good, bad + 1, tail))
    high = 1.0 if bad <= 0 else float(betaincinv(good + 1, bad, 1 - tail))
    return Interval(float(share), low, high, confidence)


def judged(verdict: Verdict, accuracy: Accuracy) -> Verdict:
    """The verdict on a requirement whose answers must be right as well.

    Capacity and accuracy are limits side by side: GPUs that are added make no answer right, so wrong answers change
    nothing in the number of GPUs needed; they fail the requirement, and do not count as good throughput.
    """
    outcome, reason = _outcome(accuracy)
    decided = outcome is not Outcome.PASS and (
        verdict.outcome is Outcome.PASS or (verdict.outcome, outcome) == (Outcome.INCONCLUSIVE, Outcome.FAIL)
    )
    verdict = replace(verdict, accuracy=msgspec.structs.replace(accuracy, decided=decided))
    if decided:
        measurement = verdict.measurement
        if outcome is Outcome.INVALID:
            problem = Problem(ProblemSource.ANSWERS, ProblemKind.NO_ANSWERS, reason)
            measurement = replace(measurement, problems=(*measurement.problems, problem))
        return replace(verdict, outcome=outcome, reason=reason, measurement=measurement)
    if verdict.outcome is Outcome.FAIL and outcome is not Outcome.PASS:
        return replace(verdict, reason=f"{verdict.reason}; {reason}")
    return verdict


def _outcome(accuracy: Accuracy) -> tuple[Outcome, str]:
    """What the answers alone say, and why."""
    if accuracy.min_accuracy is None:
        return Outcome.PASS, ""
    if accuracy.share is None:
        return Outcome.INVALID, f"the answers could not be judged: {accuracy.problem}"
    least = accuracy.min_accuracy
    share = accuracy.share
    if share.high < least:
        return Outcome.FAIL, sentence(accuracy)
    if accuracy.problem:
        return Outcome.INCONCLUSIVE, f"{sentence(accuracy)}; {accuracy.problem}"
    if share.low >= least:
        return Outcome.PASS, sentence(accuracy)
    more = f"{accuracy.questions} questions do not separate them"
    return Outcome.INCONCLUSIVE, f"{sentence(accuracy)}; {more}"


def sentence(accuracy: Accuracy) -> str:
    """``answers right 61% (52-70%), needs 90%``."""
    if accuracy.share is None:
        return f"answers not judged: {accuracy.problem}"
    share = accuracy.share
    needs = "" if accuracy.min_accuracy is None else f", needs {_percent(accuracy.min_accuracy)}%"
    return f"answers right {_percent(share.value)}% ({_percent(share.low)}-{_percent(share.high)}%){needs}"


def _percent(share: float) -> str:
    return f"{share * 100:.3g}"
