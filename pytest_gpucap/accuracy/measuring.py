"""Asks a server the workload's questions and counts right answers: after the measurement, through the chat endpoint."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import msgspec

from pytest_gpucap.accuracy.asking import Reply, ask, context_tokens
from pytest_gpucap.accuracy.grading import Grade, grade, thought
from pytest_gpucap.accuracy.judging import judged, share_interval
from pytest_gpucap.accuracy.questions import Question, read_questions
from pytest_gpucap.engines.protocol import Server
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.requirement import Workload
from pytest_gpucap.results.measured import Accuracy, Interval, Outcome, Sample, Verdict

SAMPLES: Final = 5
"""Rounds of questions; fewer say nothing of how much one server's answers vary."""
PER_SAMPLE: Final = 100
"""Questions a round: of a longer file each round asks others."""
ANSWER_TOKENS: Final = 2048
LEAST_TIME_S: Final = 60.0
"""The answers get the verdict's time that is left, and this at least."""
IN_FLIGHT: Final = 16
MOST_IN_FLIGHT: Final = 64


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question in one sample, and what came back."""

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
        min_accuracy: what is required; it only travels with the result.
        max_error_rate: share of questions that may come to no answer.
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


def good_rate(rate: Interval | None, share: Interval | None) -> Interval | None:
    """Right answers a second: both intervals' ends multiplied, which is wider than either asks for."""
    if rate is None or share is None:
        return None
    ends = (rate.value * share.value, rate.low * share.low, rate.high * share.high)
    return Interval(*ends, min(rate.confidence, share.confidence))


def in_flight_of(samples: Sequence[Sample]) -> int:
    """As many questions at once as the measurement had requests under way at its hardest, within bounds."""
    held = [sample.in_flight_mean for sample in samples if sample.in_flight_mean == sample.in_flight_mean]
    return min(MOST_IN_FLIGHT, max(1, round(max(held, default=IN_FLIGHT))))


def _ask(
    server: Server,
    workload: Workload,
    questions: Sequence[Question],
    *,
    seed: int,
    in_flight: int,
    time_s: float,
) -> list[_Asked]:
    endpoint = ServerAddress.parse(server.base_url, str(server.api_key))
    most = workload.answer_tokens
    if most is None:
        context = context_tokens(endpoint, server.model)
        most = ANSWER_TOKENS if context is None else max(1, min(ANSWER_TOKENS, context // 2))
    order = list(range(len(questions)))
    random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    round_size = min(PER_SAMPLE, len(questions))
    wanted = [(place // round_size, order[place % len(order)]) for place in range(SAMPLES * round_size)]

    def body(sample: int, question: int) -> dict[str, Any]:
        return {
            "model": server.model,
            "messages": workload.wording.messages(questions[question].text),
            **workload.sampling,
            "max_tokens": most,
            "seed": random.Random(f"{seed} {sample} {question}").getrandbits(31),  # noqa: S311 - the same
        }

    replies = ask(endpoint, [body(*each) for each in wanted], in_flight=in_flight, time_s=time_s)
    return [
        _Asked(sample, question, questions[question].answer, reply)
        for (sample, question), reply in zip(wanted, replies, strict=True)
    ]


def _count(asked: Sequence[_Asked], found: Accuracy) -> Accuracy:
    """The figures of what was answered."""
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
    reasoned = [bool(each.reply.reasoning.strip()) or thought(each.reply.text) for each in answered]
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
    """Good answers and all answers of each question."""
    counts: dict[int, list[int]] = {}
    for each, one in zip(answered, good, strict=True):
        count = counts.setdefault(each.question, [0, 0])
        count[0] += one
        count[1] += 1
    return [count[0] for count in counts.values()], [count[1] for count in counts.values()]


def _problem(asked: Sequence[_Asked], found: Accuracy, max_error_rate: Fraction, time_s: float) -> str:
    """What keeps the answers from saying what they should."""
    error = next((each.reply.error for each in asked if each.reply.error), "")
    tried = found.answers + found.failed
    if found.failed > max_error_rate * tried:
        return f"{found.failed} of {tried} questions came to no answer: {error}"
    unfinished = {each.sample for each in asked if not each.reply.asked}
    if unfinished:
        whole = SAMPLES - len(unfinished)
        return f"only {whole} of {SAMPLES} samples were answered within {time_s:.0f} s; allow more with max_time"
    return ""


def with_answers(verdict: Verdict, server: Server, *, max_time_s: float) -> Verdict:
    """The verdict, with the answers asked for and judged; as it was where the requirement does not ask for them.

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
        in_flight=in_flight_of(measurement.samples),
    )
    accuracy = msgspec.structs.replace(accuracy, good_rps=good_rate(measurement.sustainable_rate, accuracy.share))
    spent_s = {**measurement.spent_s, "answers": accuracy.spent_s}
    return judged(replace(verdict, measurement=replace(measurement, spent_s=spent_s)), accuracy)
