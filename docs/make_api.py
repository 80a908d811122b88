"""Writes ``api.md`` from the public names of the package and their docstrings: ``python docs/make_api.py``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest_gpucap
from docs.docstrings import attributes, cell, docstring, members, methods, signature, unit

HEAD = """\
# Python API

Every name that a test, a plugin or a script may import from `pytest_gpucap`, made from the docstrings. Everything else
in the package is private ([policy](policy.md#what-is-public)). What the fixtures do is in [Fixtures](fixtures.md).

Names carry their unit: `_s` is seconds, `_rps` requests a second. A rate is that of one replica unless its text says
otherwise. `Figure`, `LowEnd` and `HighEnd` are floats; `Number` is an int, a float, a fraction, a decimal or a text.

```python
from pytest_gpucap import GpuCap, Outcome


def test_there_is_room(gpucap: GpuCap) -> None:
    verdict = gpucap.check()
    assert verdict.outcome is Outcome.PASS
    assert verdict.slack is not None and verdict.slack.low > 0.1
```
"""

GROUPS: Final = {
    "What a fixture gives": (
        "session.gpucap",
        "session.server_manager",
        "gpu.lease",
        "gpu.device",
        "telemetry.sampler",
    ),
    "What a measurement found": ("results.measured", "results.windows", "results.problems"),
    "What is declared": ("requirement", "gpu.classes"),
    "The result file": ("results.result",),
    "Results on disk": ("on_disk", "results.trend"),
    "Servers and engines": (
        *("engines.protocol", "engines.server", "engines.program", "engines.launch", "engines.prometheus"),
        "api_dialect",
    ),
}
"""Title of a part of the page -> the modules whose names are there, in this order. Errors have a part of their own."""


def names() -> Iterator[tuple[str, list[str]]]:
    """The parts of the page, each with its names. Every public name is in one of them."""
    by_module = {
        module: [name for name in found if not _is_error(name)]
        for module, found in pytest_gpucap._NAMES_BY_MODULE.items()  # noqa: SLF001 - the list that __all__ is checked against
    }
    for title, modules in GROUPS.items():
        yield title, [name for module in modules for name in by_module.pop(module)]
    left = [name for found in by_module.values() for name in found]
    if left:
        raise LookupError(f"docs/make_api.py has no part for {', '.join(left)}")
    yield "Errors", [name for name in pytest_gpucap.__all__ if _is_error(name)]


def _is_error(name: str) -> bool:
    found = getattr(pytest_gpucap, name)
    return inspect.isclass(found) and issubclass(found, BaseException)


def section(name: str) -> str:
    """What the page says of one name."""
    found = getattr(pytest_gpucap, name)
    said = docstring(found)
    if not inspect.isclass(found):
        return (
            f"### {name}\n\n```text\n{name}{signature(found)}\n```\n\n{said.about}\n\n"
            f"{said.lists('Args', 'Returns', 'Raises')}"
        )
    bases = [base.__name__ for base in found.__bases__ if base.__name__ in pytest_gpucap.__all__]
    a_kind = f"A kind of {', '.join(f'[`{base}`](#{base.lower()})' for base in bases)}.\n\n" if bases else ""
    explained = f"[What to do](when-it-fails.md#error-{name.lower()}).\n\n" if _is_error(name) else ""
    about = f"### {name}\n\n{said.about}\n\n{a_kind}{explained}"
    return about + (_members(found) if issubclass(found, Enum) else _attributes(found) + _methods(found))


def _members(found: type[Enum]) -> str:
    rows = "".join(f"| `{name}` | `{value}` | {cell(about)} |\n" for name, value, about in members(found))
    return f"| member | value | |\n| --- | --- | --- |\n{rows}\n"


def _attributes(found: type) -> str:
    rows = ""
    shown_elsewhere = [base for base in found.__mro__[1:] if base.__name__ in pytest_gpucap.__all__]
    for each in attributes(found, shown_elsewhere):
        default = f"`{each.default}`" if each.default else ""
        kind = f"`{each.kind}`" if each.kind else ""
        rows += f"| `{each.name}` | {' | '.join(map(cell, (kind, unit(each.name), default, each.about)))} |\n"
    return f"| attribute | type | unit | default | |\n| --- | --- | --- | --- | --- |\n{rows}\n" if rows else ""


def _methods(found: type) -> str:
    rows = "".join(f"| {_row(written, said)} |\n" for _, written, said in methods(found))
    return f"| method or property | |\n| --- | --- |\n{rows}\n" if rows else ""


def _row(written: str, said: Any) -> str:
    more = [f"`{name}`: {text}" for name, text in said.sections.get("Args", {}).items()]
    more += [f"Returns {text[:1].lower()}{text[1:]}" for text in said.sections.get("Returns", {}).values()]
    more += [f"Raises `{name}` {text}" for name, text in said.sections.get("Raises", {}).items()]
    about = " ".join([said.about.replace("\n\n", " "), *(each.rstrip(".") + "." for each in more)])
    return f"`{cell(written)}` | {cell(about)}"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, found in names():
        parts.append(f"\n## {title}\n\n" + "".join(map(section, found)).rstrip("\n") + "\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
