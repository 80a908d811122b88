"""Brings documents of earlier versions, and of earlier builds of this version, to the form that is read today.

One step a schema version: ``STEPS[n]`` makes a document of version n one of version n + 1, and knows nothing of later
ones. What a build added without a new version (the version goes up only when a reader of the old form would misread the
new one) is filled in by `_complete`, so that readers find every key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pytest_gpucap.vllm_arguments import recorded_command

Document = dict[str, Any]

FIRST_VERSION: Final = 1
STEPS: Final[Mapping[int, Callable[[Document], Document]]] = {}
"""From a version to the next. Version 1 is the first; version 2 brings ``STEPS[1]``."""

_DRIVER_AND_CUDA: Final = re.compile(r"(?P<driver>[\d.]+) \(CUDA (?P<cuda>[\d.]+)\)")
_SIMULATED: Final = re.compile(r"SIMULATED \((?P<profile>.+)\)")
_FILLED: Final = ("limit", "no_limit", "accuracy", "comparison", "series")
"""Keys of a result that early builds of version 1 did not write."""


def current(
    content: Document, version: int, steps: Mapping[int, Callable[[Document], Document]] | None = None
) -> Document:
    """The document in the form of schema version `version`; the one given is not changed.

    Raises:
        ValueError: if its own version has no step: it is older than the first, or no version.
    """
    steps = STEPS if steps is None else steps
    found = content["schema_version"]
    while found < version:
        if found not in steps:
            raise ValueError(f"schema version {found!r} was never written by any pytest-gpucap")
        found += 1
        content = {**steps[found - 1](content), "schema_version": found}
    return _complete(content)


def _complete(content: Document) -> Document:
    """A document of this version with every key that its readers know."""
    return {**content, "results": [_completed(record) for record in content["results"]]}


def _completed(record: Document) -> Document:
    environment = dict(record["environment"])
    if match := _DRIVER_AND_CUDA.fullmatch(str(environment.get("driver") or "")):
        environment |= match.groupdict()
    if "gpu_class" not in environment and (match := _SIMULATED.fullmatch(str(environment.get("gpu") or ""))):
        environment["gpu_class"] = f"sim:{match['profile']}"
    if "server_args" not in environment and (command := environment.get("command")):
        environment["server_args"] = arguments_of(command)
    return {**dict.fromkeys(_FILLED), **record, "environment": environment}


def arguments_of(command: str) -> dict[str, Any] | None:
    """The arguments that a test gave a vLLM server, from its command line; None if that is no vLLM's.

    ``--max-model-len 4096`` is ``{"max_model_len": "4096"}``, ``--enforce-eager`` True, ``--no-enforce-eager`` False.
    """
    return recorded_command(command)
