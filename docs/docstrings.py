"""Docstrings of the package as Markdown, for the pages of the reference that are made from the code (``make_*.py``)."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

_SECTION: Final = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)
_ENTRY: Final = re.compile(r"^(?P<names>[\w., *]+): (?P<text>.*(?:\n {4}.*)*)", re.MULTILINE)
_TICKS: Final = re.compile(r"(`[^`]*`)")
_ANNOTATION: Final = re.compile(r"(: |-> )'([^']*)'")
_UNITS: Final[Mapping[str, str]] = {
    "tokens_per_s": "tokens/s",
    "bytes_per_s": "bytes/s",
    "rps": "req/s",
    "s": "s",
    "mhz": "MHz",
    "w": "W",
    "c": "°C",
    "bytes": "bytes",
    "tokens": "tokens",
    "flops": "FLOP/s",
}
"""What the end of a name says of the unit, the longest first."""


@dataclass(frozen=True)
class Docstring:
    """A docstring in its parts.

    Attributes:
        about: the text before the first section, as Markdown.
        sections: by name (``Args``, ``Attributes``, ``Returns``, ``Raises``), what it says of each name. Of ``Returns``
            the only name is empty.
    """

    about: str
    sections: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def lists(self, *names: str) -> str:
        """The sections of these names as Markdown lists; empty where there are none."""
        parts = []
        for name in names:
            entries = self.sections.get(name)
            if entries and "" in entries:
                parts.append(f"{name}: {entries['']}\n\n")
            elif entries:
                rows = "".join(f"- `{each}`: {text}\n" for each, text in entries.items())
                parts.append(f"{name}:\n\n{rows}\n")
        return "".join(parts)


@dataclass(frozen=True)
class Attribute:
    """A field of a class: its name, its type and its default as they are written, and what is said of it."""

    name: str
    kind: str
    default: str
    about: str


def docstring(of: Any) -> Docstring:
    """The docstring of a class or a function, in its parts."""
    text = f"{inspect.getdoc(of) or ''}\n"
    sections: dict[str, dict[str, str]] = {}
    for match in _SECTION.finditer(text):
        body = textwrap.dedent(match[2])
        entries = {
            name: markdown(entry["text"]) for entry in _ENTRY.finditer(body) for name in entry["names"].split(", ")
        }
        sections[match[1]] = {"": markdown(body)} if match[1] == "Returns" else entries
    about = _SECTION.split(text)[0]
    return Docstring("\n\n".join(markdown(part) for part in about.strip().split("\n\n")), sections)


def markdown(text: str) -> str:
    """One paragraph of a docstring, on one line: code in single backticks, and nothing that is HTML."""
    line = " ".join(text.replace("``", "`").split())
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in _TICKS.split(line)
    )


def cell(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", "\\|")


def attributes(of: type, apart_from: Collection[type] = ()) -> Iterator[Attribute]:
    """The public fields of a class, those of its bases first, as their source has them.

    What is said of a field stands in the section ``Attributes`` of the class, or in a string below the field.

    Args:
        of: the class.
        apart_from: bases whose fields are left out.
    """
    found: dict[str, Attribute] = {}
    for base in reversed(of.__mro__):
        if not base.__module__.startswith("pytest_gpucap.") or base in apart_from:
            continue
        said = dict(docstring(base).sections.get("Attributes", {}))
        for each, below in _fields(base):
            before = found[each.name].about if each.name in found else ""
            about = said.pop(each.name, "") or below or before
            found[each.name] = Attribute(each.name, each.kind, each.default, about)
        found |= {name: Attribute(name, "", "", text) for name, text in said.items() if name not in found}
    yield from (each for each in found.values() if not each.name.startswith("_") and "ClassVar" not in each.kind)


def _fields(of: type) -> Iterator[tuple[Attribute, str]]:
    """The annotated fields in a class's source, each with the string below it."""
    for node, below in _statements(of):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            default = "" if node.value is None else _default(node.value)
            yield Attribute(node.target.id, ast.unparse(node.annotation), default, ""), below


def members(of: type[Enum]) -> Iterator[tuple[str, str, str]]:
    """The members of an enumeration: name, value, and the string below it."""
    said = {
        target.id: below
        for node, below in _statements(of)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for each in of:
        yield each.name, str(each.value), said.get(each.name, "")


def _statements(of: type) -> Iterator[tuple[ast.stmt, str]]:
    """The statements of a class's source, each with the string below it as Markdown; empty where there is none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    assert isinstance(tree, ast.ClassDef)  # noqa: S101 - it is the source of a class
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield node, markdown(str(after.value.value))
        else:
            yield node, ""


def _default(value: ast.expr) -> str:
    """A default as a reader would write it."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name | ast.Attribute):
        factory = next((each.value for each in value.keywords if each.arg == "default_factory"), None)
        if factory is not None:
            return ast.unparse(factory.body) if isinstance(factory, ast.Lambda) else f"{ast.unparse(factory)}()"
    return ast.unparse(value)


def unit(name: str) -> str:
    """The unit that a name ends with, for people; empty where it ends with none."""
    return next((shown for end, shown in _UNITS.items() if name.endswith(f"_{end}")), "")


def methods(of: type) -> Iterator[tuple[str, str, Docstring]]:
    """The public methods and properties that a class defines itself: name, how it is written, docstring."""
    for name, value in vars(of).items():
        function = _function(value)
        if name.startswith("_") or function is None:
            continue
        is_call = inspect.isfunction(value) or isinstance(value, classmethod | staticmethod)
        yield name, f"{name}{signature(function)}" if is_call else name, docstring(function)


def _function(value: Any) -> Callable[..., Any] | None:
    """The function behind what a class body defines; None where it is no method and no property."""
    found = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", None) or value
    return found if inspect.isfunction(found) else None


def signature(of: Callable[..., Any]) -> str:
    """The arguments and the result of a function as its source has them, without ``self``."""
    found = inspect.signature(of)
    own = [each for each in found.parameters.values() if each.name not in {"self", "cls"}]
    return _ANNOTATION.sub(r"\1\2", str(found.replace(parameters=own)))
