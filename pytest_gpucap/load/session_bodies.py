"""Request bodies of recorded sessions, from memory that all workers share.

A turn's messages are a piece of the session's text, so all turns of a session are in memory once. A prompt that is made
of blocks has the same units for the same block: a server with a prefix cache finds in it what the recorded one found.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np

from pytest_gpucap.arrays import Ints
from pytest_gpucap.load.hashing import hash64
from pytest_gpucap.load.own_bodies import opening
from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.request_fields import answer_fields
from pytest_gpucap.load.shared_memory import shared_bytes
from pytest_gpucap.requirement import RecordedSessions, Workload
from pytest_gpucap.user_files import MIB
from pytest_gpucap.workloads.session_file import SessionFile, read_sessions

_MOST_CACHED: Final = 64 * MIB
"""Bytes of blocks that a worker keeps made: a turn has most of its blocks in common with the turn before it."""
_MASK: Final = 2**64 - 1
_HEAD: Final = b'"messages":['


def session_file_of(recorded: RecordedSessions) -> SessionFile:
    """The file of recorded sessions.

    Raises:
        RequirementError: as `read_sessions`.
        LoadError: if it holds something else than when the session began.
    """
    file = read_sessions(recorded.path, recorded.usual_output, recorded.block)
    if file.sha256 != recorded.file_sha256:
        raise LoadError(f"{file.path}: the sessions have changed since the session began: run it again")
    return file


class _Memory:
    """Shared memory that begins with arrays of whole numbers."""

    def __init__(self, fd: int, told: Mapping[str, Any]) -> None:
        try:
            self._memory = mmap.mmap(fd, told["size"], prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        ends = np.cumsum(told["counts"])
        numbers = np.frombuffer(self._memory, np.int64, int(ends[-1]))
        self.arrays: list[Ints] = np.split(numbers, ends[:-1])
        self._text = 8 * int(ends[-1])

    def text(self, begin: int, end: int) -> bytes:
        """A piece of what stands behind the arrays."""
        return self._memory[self._text + begin : self._text + end]


def _shared(arrays: list[Ints], text: bytes) -> tuple[int, dict[str, Any]]:
    block = b"".join(np.ascontiguousarray(each, np.int64).tobytes() for each in arrays) + text
    return shared_bytes(block), {"size": len(block), "counts": [each.size for each in arrays]}


def shared_sessions(workload: Workload, model: str) -> tuple[int, dict[str, Any]]:
    """Shared memory with what all turns of recorded sessions send, and what a worker must know of it.

    Args:
        workload: with recorded sessions.
        model: the server's.

    Returns:
        A descriptor, which the caller closes, and plain values for `SessionBodies.attach` or `BlockBodies.attach`.

    Raises:
        LoadError: as `session_file_of`.
    """
    recorded = workload.recorded
    assert recorded is not None  # noqa: S101 - what callers know
    file = session_file_of(recorded)
    if not file.personal:
        fd, about = _shared([recorded.begin, recorded.turns, file.block_ends, file.blocks], b"")
        return fd, {**about, "block": file.block}
    fd, about = _shared([recorded.begin, recorded.turns, file.span.ravel()], file.text)
    fields = {**workload.sampling, **workload.extra_body} | answer_fields(
        workload.endpoint, {}, workload.dialect, stream=workload.stream, ignore_eos=workload.ignore_eos
    )
    return fd, {**about, "block": None, "model": model, "fields": fields, "cached_apart": recorded.cached_apart}


class SessionBodies:
    """Composes the bodies of turns that are texts of the user's own; see `BodyComposer`."""

    personal = True

    def __init__(self, memory: _Memory, model: str, fields: Mapping[str, Any], *, cached_apart: bool) -> None:
        begin, turns, span = memory.arrays
        self._memory, self._begin, self._turns, self._span = memory, begin, turns, span.reshape(-1, 2)
        self.cached_apart = cached_apart
        self._opening = opening(model) + _HEAD
        rest = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))[1:-1].encode()
        self._closing = b"]," + (rest + b"," if rest else b"") + b'"max_tokens":'

    @classmethod
    def attach(cls, fd: int, told: Mapping[str, Any]) -> Self:
        """The bodies behind a descriptor, which is closed, as `shared_sessions` describes them."""
        return cls(_Memory(fd, told), told["model"], told["fields"], cached_apart=told["cached_apart"])

    def body(self, number: int, prompt_tokens: int, output_tokens: int, left: int = 0) -> bytes:  # noqa: ARG002 - as long as it is
        """The body of the turn of session `number` after which so many are left."""
        place = number % self._begin.size
        row = int(self._begin[place] + self._turns[place]) - 1 - left
        begin, end = self._span[row].tolist()
        return b"%b%b%b%d}" % (self._opening, self._memory.text(begin, end), self._closing, output_tokens)


class BlockBodies(RequestComposer):
    """Composes the bodies of turns whose prompts are made of blocks; see `BodyComposer`.

    The units of a block depend on the block and on the round through the file: what is sent in another round shares
    nothing with it. A prompt with fewer blocks than it has tokens ends with units of its own.
    """

    def __init__(self, recipe: PromptRecipe, memory: _Memory, block: int) -> None:
        super().__init__(recipe)
        self._begin, self._turns, self._ends, self._ids = memory.arrays
        self._memory, self._block = memory, block
        self._made: dict[int, bytes] = {}
        self._made_bytes = 0

    @classmethod
    def attach(cls, recipe: PromptRecipe, fd: int, told: Mapping[str, Any]) -> Self:
        """The bodies behind a descriptor, which is closed, as `shared_sessions` describes them."""
        return cls(recipe, _Memory(fd, told), told["block"])

    def body(self, number: int, prompt_tokens: int, output_tokens: int, left: int = 0) -> bytes:
        """The body of the turn of session `number` after which so many are left.

        Raises:
            LoadError: as `PromptRecipe.check`.
        """
        self.recipe.check(prompt_tokens)
        count = self._begin.size
        place, apart = number % count, hash64(number // count)
        row = int(self._begin[place] + self._turns[place]) - 1 - left
        ids = self._ids[self._ends[row] : self._ends[row + 1]].tolist()
        units, block = prompt_tokens - self._taken, self._block
        parts = [self._whole(hash64((each & _MASK) ^ apart)) for each in ids[: units // block]]
        rest = units - block * len(parts)
        if rest:
            inside = len(parts) < len(ids)
            key = hash64((ids[len(parts)] & _MASK) ^ apart) if inside else hash64(number ^ hash64(left))
            parts.append(self._units_of(key, rest))
        text = self._shared_text + b"".join(parts)
        return self.around(text[1:] if self.recipe.as_ids else text, output_tokens)

    def _whole(self, key: int) -> bytes:
        """All units of a block."""
        found = self._made.get(key)
        if found is None:
            if self._made_bytes > _MOST_CACHED:
                self._made.clear()
                self._made_bytes = 0
            found = self._made[key] = self._units_of(key, self._block)
            self._made_bytes += len(found) + 150  # what an entry takes beside
        return found

    def _units_of(self, key: int, units: int) -> bytes:
        """So many units; those of fewer are the beginning of those of more."""
        digits = min(self._digits, units)
        return self._number(key, digits) + self._filler(hash64(key ^ self._key), units - digits)
