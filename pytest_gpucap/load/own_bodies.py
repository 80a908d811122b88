"""Request bodies from prompts of the user's own: made once, and shared by all workers.

A body is everything up to the number of output tokens, which is put behind it when the request is sent. All of them
together are one block of memory that the workers map, so a file is in memory once, whatever the number of workers.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from typing import Any, Final, Self

import numpy as np

from pytest_gpucap.load.adapters import AdapterDraw, draw_of
from pytest_gpucap.load.prompt_lengths import rows_of
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.request_fields import answer_fields
from pytest_gpucap.load.shared_memory import shared_bytes
from pytest_gpucap.requirement import ApiKind, Workload
from pytest_gpucap.workloads.prompt_file import FilePrompt, PromptFile, read_prompts

_OFFSET: Final = np.dtype(np.int64)


def file_of(workload: Workload) -> PromptFile:
    """The file of a workload with prompts of its own.

    Raises:
        RequirementError: as `read_prompts`.
        LoadError: if it holds something else than when the session began.
    """
    assert workload.prompts is not None  # noqa: S101 - what callers know
    file = read_prompts(workload.prompts.path)
    if file.sha256 != workload.prompts.sha256:
        raise LoadError(f"{file.path}: the prompts have changed since the session began: run it again")
    return file


def prompt_fields(prompt: FilePrompt, workload: Workload) -> dict[str, Any]:
    """What the request of a prompt has: its messages or its text, and what else its line says."""
    fields: dict[str, Any] = json.loads(prompt.body)
    if workload.endpoint is ApiKind.CHAT and not prompt.whole:
        fields["messages"] = workload.wording.messages(fields.pop("prompt"))
    return fields


def request_fields(prompt: FilePrompt, workload: Workload, model: str) -> dict[str, Any]:
    """The body of a request, but for the number of output tokens. What its line says comes before the workload."""
    return {"model": model, **_fields(prompt, workload)}


def _fields(prompt: FilePrompt, workload: Workload) -> dict[str, Any]:
    return {**workload.sampling, **workload.extra_body, **prompt_fields(prompt, workload)}


def _head(prompt: FilePrompt, workload: Workload) -> bytes:
    """A body from behind its model to the number of output tokens."""
    body = _fields(prompt, workload) | answer_fields(
        workload.endpoint, {}, workload.dialect, stream=workload.stream, ignore_eos=workload.ignore_eos
    )
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))[1:-1].encode() + b',"max_tokens":'


def opening(model: str) -> bytes:
    """How the body of a request for a model begins."""
    return json.dumps({"model": model}, ensure_ascii=False, separators=(",", ":"))[:-1].encode() + b","


class OwnBodies:
    """Composes the bodies of requests from memory that all workers share; see `BodyComposer`.

    Args:
        memory: the offsets of all bodies and of their end, 64 bits each, and then the bodies.
        count: how many there are.
        order: see `OwnPrompts`.
        model: that requests without an adapter name.
        draw: of the adapters that requests name; None: there are none.
        cached_apart: see `OwnPrompts`.
    """

    personal = True

    def __init__(
        self, memory: mmap.mmap, count: int, order: int, model: str, draw: AdapterDraw | None, *, cached_apart: bool
    ) -> None:
        self._memory, self._count, self._order = memory, count, order
        self._draw = draw
        self._openings = [opening(each) for each in ([model] if draw is None else draw.models(model))]
        self._starts: list[int] = np.frombuffer(memory, _OFFSET, count + 1).tolist()
        self._rows: list[int] = []
        self._round = -1
        self.cached_apart = cached_apart

    @classmethod
    def attach(cls, fd: int, told: Mapping[str, Any]) -> Self:
        """The bodies behind a descriptor, which is closed, as `shared_bodies` describes them."""
        try:
            memory = mmap.mmap(fd, told["size"], prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        draw = draw_of(told["adapters"], told["seed"])
        return cls(memory, told["count"], told["order"], told["model"], draw, cached_apart=told["cached_apart"])

    def body(self, number: int, prompt_tokens: int, output_tokens: int, left: int = 0) -> bytes:  # noqa: ARG002 - as long as it is
        """The body of request `number`."""
        turn, place = divmod(number, self._count)
        if turn != self._round:
            self._round = turn
            self._rows = rows_of(turn * self._count, self._count, self._count, self._order).tolist()
        row = self._rows[place]
        beginning = self._openings[0 if self._draw is None else self._draw.of(number)]
        return b"%b%b%d}" % (beginning, self._memory[self._starts[row] : self._starts[row + 1]], output_tokens)


def shared_bodies(workload: Workload, model: str, seed: int) -> tuple[int, dict[str, Any]]:
    """Shared memory with the bodies of all prompts, and what a worker must know of it.

    Args:
        workload: with prompts.
        model: the server's.
        seed: of the measurement.

    Returns:
        A descriptor, which the caller closes, and plain values for `OwnBodies.attach`.

    Raises:
        LoadError: as `file_of`.
    """
    prompts = workload.prompts
    assert prompts is not None  # noqa: S101 - what callers know
    heads = [_head(each, workload) for each in file_of(workload).prompts]
    first = _OFFSET.itemsize * (len(heads) + 1)
    starts = np.cumsum([first, *map(len, heads)]).astype(_OFFSET)
    block = starts.tobytes() + b"".join(heads)
    about = {
        "size": len(block),
        "count": len(heads),
        "order": prompts.order,
        "model": model,
        "adapters": dict(workload.adapters),
        "seed": seed,
        "cached_apart": prompts.cached_apart,
    }
    return shared_bytes(block), about
