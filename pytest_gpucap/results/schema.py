"""The JSON Schema of the result file, generated: ``python -m pytest_gpucap.results.schema`` writes it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_gpucap.results import (
    comparison,
    environment,
    failures,
    measured,
    problems,
    reasoning,
    result,
    telemetry,
    windows,
)
from pytest_gpucap.results.result import SCHEMA_VERSION, ResultFile
from pytest_gpucap.results.whole_file import write_text

PATH: Final = Path(__file__).with_name("result.schema.json")
_MODULES: Final = (comparison, environment, failures, measured, problems, reasoning, result, telemetry, windows)
_TITLE: Final = "Result file of pytest-gpucap"
_ABOUT: Final = (
    "One document per session. Times are seconds, rates requests per second of one replica, sizes tokens. "
    "null: unknown or not finite."
)


def schema() -> dict[str, Any]:
    """The schema (JSON Schema 2020-12), with descriptions from the docstrings."""
    found = msgspec.json.schema(ResultFile, schema_hook=lambda _: {"type": ["number", "null"]})
    parts = found["$defs"]
    _same_everywhere(parts)
    for module in _MODULES:
        for name, kind in vars(module).items():
            if name in parts and inspect.isclass(kind) and kind.__module__ == module.__name__:
                _describe(parts[name], inspect.getdoc(kind) or "")
    parts["ResultFile"]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _TITLE,
        "description": _ABOUT,
        **found,
    }


def _same_everywhere(found: Any) -> None:
    """Take out of a schema what differs between versions of Python and msgspec, in place."""
    for each in found if isinstance(found, list) else found.values():
        if isinstance(each, dict | list):
            _same_everywhere(each)
    if isinstance(found, dict):
        found.pop("propertyNames", None)  # names of a mapping that are of an enumeration: msgspec tells them since 0.23
        if isinstance(found.get("description"), str):  # docstrings have no indentation of their own since Python 3.13
            found["description"] = inspect.cleandoc(found["description"])


_FIELD: Final = re.compile(r"^ {4}(?P<names>[\w, ]+): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def _describe(part: dict[str, Any], text: str) -> None:
    """Give a part of the schema, and its fields, what a docstring says of them."""
    about, _, attributes = text.partition("\nAttributes:\n")
    part["description"] = " ".join(about.split())
    for match in _FIELD.finditer(attributes):
        for name in match["names"].split(", "):
            if name in part.get("properties", {}):
                field = part["properties"][name]
                field["description"] = " ".join(match["text"].split())


def rendered() -> str:
    """The content of the schema's file."""
    return f"{json.dumps(schema(), indent=2)}\n"


if __name__ == "__main__":
    write_text(PATH, rendered())
