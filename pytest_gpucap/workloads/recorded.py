"""What the file of ``sessions=FILE`` sends: its sessions with their lengths, cut to the context that was declared."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pytest_gpucap.arrays import Bools, Int32s, Ints
from pytest_gpucap.requirement import USUAL_OUTPUT, ArrivalKind, RecordedSessions, RequirementError, Sessions, Workload
from pytest_gpucap.user_files import shown_path
from pytest_gpucap.workloads.lengths import described, estimated_tokens
from pytest_gpucap.workloads.session_file import SessionFile, read_sessions


@dataclass(frozen=True, slots=True)
class FileOfSessions:
    """``sessions="FILE think=2s context=8192 block=16"``, as it is written in a marker.

    Attributes:
        path: of the file.
        think_s: instead of the pauses of the file; None: those.
        context: see `Sessions`.
        block: tokens of a block of a trace; None: as its format has it.
        words: what stands behind the file.
    """

    path: Path
    think_s: float | None = None
    context: int | None = None
    block: int | None = None
    words: str = ""

    @property
    def text(self) -> str:
        """The same with the name of the file alone."""
        return f"{self.path.name} {self.words}".strip()


def with_recorded(workload: Workload, given: FileOfSessions, output_tokens: int | None) -> Workload:
    """The workload with the sessions of a file, and with lengths that describe their whole prompts and answers.

    The lengths of texts are estimated until a server counts them.

    Args:
        workload: without sessions.
        given: the file and what is said beside it.
        output_tokens: of turns that do not say how long their answer is; None: nothing was declared.

    Raises:
        RequirementError: if the file cannot be used, or holds not what the arrivals need.
    """
    file = read_sessions(given.path, output_tokens or USUAL_OUTPUT, given.block)
    traced = workload.arrivals.kind is ArrivalKind.TRACE
    if traced and file.start_s is None:
        raise RequirementError(
            f'{shown_path(given.path)}: does not say when sessions began, which arrivals="trace" needs: leave it out'
        )
    unknown = file.output == 0
    if not file.personal and output_tokens is not None:
        raise RequirementError(
            "sessions and output_tokens exclude each other: every row of the trace says how long its answer is"
        )
    if file.personal and output_tokens is not None and not unknown.any():
        raise RequirementError(
            f"{shown_path(given.path)}: every turn says how long its answer is: leave output_tokens out"
        )
    said = f"{file.sha256} {given.think_s} {given.context} {output_tokens}"
    nothing = np.zeros(file.output.size, np.int32)
    recorded = RecordedSessions(
        path=given.path,
        sha256=hashlib.sha256(said.encode()).hexdigest(),
        file_sha256=file.sha256,
        personal=file.personal,
        in_order=traced or not file.personal,
        begin=file.begin[:-1],
        turns=np.diff(file.begin),
        start_s=file.start_s,
        prompt=nothing,
        output=nothing,
        shared=nothing,
        own=nothing,
        think_s=file.think_s,
        declared=output_tokens,
        think_given_s=given.think_s,
        context=given.context,
        block=file.block,
    )
    workload = replace(workload, sessions=_described(recorded, given.text))
    if not file.personal:
        return with_lengths(workload, file, file.prompt.tolist(), file.output.tolist())
    answers = [0 if each is None else estimated_tokens(len(each)) for each in file.answers]
    prompts = [estimated_tokens(int(each)) for each in file.characters]
    return with_lengths(workload, file, prompts, answers, estimated=len(prompts))


def with_lengths(
    workload: Workload,
    file: SessionFile,
    prompts: Sequence[int],
    answers: Sequence[int],
    *,
    estimated: int = 0,
    cached_apart: bool = False,
) -> Workload:
    """The workload with the lengths of its recorded turns.

    An answer is as long as the turn itself says, else as was declared, else as the recorded answer.

    Args:
        workload: with sessions of the file.
        file: that they are from.
        prompts: tokens of the prompt of each turn.
        answers: tokens of each recorded answer; 0: none was recorded.
        estimated: how many of `prompts` the server did not count.
        cached_apart: see `RecordedSessions`.

    Raises:
        RequirementError: if no first turn fits the context that was declared.
    """
    sessions = workload.sessions
    recorded = None if sessions is None else sessions.recorded
    assert sessions is not None  # noqa: S101 - what callers know
    assert recorded is not None  # noqa: S101 - what callers know
    prompt = np.array(prompts, np.int32)
    own_answers = np.array(answers, np.int32)
    if recorded.declared is not None:
        own_answers = np.zeros_like(own_answers)
    output = np.where(file.output > 0, file.output, np.where(own_answers > 0, own_answers, recorded.usual_output))
    output = output.astype(np.int32)
    begin, turns = _fitting(file, prompt, output, recorded.context)
    if begin.size == 0:
        raise RequirementError(
            f"{shown_path(file.path)}: no session has a first turn of context={recorded.context} tokens with its "
            "answer: raise it"
        )
    kept = turns > 0
    shared, own = (_of_texts(file, prompt),) * 2 if file.personal else _of_blocks(file)
    think_s = file.think_s
    if recorded.think_given_s is not None:
        think_s = np.full(think_s.size, recorded.think_given_s)
        think_s[file.begin[:-1]] = 0.0
    found = replace(
        recorded,
        begin=begin[kept],
        turns=turns[kept],
        start_s=None if file.start_s is None else file.start_s[kept],
        prompt=prompt,
        output=output,
        shared=np.minimum(shared, prompt - 1),
        own=np.minimum(own, prompt - 1),
        think_s=think_s,
        estimated=estimated,
        cached_apart=cached_apart,
        lengths_sha256=hashlib.sha256(prompt.tobytes() + output.tobytes()).hexdigest(),
    )
    rows = np.flatnonzero(_sent(found))
    return replace(
        workload,
        sessions=_described(found, sessions.text),
        input_tokens=described(prompt[rows]),
        output_tokens=described(output[rows]),
    )


def _fitting(file: SessionFile, prompt: Int32s, output: Int32s, context: int | None) -> tuple[Ints, Ints]:
    """The first turn of each session, and how many there are before one that does not fit the context."""
    begin, turns = file.begin[:-1], np.diff(file.begin)
    if context is None:
        return begin, turns
    beyond = np.append(np.flatnonzero(prompt.astype(np.int64) + output > context), prompt.size)
    ends = beyond[np.searchsorted(beyond, begin)]
    turns = np.minimum(turns, ends - begin)
    return (begin, turns) if turns.any() else (begin[:0], turns[:0])


def _sent(recorded: RecordedSessions) -> Bools:
    """Which of the file's turns are sent, shape (t,)."""
    change = np.zeros(recorded.prompt.size + 1, np.int64)
    np.add.at(change, recorded.begin, 1)
    np.add.at(change, recorded.begin + recorded.turns, -1)
    return np.cumsum(change)[:-1] > 0


