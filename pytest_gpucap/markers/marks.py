"""The markers of a test, as pytest keeps them: merged keyword by keyword, and compared with those of other tests."""

from __future__ import annotations

import marshal
from collections.abc import Hashable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_gpucap.errors import told
from pytest_gpucap.masking import refusal
from pytest_gpucap.requirement import RequirementError

_MARKERS: Final = frozenset({"gpucap", "engine", "vllm", "gpu_class"})
_SERVERS: Final = frozenset({"engine", "vllm"})
_MEASURING: Final = "gpucap"
"""The fixture of a test that measures."""


def measures(item: pytest.Item) -> bool:
    """Whether a test asks for a measurement."""
    return _MEASURING in getattr(item, "fixturenames", ())


def same_declaration(item: pytest.Item) -> Hashable:
    """A key that is equal for tests with equal markers of ours in the same folder (markers name files relative to it).

    Comparing markers is cheaper than reading them, and a suite repeats a few declarations in thousands of tests.
    """
    marks = [mark for mark in item.iter_markers() if mark.name in _MARKERS]
    return measures(item), item.path.parent, *((mark.name, _content(mark.args, mark.kwargs)) for mark in marks)


def _content(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Hashable:
    try:
        # The fastest way for builtins. Version 0 keeps types apart and does not depend on which strings are interned.
        return marshal.dumps((arguments, dict(named)), 0)
    except ValueError:
        pass
    try:
        return _hashable(arguments), _hashable(named)
    except RecursionError:
        return id(named)


def _hashable(value: object) -> Hashable:
    """Equal for equal type and content, so 1, 1.0 and True differ. Values of other types equal only themselves."""
    if isinstance(value, dict):
        return dict, tuple((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_hashable, value))
    return type(value), value if isinstance(value, str | int | float | Fraction | Decimal | Path | None) else id(value)


def closest_first(item: pytest.Item, name: str) -> list[pytest.Mark]:
    """The markers of a name, the closest first: of a parameter, the function, the class, its base classes, the module.

    pytest's own order has a function before its parameters (``pytest.param(..., marks=...)``), and base classes before
    the class that is derived from them.
    """
    found: list[pytest.Mark] = []
    for node in reversed(item.listchain()):
        own = [mark for mark in node.own_markers if mark.name == name]
        if len(own) > 1:
            inner = _of_parameters(node) if node is item else _of_class(node)
            own.sort(key=lambda mark: inner.get(id(mark), len(inner)))
        found += own
    return found


def _of_parameters(item: pytest.Item) -> dict[int, int]:
    """Ranks of the markers of a test's parameters, by id."""
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else {id(mark): rank for rank, mark in enumerate(callspec.marks)}


def _of_class(node: Any) -> dict[int, int]:
    """Ranks of the markers of a class and its base classes, by id: equal for those of one class."""
    found: dict[int, int] = {}
    for rank, each in enumerate(getattr(getattr(node, "obj", None), "__mro__", ())):
        marks = each.__dict__.get("pytestmark", ())
        for mark in marks if isinstance(marks, list | tuple) else (marks,):
            found.setdefault(id(getattr(mark, "mark", mark)), rank)
    return found


def given_keywords(item: pytest.Item, name: str, positional: str | None = None) -> Iterator[dict[str, Any]]:
    """The keywords of each marker of a name, the closest marker last. One positional argument may have a name."""
    for mark in reversed(closest_first(item, name)):
        keywords, arguments = dict(mark.kwargs), list(mark.args)
        if arguments and positional is not None:
            if positional in keywords:
                raise RequirementError(f"{name}(...) names {positional} twice")
            keywords[positional] = arguments.pop(0)
        if name in _SERVERS:
            # First of all, since other messages repeat values.
            for argument, value in [*keywords.items(), *((positional or name, each) for each in arguments)]:
                if why := refusal(argument, value):
                    raise RequirementError(f"{name}: {why}")
        if arguments:
            raise RequirementError(f"{name}({', '.join(map(told, arguments))}) takes keywords only")
        yield keywords


def merged(item: pytest.Item, name: str, positional: str | None = None) -> dict[str, Any]:
    """The keywords of all markers of a name; the closest marker wins."""
    merged: dict[str, Any] = {}
    for keywords in given_keywords(item, name, positional):
        merged |= keywords
    return merged
