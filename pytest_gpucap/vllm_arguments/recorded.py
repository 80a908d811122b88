"""Arguments that a file or a command line already holds: read, and never refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from pytest_gpucap.vllm_arguments.spelling import OWNED, long_name, spelled, split_words

_STARTS: Final = re.compile(
    r"\bvllm_serve\.py\b|(?:\bvllm|-m vllm\.entrypoints\.cli\.main) serve\b|-m vllm\.entrypoints\.openai\.api_server\b"
)
"""What stands before the arguments on the command line of a vLLM server."""


def recorded(arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments of a result file by their long names; the last of several spellings counts. Refuses nothing."""
    found: dict[str, object] = {}
    for spelling, value in arguments.items():
        name, switched = long_name(spelling, value)
        found.pop(name, None)
        found[name] = switched
    return found


def recorded_command(command: str) -> dict[str, object] | None:
    """The arguments that a test gave a vLLM server, from the command line that started it; None if that is no vLLM's.

    ``--max-model-len 4096`` is ``{"max_model_len": "4096"}``, ``--enforce-eager`` True, ``--no-enforce-eager`` False.
    Several values are a list. Arguments that we own are left out.

    Raises:
        ValueError: for an unclosed quote, or a text that is too long for a command line.
    """
    start = _STARTS.search(command)
    if start is None:
        return None
    words = split_words(command[start.end() :])
    given = {spelling: value for spelling, value, _ in spelled(words, strict=False)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in recorded(given).items()
        if name not in OWNED
    }
