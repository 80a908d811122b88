"""The result file: one JSON document a session, rewritten whole after every result.

Written to a temporary name beside it and renamed, so that whoever reads it, or whatever kills the session, finds a
whole document; GPU time is too dear to lose a finished result to a crash in the next test.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pytest_gpucap import __version__
from pytest_gpucap.capacity.results import Outcome
from pytest_gpucap.report.migrate import current
from pytest_gpucap.report.record import SCHEMA_VERSION, Record


class ResultFileError(ValueError):
    """Not a result file that this version can read; the message names the file and why."""


def document(records: Sequence[Record], *, started: datetime, arguments: Sequence[str]) -> dict[str, Any]:
    """The whole document of one session."""
    return {
        "schema": "pytest-gpucap",
        "schema_version": SCHEMA_VERSION,
        "plugin_version": __version__,
        "python_version": platform.python_version(),
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": list(arguments),
        "simulated": any(record["simulated"] for record in records),
        "results": list(records),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the document, whole or not at all. The folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """The document in a result file, in today's form whichever version wrote it.

    Raises:
        ResultFileError: if the file is missing, corrupt, foreign or from a newer version; one line that names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultFileError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ResultFileError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != "pytest-gpucap":
        raise ResultFileError(f"{path}: not a result of pytest-gpucap")
    found = content.get("schema_version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise ResultFileError(f"{path}: schema version {found!r} is none")
    if found > SCHEMA_VERSION:
        raise ResultFileError(
            f"{path}: schema version {found} is newer than this plugin's ({SCHEMA_VERSION}); upgrade pytest-gpucap"
        )
    if (wrong := _damage(content)) is not None:
        raise ResultFileError(f"{path}: damaged: {wrong}")
    try:
        return current(content, SCHEMA_VERSION)
    except ValueError as error:
        raise ResultFileError(f"{path}: {error}") from None


_NEEDED: Final[Mapping[str, tuple[type, ...]]] = {
    "kind": (str,),
    "test": (str,),
    "name": (str,),
    "simulated": (bool,),
    "requirement": (dict,),
    "workload": (dict,),
    "slo": (dict,),
    "sustainable_rate": (dict, type(None)),
    "samples": (list,),
    "spent_s": (dict,),
    "problems": (list,),
    "environment": (dict,),
    "outcome": (str, type(None)),
    "binding": (str, type(None)),
    "bottleneck": (dict, type(None)),
    "seed": (int,),
}
"""What every reader takes for granted of a result, so that half a document is refused where it is read."""
_OUTCOMES: Final = frozenset({*(outcome.value for outcome in Outcome), None})


def _damage(content: Mapping[str, Any]) -> str | None:
    """What makes the document unreadable; None if nothing does."""
    results = content.get("results")
    if not isinstance(results, list):
        return "it has no list of results"
    for number, record in enumerate(results, 1):
        if not isinstance(record, dict):
            return f"result {number} is no object"
        for key, kinds in _NEEDED.items():
            if key not in record or not isinstance(record[key], kinds):
                return f"result {number} has no {key}"
        if record["outcome"] not in _OUTCOMES:
            return f"result {number} has an outcome that is none: {record['outcome']!r}"
    return None
