"""The documents of a file of another tool: JSON, several in a row (JSON Lines among them), a list of them, or CSV.

The file may be packed with gzip, whatever its name is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.other_tools.fields import Fields
from pytest_gpucap.requirement import RequirementError, exact
from pytest_gpucap.user_files import MIB, MOST_FOREIGN, UserFileError, json_memory, shown_path, unpacked

MOST_MEMORY: Final = 1024 * MIB
"""By `json_memory`."""
MOST_DOCUMENTS: Final = 10_000
"""In one file: more loads than anybody measures."""
GZIP: Final = ".gz"
_SPACE: Final = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """A file of another tool.

    Attributes:
        path: of the file.
        sha256: of the file's content, unpacked.
        documents: in its order; at least one.
    """

    path: Path
    sha256: str
    documents: tuple[Fields, ...]


def read_documents(path: Path) -> ForeignFile:
    """The documents in a file.

    Raises:
        UserFileError: if it cannot be read, or holds no object, or is too large.
    """
    data = _content(path)
    if (needed := json_memory(data)) > MOST_MEMORY:
        raise UserFileError(
            path,
            f"reading it would take {needed / MIB:.0f} MiB of memory, and at most {MOST_MEMORY / MIB:.0f} are "
            "allowed: leave the single requests out when the tool saves its result",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserFileError(path, f"not UTF-8: {error.reason} at byte {error.start}") from None
    name = shown_path(path)
    if path.name.removesuffix(GZIP).endswith(".csv"):
        found = [Fields(row, name, f"row {number}") for number, row in enumerate(_rows(path, text), 1)]
    else:
        found = [Fields(value, name, place) for place, value in _objects(path, text)]
    if not found:
        raise UserFileError(path, "holds nothing")
    return ForeignFile(path, hashlib.sha256(data).hexdigest(), tuple(found))


def _content(path: Path) -> bytes:
    with unpacked(path, MOST_FOREIGN) as read:
        return b"".join(iter(lambda: read(MIB), b""))


def _objects(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with their places: those of a list, or one after the other."""
    for number, document in enumerate(_values(path, text), 1):
        if number > MOST_DOCUMENTS:
            raise UserFileError(path, f"holds more than {MOST_DOCUMENTS} documents")
        inside = [("", document)] if not isinstance(document, list) else list(_numbered(document))
        if len(inside) > MOST_DOCUMENTS:
            raise UserFileError(path, f"holds more than {MOST_DOCUMENTS} documents")
        for place, value in inside:
            where = place if number == 1 else f"document {number}{place}"
            if not isinstance(value, dict):
                raise UserFileError(path, f"{where or 'the document'} must be an object, not {told(value)}")
            yield where, value


def _numbered(values: list[Any]) -> Iterator[tuple[str, Any]]:
    yield from ((f"[{number}]", value) for number, value in enumerate(values))


def _values(path: Path, text: str) -> Iterator[Any]:
    # Python writes NaN and Infinity, which JSON does not have; both mean that nothing is known.
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in _SPACE:
            at += 1
        if at == end:
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise UserFileError(path, "not JSON that can be read: too deeply nested") from None
        except ValueError as error:  # a JSONDecodeError, or a number of thousands of digits
            raise UserFileError(path, f"not JSON ({on_one_line(str(error))})") from None
        yield value


def _rows(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file; what reads as a number is one."""
    before = csv.field_size_limit(MIB)
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
            if number > MOST_DOCUMENTS:
                raise UserFileError(path, f"holds more than {MOST_DOCUMENTS} rows")
            yield {name: _cell(value) for name, value in row.items() if isinstance(name, str) and name}
    except csv.Error as error:
        raise UserFileError(path, f"not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _cell(value: str | None) -> Any:
    if not value:
        return None
    if value.startswith("["):  # a list, as Python writes it: one of numbers is JSON as well
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    try:
        return float(exact(value, "it"))
    except RequirementError:
        return None if value.casefold() in {"nan", "none"} else value