def _of_texts(file: SessionFile, prompt: Int32s) -> Int32s:
    before = np.zeros_like(prompt)
    before[1:] = prompt[:-1]
    before[~file.extends] = 0
    return before


def _of_blocks(file: SessionFile) -> tuple[Int32s, Int32s]:
    """Tokens at the start of each prompt that an earlier prompt of the file had, and that the turn before it had.

    Requests are taken session by session in the order in which these began: whatever a later turn of one session shares
    with an earlier one of another is counted once, wherever it is sent first.
    """
    block = file.block or 1
    ends, ids, prompts = file.block_ends.tolist(), file.blocks.tolist(), file.prompt.tolist()
    firsts = set(file.begin.tolist())
    seen: dict[int, int] = {}
    """Tokens that are known of each block, by a hash of it and of all before it: a cache has it together with those."""
    shared, own = np.zeros(file.prompt.size, np.int32), np.zeros(file.prompt.size, np.int32)
    before: list[int] = []
    for turn, (start, end) in enumerate(itertools.pairwise(ends)):
        blocks = ids[start:end]
        if turn in firsts:
            before = []
        same = next((at for at, (one, other) in enumerate(zip(blocks, before, strict=False)) if one != other), None)
        common = block * (min(len(blocks), len(before)) if same is None else same)
        own[turn] = min(common, prompts[turn - 1]) if before else 0
        known = chain = 0
        for at, each in enumerate(blocks):
            here = min(block, prompts[turn] - block * at)
            if here <= 0:
                break
            chain = hash((chain, each))
            there = seen.get(chain, 0)
            if known == block * at:
                known += min(here, there)
            if here > there:
                seen[chain] = here
        shared[turn] = known
        before = blocks
    return shared, own


def _described(recorded: RecordedSessions, text: str) -> Sessions:
    """The sessions of a file, as others are declared."""
    later = recorded.think_s[recorded.think_s > 0]
    added = np.maximum(recorded.prompt - recorded.own, 1).astype(np.int32)
    return Sessions(
        turns=described(recorded.turns.astype(np.int32)),
        think_s=float(later.mean()) if later.size else 0.0,
        think_cv=0.0,
        new=described(added),
        first=None,
        context=recorded.context,
        text=text,
        recorded=recorded,
    )


def implied_hit_rate(recorded: RecordedSessions) -> float:
    """Share of the prompt tokens of the file that an earlier request of it had, in a cache that forgets nothing."""
    rows = _sent(recorded)
    return float(recorded.shared[rows].sum() / recorded.prompt[rows].sum())
