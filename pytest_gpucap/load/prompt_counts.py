"""Counts the tokens of the user's own prompts: the server does, before the load.

vLLM's ``/tokenize`` counts without any work for the GPU. The usage of a few real requests verifies it. Where there is
no such thing, or it counts otherwise, lengths are estimated from those requests, and the usage of each answer of the
load tells the true ones.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.calibrate import LEAST_SAME, count_alike
from pytest_gpucap.load.own_bodies import file_of, prompt_fields, request_fields
from pytest_gpucap.load.prompt_lengths import rows_of, with_lengths
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.load.request_fields import OPENER
from pytest_gpucap.load.session_bodies import session_file_of
from pytest_gpucap.load.token_probe import TEMPLATED, TokenProbe
from pytest_gpucap.requirement import MOST_TOKENS, ApiKind, RecordedSessions, Workload
from pytest_gpucap.workloads.prompt_file import FilePrompt
from pytest_gpucap.workloads.recorded import with_lengths as with_turn_lengths
from pytest_gpucap.workloads.session_file import SessionFile

MOST_COUNTED: Final = 10_000
"""Prompts that the server counts before the load: those that are sent first. The others are estimated from them."""
AT_ONCE: Final = 8
"""Counts that the server is asked for together."""
VERIFIED: Final = 3
PROBED: Final = 24
"""Real requests that verify counts, and from which lengths are estimated; of the prompts that are sent last."""
SESSIONS_AT_ONCE: Final = 1000
"""Of this many sessions all turns are counted before any of the next: shorter ones before longer ones."""
_LEAST_POINTS: Final = 3
"""For a line through lengths."""


def counted(server: ServerAddress, model: str, workload: Workload) -> Workload:
    """The workload with the lengths of its prompts as the server counts them.

    Raises:
        LoadError: if the server does not answer, refuses a prompt, or counts the same prompt differently; names the
            prompt's place and not its text.
    """
    if workload.recorded is not None:
        return _counted_turns(server, model, workload, workload.recorded)
    prompts = workload.prompts
    assert prompts is not None  # noqa: S101 - what callers know
    file = file_of(workload)
    probe = _probe(server, model, workload)
    order = rows_of(0, prompts.count, prompts.count, prompts.order).tolist()
    first = [file.prompts[row] for row in order[:MOST_COUNTED]]
    found = _tokenized(probe, first, workload, model)
    inputs = np.zeros(prompts.count, np.int64)
    if found is None:
        last = [file.prompts[row] for row in order[-PROBED:]]
        used = [_used(probe, each, workload, model) for each in last]
        inputs[:] = _estimated([each.characters for each in file.prompts], last, used)
    else:
        inputs[:] = _estimated([each.characters for each in file.prompts], first, found)
        inputs[order[:MOST_COUNTED]] = found
    recorded = [
        each.answer if each.answer is not None and each.output_tokens is None and prompts.declared is None else None
        for each in file.prompts
    ]
    return with_lengths(
        workload,
        file,
        inputs.tolist(),
        _answers(probe, recorded, inputs / np.maximum(1, [each.characters for each in file.prompts])),
        estimated=prompts.count if found is None else max(0, prompts.count - MOST_COUNTED),
        cached_apart=probe.cached_apart,
    )


def _probe(server: ServerAddress, model: str, workload: Workload) -> TokenProbe:
    probe = TokenProbe(server, model, workload)
    # What is wrong with the workload itself shows in a prompt of ours, of which the server may say anything.
    probe.usage(probe.plain_body(OPENER))
    probe.cached_apart = count_alike(probe, secrets.randbits(40), LEAST_SAME)
    return probe


def _counted_turns(server: ServerAddress, model: str, workload: Workload, recorded: RecordedSessions) -> Workload:
    """`counted` of sessions that are texts of the user's own: first turns come first, since those are sent first."""
    file = session_file_of(recorded)
    probe = _probe(server, model, workload)
    within = np.arange(file.output.size) - np.repeat(file.begin[:-1], np.diff(file.begin))
    session = np.repeat(np.arange(file.begin.size - 1), np.diff(file.begin))
    order = np.lexsort((within, session // SESSIONS_AT_ONCE)).tolist()
    inputs = np.zeros(file.output.size, np.int64)
    first = [_turn(file, row) for row in order[:MOST_COUNTED]]
    found = _tokenized(probe, first, workload, model)
    known, tokens = first, found
    if found is None or tokens is None:
        known = [_turn(file, row) for row in order[-PROBED:]]
        tokens = [_used(probe, each, workload, model) for each in known]
    inputs[:] = _estimated(file.characters.tolist(), known, tokens)
    if found is not None:
        inputs[order[:MOST_COUNTED]] = found
    asks = [
        answer if answer is not None and output == 0 and recorded.declared is None else None
        for answer, output in zip(file.answers, file.output.tolist(), strict=True)
    ]
    return with_turn_lengths(
        workload,
        file,
        inputs.tolist(),
        _answers(probe, asks, inputs / np.maximum(1, file.characters)),
        estimated=inputs.size if found is None else max(0, inputs.size - MOST_COUNTED),
        cached_apart=probe.cached_apart,
    )


def _turn(file: SessionFile, row: int) -> FilePrompt:
    """A turn of a session as a prompt of its own."""
    begin, end = file.span[row].tolist()
    body = b'{"messages":[%b]}' % file.text[begin:end]
    return FilePrompt(file.places[row], body.decode(), ApiKind.CHAT, True, None, None, int(file.characters[row]))


def _tokenized(probe: TokenProbe, prompts: Sequence[FilePrompt], workload: Workload, model: str) -> list[int] | None:
    """Tokens of each prompt by ``/tokenize``; None where it is not there, or does not count as usage does."""
    if not probe.has_tokenize and not probe.tokenizes():
        return None
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gpucap-count") as threads:
        found = list(threads.map(lambda each: probe.tokenized(_templated(each, workload)), prompts))
    for prompt, count in zip(prompts, found, strict=True):
        if not count:
            raise LoadError(f"{prompt.place}: the server does not count this prompt: does its chat template take it?")
    whole = [count or 0 for count in found]
    last = range(max(0, len(prompts) - VERIFIED), len(prompts))
    return whole if all(_used(probe, prompts[at], workload, model) == whole[at] for at in last) else None


def _templated(prompt: FilePrompt, workload: Workload) -> Mapping[str, Any]:
    fields = prompt_fields(prompt, workload)
    if workload.endpoint is not ApiKind.CHAT:
        return {"prompt": fields["prompt"]}
    return {name: fields[name] for name in ("messages", *TEMPLATED) if name in fields}


def _used(probe: TokenProbe, prompt: FilePrompt, workload: Workload, model: str) -> int:
    """Tokens of a prompt by the usage of a real request for one token."""
    body = json.dumps(request_fields(prompt, workload, model) | {"max_tokens": 1}).encode()
    found = probe.try_usage(body, personal=True)
    if isinstance(found, str):
        raise LoadError(f"{prompt.place}: {found}")
    return found


def _estimated(characters: Sequence[int], known: Sequence[FilePrompt], tokens: Sequence[int]) -> Ints:
    """Tokens of prompts of so many characters, shape (n,), on the line through those that are known."""
    lengths = np.array([each.characters for each in known], np.float64)
    counts, wanted = np.array(tokens, np.float64), np.array(characters, np.float64)
    slope = counts.sum() / max(lengths.sum(), 1.0)
    start = 0.0
    if len(known) >= _LEAST_POINTS and np.ptp(lengths) > 0:
        fitted, at_zero = np.polyfit(lengths, counts, 1)
        if fitted > 0 and at_zero >= 0:
            slope, start = fitted, at_zero
    found: Ints = np.clip(np.rint(start + slope * wanted), 1, MOST_TOKENS).astype(np.int64)
    return found


def _answers(probe: TokenProbe, recorded: Sequence[str | None], per_character: Floats) -> list[int]:
    """Tokens of each recorded answer; 0 where there is none. Estimated like prompts where the server does not count."""
    ratio = float(np.median(per_character))
    left = MOST_COUNTED if probe.has_tokenize else 0

    def count(answer: str | None, *, asks: bool) -> int:
        if answer is None:
            return 0
        told = probe.tokenized({"prompt": answer, "add_special_tokens": False}) if asks else None
        return min(told or max(1, round(ratio * len(answer))), MOST_TOKENS)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gpucap-count") as threads:
        asked = [at < left for at in range(len(recorded))]
        return list(threads.map(lambda each, asks: count(each, asks=asks), recorded, asked))
