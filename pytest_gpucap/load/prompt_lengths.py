"""Prompts of the user's own as the schedule sees them: which one a request has, and how long it is.

Prompts are numbered through a measurement (`protocol.OpenLoop.first_prompt`). Every `OwnPrompts.count` numbers are one
round through the file, in an order of its own. So no prompt is sent twice before every other one was sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pytest_gpucap.arrays import Floats, Int32s, Ints
from pytest_gpucap.requirement import Length, LengthKind, OwnPrompts, Workload
from pytest_gpucap.workloads.lengths import described, estimated_tokens
from pytest_gpucap.workloads.prompt_file import PromptFile

_Raw = npt.NDArray[np.uint64]


def _hash64(values: _Raw) -> _Raw:
    """`load.prompts.hash64` of each value, without its offset: no two values have the same."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def rows_of(first: int, n: int, count: int, order: int) -> Ints:
    """The file's row of each of the prompt numbers [first, first + n), shape (n,).

    Args:
        first: number of the first prompt.
        n: how many.
        count: rows of the file.
        order: seed of the order; every round has another one.
    """
    if n == 0:
        return np.zeros(0, np.int64)
    first_round, last_round = first // count, (first + n - 1) // count
    numbers = np.arange(first_round * count, (last_round + 1) * count, dtype=np.uint64)
    key = _hash64(np.array([order % 2**64], np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    orders = np.argsort(_hash64(numbers ^ key).reshape(-1, count), axis=1)
    begin = first - first_round * count
    rows: Ints = orders.ravel()[begin : begin + n].astype(np.int64)
    return rows


def lengths_of(prompts: OwnPrompts, first: int, drawn: Int32s) -> tuple[Int32s, Int32s]:
    """Input and output tokens of as many prompts as `drawn` has, from number `first` on; both shape (n,).

    Args:
        prompts: with their lengths.
        first: number of the first one.
        drawn: shape (n,), output tokens of prompts that do not say how long their answer is.
    """
    rows = rows_of(first, drawn.size, prompts.count, prompts.order)
    inputs, outputs = (np.array(each, np.int32) for each in (prompts.input_tokens, prompts.output_tokens))
    own = outputs[rows]
    return inputs[rows], np.where(own > 0, own, drawn).astype(np.int32)


def with_estimates(workload: Workload, file: PromptFile) -> Workload:
    """The workload with lengths that a stand-in for a tokenizer gives: before a server counts, or if none does."""
    inputs = [estimated_tokens(each.characters) for each in file.prompts]
    answers = [0 if each.answer is None else estimated_tokens(len(each.answer)) for each in file.prompts]
    return with_lengths(workload, file, inputs, answers, estimated=len(inputs))


def with_lengths(
    workload: Workload,
    file: PromptFile,
    inputs: Sequence[int],
    answers: Sequence[int],
    *,
    estimated: int = 0,
    cached_apart: bool = False,
) -> Workload:
    """The workload with the lengths of its prompts, and with lengths that have their mean, spread and bounds.

    An answer is as long as the prompt's own line says, else as the workload says, else as the recorded answer.

    Args:
        workload: with prompts.
        file: that they are from.
        inputs: tokens of each prompt, as a request has them.
        answers: tokens of each recorded answer; 0: there is none.
        estimated: how many of `inputs` the server did not count.
        cached_apart: see `OwnPrompts`.
    """
    prompts = workload.prompts
    assert prompts is not None  # noqa: S101 - what callers know
    recorded = prompts.declared is None
    outputs = [
        each.output_tokens or (answer if recorded else 0) for each, answer in zip(file.prompts, answers, strict=True)
    ]
    counted = replace(
        prompts,
        input_tokens=tuple(inputs),
        output_tokens=tuple(outputs),
        estimated=estimated,
        cached_apart=cached_apart,
    )
    return replace(
        workload,
        prompts=counted,
        input_tokens=described(np.array(inputs, np.int32)),
        output_tokens=_mixed(np.array(outputs, np.int32), prompts.drawn),
    )


def _mixed(outputs: Int32s, drawn: Length) -> Length:
    """A length with the mean, spread and bounds of the counts, shape (n,), those that are 0 drawn."""
    own = outputs[outputs > 0]
    if own.size == outputs.size:
        return described(own)
    if own.size == 0:
        return drawn
    share = own.size / outputs.size
    mean = share * float(own.mean()) + (1 - share) * drawn.mean
    square = share * float((own.astype(np.float64) ** 2).mean()) + (1 - share) * (drawn.mean**2 + _variance(drawn))
    low, high = min(int(own.min()), drawn.low), max(int(own.max()), drawn.high)
    if low == high:
        return Length.fixed(low)
    return Length(LengthKind.LOGNORMAL, mean, low, high, math.sqrt(max(square - mean**2, 0.0)) / mean)


def _variance(length: Length) -> float:
    if length.kind is LengthKind.UNIFORM:
        return ((length.high - length.low + 1) ** 2 - 1) / 12
    return (length.cv * length.mean) ** 2


def longest_prompt(prompts: OwnPrompts) -> tuple[int, int]:
    """Input and output tokens of the prompt with most tokens in all."""
    inputs, outputs = (np.array(each, np.int64) for each in (prompts.input_tokens, prompts.output_tokens))
    outputs = np.where(outputs > 0, outputs, prompts.drawn.high)
    longest = int((inputs + outputs).argmax())
    return int(inputs[longest]), int(outputs[longest])


def prompt_decode_context(prompts: OwnPrompts) -> float:
    """See `load.trace.decode_context`; drawn answers have their mean length."""
    read: Floats = np.array(prompts.input_tokens, np.float64)
    written: Floats = np.array(prompts.output_tokens, np.float64)
    written = np.where(written > 0, written, prompts.drawn.mean)
    return float(np.sum(written * (read + written / 2)) / np.sum(written))


def repeats(workload: Workload, requests: int) -> str:
    """What is to be said of prompts that were sent more than once, in one sentence; empty if none was."""
    prompts = workload.prompts
    if prompts is None or requests <= prompts.count:
        return ""
    return (
        f"{requests} requests were sent, and {prompts.path.name} has {prompts.count} prompts: each was sent "
        f"{requests / prompts.count:.3g} times on average, and a server with a prefix cache does less work for repeats"
    )
