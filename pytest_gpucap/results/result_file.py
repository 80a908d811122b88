"""The result file: one JSON document a session, which has every result as soon as there is one.

Written to a temporary name beside it and renamed, so that whoever reads it, or whatever kills the session, finds a
whole document; GPU time is too dear to lose a finished result to a crash in the next test.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pytest_gpucap import __version__
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.migrate import current
from pytest_gpucap.results.record import SCHEMA_VERSION, Record


class ResultFileError(GpuCapError, ValueError):
    """Not a result file that this version can read; the message names the file and why."""


def document(records: Sequence[Record], *, started: datetime, arguments: Sequence[str]) -> dict[str, Any]:
    """The whole document of one session."""
    return {
        "schema": "pytest-gpucap",
        "schema_version": SCHEMA_VERSION,
        "plugin_version": __version__,
        "python_version": platform.python_version(),
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "arguments": list(arguments),
        "results": list(records),
        # What changes from result to result stands behind them: `GrowingResultFile` writes only the end anew.
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "simulated": any(record["simulated"] for record in records),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the document, whole or not at all. The folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(f"{_json(content)}\n")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _Copy:
    """A file with the first `held` results, the last of which ends at byte `end`."""

    path: Path
    held: int = 0
    end: int = 0


class GrowingResultFile:
    """A result file that is written after every test, each time at the cost of that test's results alone.

    As whole at every moment as what `write` writes, and the same in the end. Two copies take turns: new results go to
    the end of the one that lies beside the file, which then takes the file's name; the one that had the name stays
    beside it, and is the next to grow. Where that cannot be (no hard links, another session's file in our place), the
    next copy is a new one.

    Args:
        path: of the result file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chunks: list[bytes] = []
        self._beside: _Copy | None = None
        self._shown: tuple[_Copy, tuple[int, ...]] | None = None

    def write(self, content: Mapping[str, Any]) -> None:
        """Bring the file up to date.

        Args:
            content: the document of the last call, with further results behind those that it had.

        Raises:
            OSError: if it cannot be written; what was written before is still there.
        """
        self._take(content)
        if self._shown is None:
            self._clear()
        copy, self._beside = self._beside, None
        if copy is None or not copy.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            copy = _Copy(self._part("a"))
        try:
            with copy.path.open("r+b" if copy.held else "wb") as file:
                file.seek(copy.end)
                file.writelines(self._chunks[copy.held :])
                grown = _Copy(copy.path, len(self._chunks), file.tell())
                file.write(_tail(content))
                file.truncate()
            self._beside = self._kept(self._part("b" if copy.path == self._part("a") else "a"))
            copy.path.replace(self.path)
        except BaseException:
            copy.path.unlink(missing_ok=True)
            raise
        self._shown = grown, _identity(self.path.stat())

    def close(self) -> None:
        """Leave nothing beside the file."""
        if self._beside is not None:
            self._beside.path.unlink(missing_ok=True)
            self._beside = None

    def _take(self, content: Mapping[str, Any]) -> None:
        """The text of what is new."""
        for record in content["results"][len(self._chunks) :]:
            before = ",\n  " if self._chunks else f'{_json(_head(content))[:-2]},\n "results": [\n  '
            # As `write` has it, two levels deep; a line break inside a string is no line break in JSON.
            self._chunks.append((before + _json(record).replace("\n", "\n  ")).encode())

    def _kept(self, path: Path) -> _Copy | None:
        """The file as it is, under another name as well; None if it is not the one that we wrote, or not ours alone."""
        if self._shown is None:
            return None
        copy, identity = self._shown
        try:
            path.unlink(missing_ok=True)
            os.link(self.path, path)
            found = path.stat()
        except OSError:
            return None
        if _identity(found) != identity or found.st_nlink > len((self.path, path)):
            path.unlink(missing_ok=True)
            return None
        return replace(copy, path=path)

    def _part(self, turn: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.{turn}.part")

    def _clear(self) -> None:
        """Remove what a session that was killed has left; one that still runs does without its copy."""
        for part in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):
            part.unlink(missing_ok=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False)


def _head(content: Mapping[str, Any]) -> dict[str, Any]:
    """What stands before the results."""
    return dict(itertools.takewhile(lambda entry: entry[0] != "results", content.items()))


def _tail(content: Mapping[str, Any]) -> bytes:
    """From the end of the last result to the end of the file."""
    before = {*_head(content), "results"}
    behind = {key: value for key, value in content.items() if key not in before}
    return f"\n ],{_json(behind)[1:]}\n".encode()


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


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
