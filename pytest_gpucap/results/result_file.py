"""The result file: one JSON document per session. Every result is written at once.

The file is written under a temporary name and renamed, so it is always a whole document, even if the session is killed.
GPU time is too expensive to lose a finished result to a crash in the next test.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_gpucap import __version__
from pytest_gpucap.errors import GpuCapError, told
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.results import migrate, sound
from pytest_gpucap.results.encoding import encoded, from_builtins
from pytest_gpucap.results.result import SCHEMA_VERSION, Result, ResultFile
from pytest_gpucap.results.whole_file import clear_partial, write_whole
from pytest_gpucap.user_files import MIB, MOST_RESULTS, UserFileError, json_memory, read_bytes, shown_path

MOST_MEMORY: Final = 440 * MIB
"""By `json_memory`. The largest file that a session writes takes three quarters of it."""


class ResultFileError(GpuCapError, ValueError):
    """Not a result file that this version can read; the message names the file and why."""


def session_file(
    results: Iterable[Result],
    *,
    started: datetime,
    arguments: Iterable[str],
    exit_status: int | None = None,
    problems: Iterable[str] = (),
) -> ResultFile:
    """The content of one session's file.

    Args:
        results: in the order in which tests ended.
        started: when the session began, with its time zone.
        arguments: pytest's command line.
        exit_status: pytest's exit code; None: the session has not ended.
        problems: what ended tests or the session early, a line each.
    """
    kept = tuple(results)
    return ResultFile(
        plugin_version=__version__,
        python_version=platform.python_version(),
        started=started.astimezone(UTC).replace(microsecond=0),
        arguments=tuple(arguments),
        results=kept,
        written=datetime.now(UTC).replace(microsecond=0),
        simulated=any(result.simulated for result in kept),
        exit_status=exit_status,
        problems=tuple(problems),
    )


def write(path: Path, content: ResultFile) -> None:
    """Write the file, whole or not at all. A missing folder is made."""
    write_whole(path, _around(content, [_encoded(result) for result in content.results]))


class GrowingResultFile:
    """A result file that is written whenever its content changes. A result that does not change is encoded once.

    The file is what `write` writes, byte by byte. All results are written each time: 1,000 of 40 kB take 50 ms.

    Args:
        path: of the result file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cleared = False
        self._encoded: dict[int, tuple[Result, bytes]] = {}

    def write(self, content: ResultFile) -> None:
        """Bring the file up to date.

        Args:
            content: of the whole file.

        Raises:
            OSError: if it cannot be written. The previous content is kept.
        """
        if not self._cleared:
            clear_partial(self.path)
            self._cleared = True
        # By identity: comparing two results costs as much as encoding one. The kept result keeps its id from others.
        before = self._encoded
        self._encoded = {id(result): before.get(id(result)) or (result, _encoded(result)) for result in content.results}
        write_whole(self.path, _around(content, [self._encoded[id(result)][1] for result in content.results]))


def _encoded(result: Result) -> bytes:
    """As it stands in the whole document, two levels deep; a line break inside a string is no line break in JSON."""
    return encoded(result).replace(b"\n", b"\n  ")


def _around(content: ResultFile, results: Sequence[bytes]) -> Iterable[bytes]:
    """The document in pieces: the text around the results, and the encoded results."""
    whole = encoded(msgspec.structs.replace(content, results=()))
    before, found, behind = whole.partition(b'"results": []')
    assert found  # noqa: S101 - a quotation mark inside a string is escaped
    yield before + b'"results": ['
    for number, result in enumerate(results):
        yield b",\n  " if number else b"\n  "
        yield result
    yield (b"\n ]" if results else b"]") + behind + b"\n"


def read(path: Path) -> ResultFile:
    """The content of a result file of any version.

    Raises:
        ResultFileError: if the file is missing, damaged, foreign or from a newer version. The line names the file and
            the place of the damage.
    """
    try:
        content = msgspec.json.decode(_affordable(path, read_bytes(path, MOST_RESULTS)))
    except UserFileError as error:
        raise ResultFileError(str(error)) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ResultFileError(f"{shown_path(path)}: not JSON ({on_one_line(str(error))})") from None
    try:
        return from_document(content)
    except ValueError as error:
        raise ResultFileError(f"{shown_path(path)}: {on_one_line(str(error))}") from None


def _affordable(path: Path, data: bytes) -> bytes:
    """The document, if it can be read within `MOST_MEMORY`.

    Raises:
        UserFileError: if not.
    """
    if (needed := json_memory(data)) > MOST_MEMORY:
        raise UserFileError(
            path,
            f"holds more values than a result file of its size: reading it would take {needed / MIB:.0f} MiB of "
            f"memory, and at most {MOST_MEMORY / MIB:.0f} are allowed",
        )
    return data


def from_document(content: Any) -> ResultFile:
    """The typed form of a document of any version, as JSON gives it.

    Raises:
        ValueError: one line, if it is damaged, foreign or from a newer version.
    """
    if not isinstance(content, dict) or content.get("schema") != "pytest-gpucap":
        raise ValueError("not a result of pytest-gpucap")
    version = content.get("schema_version")
    if type(version) is not int:
        raise ValueError(f"schema version {told(version)} does not exist")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"schema version {told(version)} is newer than this plugin's ({SCHEMA_VERSION}); upgrade pytest-gpucap"
        )
    content = migrate.current(content, SCHEMA_VERSION, migrate.STEPS)
    try:
        found = from_builtins(content, ResultFile)
    except msgspec.ValidationError as error:
        raise ValueError(f"damaged: {_where(str(error), content)}") from None
    sound.check(content)
    if found.started.tzinfo is None:
        found = msgspec.structs.replace(found, started=found.started.replace(tzinfo=UTC))
    return found


_PLACE: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<place>.*)`)?", re.DOTALL)
_RESULT: Final = re.compile(r"results\[(?P<number>\d+)\]")
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>.*)`")
_EXPECTED: Final = re.compile(r"Expected `(?P<wanted>.*?)`(?P<bound> [<>]=? [\d.e+-]+)?(?:, got `(?P<got>.*)`)?")


def _where(message: str, content: dict[str, Any]) -> str:
    """``results[2].samples[0].start_s (of 'chat') must be float, not str`` of msgspec's message."""
    match = _PLACE.fullmatch(message)
    what, place = (match["what"], match["place"] or "") if match else (message, "")
    if missing := _MISSING.fullmatch(what):
        place = ".".join(filter(None, [place, missing["field"]]))
        what = "is missing"
    elif expected := _EXPECTED.fullmatch(what):
        got = f", not {expected['got']}" if expected["got"] else ""
        what = f"must be {expected['wanted']}{expected['bound'] or ''}{got}"
    else:
        what = f"is wrong: {what}"
    result = _RESULT.match(place)
    named = content["results"][int(result["number"])] if result else None
    name = f" (of {told(named['name'])})" if isinstance(named, dict) and isinstance(named.get("name"), str) else ""
    return f"{place or 'the document'}{name} {what}"
