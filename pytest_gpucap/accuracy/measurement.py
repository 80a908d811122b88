"""Asks a server the workload's questions and measures the share of right answers.

This comes after the measurement of capacity, when the server is idle. Questions go to the chat API.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import msgspec
import numpy as np
from scipy.special import betaincinv, stdtrit

from pytest_gpucap.accuracy.chat_client import Reply, ask_all
from pytest_gpucap.accuracy.grading import Grade, grade, has_reasoning
from pytest_gpucap.accuracy.questions import Question, read_questions
from pytest_gpucap.engines.protocol import Server, address_of
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results.measured import Accuracy, Interval

ANSWER_ROUNDS: Final = 5
"""Rounds of questions, reported as samples. Fewer would not show how much one server's answers vary."""
QUESTIONS_PER_ROUND: Final = 100
"""Each round asks other questions of a longer file."""
ANSWER_TOKENS: Final = 2048
IN_FLIGHT: Final = 16
ACCURACY_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question in one round, and what came back."""

    sample: int
    question: int
    answer: str
    reply: Reply


def measure_accuracy(
    server: Server,
    workload: Workload,
    *,
    min_accuracy: Fraction | None,
    max_error_rate: Fraction,
    seed: int,
    time_s: float,
    in_flight: int = IN_FLIGHT,
) -> Accuracy:
    """Ask every question of the workload in five samples, and grade the answers.

    Args:
        server: ready, and not under load.
        workload: its questions, wording and sampling parameters.
        min_accuracy: what is required; the result carries it along.
        max_error_rate: share of questions that may get no answer.
        seed: of the order of the questions and of each answer's sampling.
        time_s: server time that all answers together may take.
        in_flight: questions under way at once.
    """
    assert workload.questions is not None  # noqa: S101 - asked by the caller
    questions = read_questions(workload.questions)
    began_s = time.monotonic()
    asked = _ask(server, workload, questions, seed=seed, in_flight=in_flight, time_s=time_s)
    least = None if min_accuracy is None else float(min_accuracy)
    found = _count(asked, Accuracy(None, min_accuracy=least, spent_s=time.monotonic() - began_s))
    return msgspec.structs.replace(found, problem=_problem(asked, found, max_error_rate, time_s))


def share_interval(right: Sequence[int], asked: Sequence[int], confidence: float = ACCURACY_CONFIDENCE) -> Interval:
    """The share of right answers, with an interval for questions of this kind.

    The same questions are asked several times, so answers are not independent: a question that is answered wrong once
    is mostly answered wrong again. The interval is that of Korn and Graubard ("Confidence intervals for proportions
    with small expected number of positive counts estimated from survey data", Survey Methodology 24, 1998). It is
    Clopper and Pearson's exact interval for the number of independent answers that would vary as much, reduced for the
    degrees of freedom. A server that always gives the same answer to a question thus counts with one answer per
    question, however often it is asked.

    Args:
        right: right answers to each question, shape (q,).
        asked: answers to each question, shape (q,), none of them 0.
        confidence: of the two-sided interval.

    Raises:
        ValueError: if there is no question, a question without an answer, or more right answers than answers.
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


def _ask(
    server: Server,
    workload: Workload,
    questions: Sequence[Question],
    *,
    seed: int,
    in_flight: int,
    time_s: float,
) -> list[_Asked]:
    endpoint = address_of(server)
    most = workload.answer_tokens
    if most is None:
        context = server.capabilities().max_model_len
        most = ANSWER_TOKENS if context is None else max(1, min(ANSWER_TOKENS, context // 2))
    order = list(range(len(questions)))
    random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    round_size = min(QUESTIONS_PER_ROUND, len(questions))
    wanted = [(place // round_size, order[place % len(order)]) for place in range(ANSWER_ROUNDS * round_size)]

    def body(sample: int, question: int) -> dict[str, Any]:
        return {
            "model": server.model,
            "messages": workload.wording.messages(questions[question].text),
            **workload.sampling,
            **workload.extra_body,
            "max_tokens": most,
            "seed": random.Random(f"{seed} {sample} {question}").getrandbits(31),  # noqa: S311 - the same
        }

    replies = ask_all(endpoint, [body(*each) for each in wanted], in_flight=in_flight, time_s=time_s)
    return [
        _Asked(sample, question, questions[question].answer, reply)
        for (sample, question), reply in zip(wanted, replies, strict=True)
    ]


def _count(asked: Sequence[_Asked], found: Accuracy) -> Accuracy:
    """The figures of the answers."""
    answered = [each for each in asked if each.reply.asked and each.reply.error is None]
    failed = sum(each.reply.error is not None for each in asked)
    if not answered:
        return msgspec.structs.replace(found, failed=failed)
    grades = grade([(each.reply.text, each.answer) for each in answered])
    right = [one is Grade.RIGHT for one in grades]
    perhaps = [one is not Grade.WRONG for one in grades]
    share = share_interval(*_by_question(answered, right))
    samples: dict[int, list[bool]] = {}
    for each, good in zip(answered, right, strict=True):
        samples.setdefault(each.sample, []).append(good)
    reasoned = [bool(each.reply.reasoning.strip()) or has_reasoning(each.reply.text) for each in answered]
    return msgspec.structs.replace(
        found,
        share=msgspec.structs.replace(share, high=share_interval(*_by_question(answered, perhaps)).high),
        answers=len(answered),
        right=sum(right),
        samples=tuple(sum(goods) / len(goods) for goods in samples.values()),
        questions=len({each.question for each in answered}),
        cut=sum(each.reply.cut for each in answered),
        skipped=reasoned.count(False) if any(reasoned) else 0,
        ungraded=grades.count(Grade.UNGRADED),
        failed=failed,
    )


def _by_question(answered: Sequence[_Asked], good: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Good answers and all answers, per question."""
    counts: dict[int, list[int]] = {}
    for each, one in zip(answered, good, strict=True):
        count = counts.setdefault(each.question, [0, 0])
        count[0] += one
        count[1] += 1
    return [count[0] for count in counts.values()], [count[1] for count in counts.values()]


def _problem(asked: Sequence[_Asked], found: Accuracy, max_error_rate: Fraction, time_s: float) -> str:
    """Why the answers are not enough to judge by; empty if they are."""
    error = next((each.reply.error for each in asked if each.reply.error), "")
    tried = found.answers + found.failed
    if found.failed > max_error_rate * tried:
        return f"{found.failed} of {tried} questions got no answer: {error}"
    unfinished = {each.sample for each in asked if not each.reply.asked}
    if unfinished:
        whole = ANSWER_ROUNDS - len(unfinished)
        return f"only {whole} of {ANSWER_ROUNDS} samples were answered within {time_s:.0f} s; allow more with max_time"
    return ""
