"""The server that a test's markers name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from pytest_gpucap.engines.protocol import Engine
from pytest_gpucap.engines.shipped import COMMAND, SHIPPED, commanded, shipped
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.errors import told
from pytest_gpucap.markers.declaration import VLLM, Declaration
from pytest_gpucap.markers.marks import given_keywords
from pytest_gpucap.options.table import Options
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.vllm_arguments import VllmArguments


class DeclaredServer(NamedTuple):
    """The server that a test's markers name.

    Attributes:
        engine: the name of the engine that starts it.
        model: None when no marker and no option names one.
        arguments: every other keyword of the ``vllm`` or ``engine`` markers.
    """

    engine: str
    model: str | None
    arguments: Mapping[str, Any]

    def of(self, declared: Declaration) -> Declaration:
        """The declaration of a test with this server in place of its own."""
        return replace(
            declared,
            engine=self.engine,
            model=self.model,
            arguments=self.arguments,
            vllm_args=VllmArguments(self.arguments if self.engine == VLLM else {}),
        )


def declared_server(item: pytest.Item, options: Options) -> DeclaredServer:
    """The server of a test: its markers laid over the session's model.

    Raises:
        RequirementError: one line, the mistake and the fix.
    """
    engine, model, arguments = _engine(item)
    model = model or options.model
    if model is not None and not isinstance(model, str | os.PathLike):
        raise RequirementError(f"model must be a name or a path, not {told(model)}")
    return DeclaredServer(engine, None if model is None else str(model), arguments)


def engine_type(name: str, options: Options, arguments: Mapping[str, Any]) -> type[Engine]:
    """The engine of a name: a plugin's, one that comes with this one, or any that ``command=`` describes.

    Raises:
        RequirementError: if there is none; the message offers similar names.
    """
    own = options.extensions.engines
    found = VllmEngine if name == VLLM else own.get(name) or shipped(name)
    if found is not None:
        return found
    if COMMAND in arguments:
        return commanded(name)
    from difflib import get_close_matches

    known = [VLLM, *own, *(each for each in SHIPPED if each not in own)]
    near = get_close_matches(name, known, n=2, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise RequirementError(
        f"engine({told(name)}): there is no such engine; {offer}; any other server is started by command="
    )


def _engine(item: pytest.Item) -> tuple[str, Any, Mapping[str, Any]]:
    """Name, model and arguments of the test's engine, from its ``engine`` markers or from ``vllm``, their shorthand.

    The closest marker wins, argument by argument. Markers of engines other than the closest one are ignored.
    """
    vllm, engines = (
        list(given_keywords(item, "vllm", positional="model")),
        list(given_keywords(item, "engine", positional="name")),
    )
    if vllm and engines:
        raise RequirementError('vllm(...) is short for engine("vllm", ...): mark a test with one of the two')
    if not engines:
        return VLLM, *_merged_vllm(vllm)
    name = None
    since: list[dict[str, Any]] = []
    for keywords in engines:
        named = keywords.pop("name", name)
        if not isinstance(named, str):
            raise RequirementError('engine(...) needs the name of an engine: engine("vllm", model=..., ...)')
        since = [*since, keywords] if named == name else [keywords]
        name = named
    assert name is not None  # noqa: S101 - there is a marker, and each has a name
    if name == VLLM:
        return VLLM, *_merged_vllm(since)
    merged = {key: value for keywords in since for key, value in keywords.items()}
    return name, merged.pop("model", None), merged


def _merged_vllm(marks: Sequence[dict[str, Any]]) -> tuple[Any, Mapping[str, Any]]:
    """Model and arguments; the closest marker wins, however it spells an argument."""
    model, arguments = None, VllmArguments()
    for keywords in marks:
        model = keywords.pop("model", model)
        arguments = arguments.overlaid(VllmArguments(keywords))
    return model, arguments.values
