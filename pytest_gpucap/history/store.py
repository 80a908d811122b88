"""Saved runs: one result file a run, in a folder that is safe to commit to git.

A saved run has the form of the result file (``docs/result-file.md``), less what belongs to one machine or one user
(`pytest_gpucap.history.scrub`) and with its results in the order of their tests, so that two saved runs differ where
they measured something else and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.history.scrub import scrubbed
from pytest_gpucap.results.record import Record, read_document, write_document
from pytest_gpucap.results.result_file import ResultFileError

LATEST: Final = "latest"
"""The name that means the newest run of a folder; no run can be saved under it."""
SUFFIX: Final = ".json"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Run:
    """One session's results, as read from a file.

    Attributes:
        path: of the file.
        started: when the session began, with its time zone.
        plugin_version: of the session.
        simulated: at least one result comes from a simulator; each result says so for itself as well.
        results: the records, in the form of ``docs/result-file.md``, early forms brought up to date.
    """

    path: Path
    started: datetime
    plugin_version: str
    simulated: bool
    results: tuple[Record, ...]

    @property
    def name(self) -> str:
        """The name it was saved under."""
        return self.path.name.removesuffix(SUFFIX)


def check_name(name: str) -> str:
    """The name of a run to save, if it can be one.

    Raises:
        ValueError: one line, for a name that would be a path or means something else.
    """
    if name == LATEST:
        raise ValueError(f"{LATEST!r} means the newest saved run: choose another name")
    if _NAME.fullmatch(name) is None or name.endswith(SUFFIX):
        raise ValueError(
            f"must be a name of letters, digits and . _ + -, which becomes NAME{SUFFIX} in the folder, not {name!r}"
        )
    return name


def path_of(folder: Path, name: str) -> Path:
    """Where the run of a name is kept."""
    return folder / f"{name}{SUFFIX}"


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        ResultFileError: if the file is missing, corrupt, foreign or from a newer version; one line that names it.
    """
    content = read_document(path)
    try:
        started = datetime.fromisoformat(content["started"])
    except (KeyError, TypeError, ValueError):
        raise ResultFileError(f"{path}: does not say when it was started") from None
    return Run(
        path=path,
        started=started if started.tzinfo is not None else started.replace(tzinfo=UTC),
        plugin_version=str(content.get("plugin_version", "?")),
        simulated=any(record["simulated"] for record in content["results"]),
        results=tuple(content["results"]),
    )


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder, oldest first; every ``*.json`` in it (not in folders below) must be one.

    Raises:
        ResultFileError: for a file that is no run; one line that names it.
        NotADirectoryError: if there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder}")
    # Names with a leading dot are files that are being written.
    files = (path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    return oldest_first(read_run(path) for path in files)


def oldest_first(runs: Iterable[Run]) -> list[Run]:
    """The runs by when they began."""
    return sorted(runs, key=lambda run: (run.started, run.name))


def check_writable(path: Path) -> None:
    """See that a run may be saved here: nothing is there, or a run that we can read.

    Raises:
        ResultFileError: for a file that is corrupt, foreign or newer, which is never overwritten.
    """
    if path.exists():
        try:
            read_run(path)
        except ResultFileError as error:
            raise ResultFileError(f"{error}; it is not overwritten: move it away or save under another name") from None


def check_kind(path: Path, *, simulated: bool) -> None:
    """See that a simulated run does not replace a measured one, nor the other way round.

    Raises:
        ResultFileError: if it would.
    """
    if path.exists() and (old := read_run(path)).results and old.simulated != simulated:
        ours, theirs = ("simulated", "measured") if simulated else ("measured", "simulated")
        raise ResultFileError(f"{path}: holds {theirs} results and is not overwritten by {ours} ones")


def saved_form(content: dict[str, Any], *, simulated: bool) -> dict[str, Any]:
    """A session's document as it is saved: scrubbed, sorted, and either simulated or measured throughout.

    Results that say nothing (INVALID, or without a sustainable rate) are left out; they would stand in for better ones.
    """
    kept = [each for each in content["results"] if each["simulated"] == simulated and _says_something(each)]
    # Stable: several results of one test and kind stay in the order in which they were measured.
    kept.sort(key=lambda record: (record["test"], record["kind"]))
    return {**content, "arguments": scrubbed(content["arguments"]), "simulated": simulated, "results": _lean(kept)}


def _says_something(record: Record) -> bool:
    if record["outcome"] == "INVALID" or record["problems"]:
        return False
    return record["sustainable_rate"] is not None or record["kind"] == "sample"


def save(path: Path, content: dict[str, Any], *, simulated: bool) -> dict[str, Any]:
    """Write a session's document as a saved run, whole or not at all; returns what was written.

    Raises:
        ResultFileError: if there is nothing to save, or the file there must not be overwritten: it is corrupt, foreign
            or newer, or a simulated run would replace a measured one (or the other way round).
    """
    check_writable(path)
    check_kind(path, simulated=simulated)
    form = saved_form(content, simulated=simulated)
    if not form["results"]:
        raise ResultFileError(f"{path}: there is no result to save: every one is without a rate or not to be trusted")
    write_document(path, form)
    return form


_BULKY: Final = {"series": None, "telemetry": None}
_BULKY_OF_SAMPLE: Final = frozenset({"timeline", "histograms"})


def _lean(records: Sequence[Record]) -> list[Record]:
    """Without what only the report of the very run needs: time series and telemetry."""
    lean = []
    for record in records:
        kept = {**scrubbed(record), **{key: None for key in _BULKY if key in record}, "test": record["test"]}
        for part in ("samples", "points"):
            if part in kept:
                kept[part] = [
                    {key: value for key, value in sample.items() if key not in _BULKY_OF_SAMPLE}
                    for sample in kept[part]
                ]
        lean.append(kept)
    return lean
