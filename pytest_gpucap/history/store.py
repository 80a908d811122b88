"""Saved runs and baselines: one result file per run, in a folder that is safe to commit to git.

A saved run has the form of the result file (``docs/result-file.md``). What belongs to one machine or one user is taken
out (`scrubbed`), and the results are in the order of their tests. So two saved runs differ only where their
measurements do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pytest_gpucap.errors import told
from pytest_gpucap.masking import MASK, is_secret_name, masked
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results import result_file
from pytest_gpucap.results.encoding import from_builtins, to_builtins
from pytest_gpucap.results.ending import BROKEN
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.result import Result, ResultFile, ResultKind
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.user_files import UserFileError, exists, home_expanded, is_folder, shown_path

LATEST: Final = "latest"
"""The name of a folder's newest run; no run can be saved under it."""
SUFFIX: Final = ".json"
MEDIAN_RUNS: Final = 10
"""The median of a folder is that of its newest 10 comparable runs: enough to average out their noise, and recent."""

_LONGEST_NAME: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Run:
    """One session's result file.

    Attributes:
        path: of the file.
        content: what it holds.
    """

    path: Path
    content: ResultFile

    @property
    def name(self) -> str:
        """The name it was saved under."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def started(self) -> datetime:
        """When the session began; UTC where the file names no time zone."""
        started = self.content.started
        return started if started.tzinfo is not None else started.replace(tzinfo=UTC)

    @property
    def results(self) -> tuple[Result, ...]:
        """The session's results."""
        return self.content.results

    @property
    def simulated(self) -> bool:
        """At least one result comes from a simulator; each result says so for itself as well."""
        return any(result.simulated for result in self.results)


def check_name(name: str) -> str:
    """The name of a run to save, if it is a valid one.

    Raises:
        ValueError: one line, for a name that would be a path or has another meaning.
    """
    if name == LATEST:
        raise ValueError(f"{LATEST!r} means the newest saved run: choose another name")
    if _NAME.fullmatch(name) is None or name.endswith(SUFFIX) or len(name) > _LONGEST_NAME:
        raise ValueError(
            f"must be a name of letters, digits and . _ + -, which becomes NAME{SUFFIX} in the folder, not {told(name)}"
        )
    return name


def path_of(folder: Path, name: str) -> Path:
    """The file of the run of this name."""
    return folder / f"{name}{SUFFIX}"


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        ResultFileError: if the file is missing, corrupt, foreign or from a newer version; one line that names it.
    """
    return Run(path, result_file.read(path))


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder, oldest first. Every ``*.json`` in it (not in folders below) must be a run.

    Raises:
        ResultFileError: for a file that is no run; one line that names it.
        NotADirectoryError: if there is no such folder.
    """
    if not is_folder(folder):
        raise NotADirectoryError(f"there is no folder {shown_path(folder)}")
    # Files that are being written have names with a leading dot.
    files = (path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    return oldest_first(read_run(path) for path in files)


def oldest_first(runs: Iterable[Run]) -> list[Run]:
    """The runs by when they began."""
    return sorted(runs, key=lambda run: (run.started, run.name))


# What a comparison is made with


@dataclass(frozen=True, slots=True)
class Baseline:
    """What ``--gpucap-compare`` names.

    Attributes:
        name: as given.
        runs: newest first. Results are compared with the newest comparable run, or with the median of several.
        median: compare with the median of the runs.
        missing: why there are no runs yet; empty where there are.
    """

    name: str
    runs: tuple[Run, ...]
    median: bool = False
    missing: str = ""


def open_baseline(named: str, folder: Path, root: Path, *, required: bool = True) -> Baseline:
    """The baseline of a name in `folder`, of a result file, of a folder (the median of its runs), or the ``latest``.

    Args:
        named: the name or path; a path holds a ``/`` or ends in ``.json``.
        folder: where names are looked up.
        root: what relative paths start from.
        required: a name that is not saved yet is an error. ``latest`` never is one: the first run has none.

    Raises:
        ResultFileError: one line, for a file that is missing, corrupt, foreign or from a newer version.
    """
    if named == LATEST:
        runs = read_runs(folder) if is_folder(folder) else []
        return Baseline(
            named, tuple(reversed(runs)), missing="" if runs else f"nothing is saved in {shown(folder)} yet"
        )
    if "/" not in named and not named.endswith(SUFFIX):
        try:
            path = path_of(folder, check_name(named))
        except ValueError as error:
            raise ResultFileError(str(error)) from None
        if not exists(path):
            missing = f"no baseline {named!r} is saved in {shown(folder)}"
            if required:
                raise ResultFileError(f"{missing}; save one with --gpucap-save {named}")
            return Baseline(named, (), missing=missing)
        return Baseline(named, (read_run(path),))
    try:
        path = root / home_expanded(named)
    except UserFileError as error:
        raise ResultFileError(str(error)) from None
    if is_folder(path):
        runs = read_runs(path)
        return Baseline(
            named, tuple(reversed(runs)), median=True, missing="" if runs else f"{shown(path)} holds no runs"
        )
    return Baseline(named, (read_run(path),))


# Saving


def check_writable(path: Path) -> None:
    """Check that a run may be saved here: there is no file yet, or one that holds a run.

    Raises:
        ResultFileError: for a file that is corrupt, foreign or newer, which is never overwritten.
    """
    if exists(path):
        try:
            read_run(path)
        except ResultFileError as error:
            raise ResultFileError(f"{error}; it is not overwritten: move it away or save under another name") from None


def check_kind(path: Path, *, simulated: bool) -> None:
    """Check that a simulated run does not replace a measured one, nor a measured run a simulated one.

    Raises:
        ResultFileError: if it would.
    """
    if exists(path) and (old := read_run(path)).results and old.simulated != simulated:
        ours, theirs = ("simulated", "measured") if simulated else ("measured", "simulated")
        raise ResultFileError(f"{path}: holds {theirs} results and is not overwritten by {ours} ones")


def saved_form(content: ResultFile, *, simulated: bool, forced: bool = False) -> ResultFile:
    """A session's result file as it is saved: scrubbed, sorted, and with only simulated or only measured results.

    Results that show nothing (INVALID, or without a sustainable rate) are left out, so that they replace no better
    ones. So are verdicts other than PASS, regressions and results of tests that failed, unless `forced`.
    """
    kept = [
        result
        for result in content.results
        if result.simulated == simulated and _shows_something(result) and (forced or not _fell_short(result))
    ]
    # Stable: several results of one test and kind stay in the order in which they were measured.
    kept.sort(key=lambda result: (result.test, result.kind))
    return msgspec.structs.replace(
        content, arguments=scrubbed(content.arguments), simulated=simulated, results=tuple(map(_saved_result, kept))
    )


def _shows_something(result: Result) -> bool:
    # One window, as a sample is, concludes nothing.
    return result.trusted and result.sustainable_rate is not None and result.kind is not ResultKind.SAMPLE


def _fell_short(result: Result) -> bool:
    return result.failed or result.regressed or result.ending in BROKEN


def _saved_result(result: Result) -> Result:
    """The result scrubbed, and without what only the report of its own session needs: series and telemetry."""
    kept = msgspec.structs.replace(
        result,
        telemetry=None,
        series=None,
        samples=tuple(map(_without_detail, result.samples)),
        points=tuple(map(_without_detail, result.points)),
    )
    return msgspec.structs.replace(scrubbed(kept), test=result.test)


def _without_detail(sample: Sample) -> Sample:
    return msgspec.structs.replace(sample, timeline={}, histograms={})


def save_run(path: Path, content: ResultFile, *, simulated: bool, forced: bool = False) -> ResultFile:
    """Write a session's result file as a saved run, whole or not at all; returns what was written.

    A test that was measured again without a result to save keeps those that are saved.

    Args:
        path: where to.
        content: the session.
        simulated: save its simulated results; otherwise its measured ones.
        forced: save verdicts other than PASS and regressions too.

    Raises:
        ResultFileError: if there is nothing to save, or the file there must not be overwritten: it is corrupt, foreign
            or newer, or a simulated run would replace a measured one (or the other way round).
    """
    check_writable(path)
    check_kind(path, simulated=simulated)
    form = saved_form(content, simulated=simulated, forced=forced)
    if not form.results:
        raise ResultFileError(
            f"{path}: there is no result to save: every one is without a rate, not to be trusted, or no PASS "
            "(--gpucap-force-save saves those too)"
        )
    if exists(path):
        again = {result.test for result in content.results} - {result.test for result in form.results}
        kept = [result for result in read_run(path).results if result.test in again]
        results = sorted([*form.results, *kept], key=lambda result: (result.test, result.kind))
        form = msgspec.structs.replace(form, results=tuple(results))
    result_file.write(path, form)
    return form


# Privacy: paths of a user, keys and host names do not belong in a repository.

_Value = TypeVar("_Value")

_PATH: Final = re.compile(r"(?<![\w.:/~-])(?:~|/[\w.@+~-]+)(?:/[\w.@+~-]+)+/?")
"""An absolute path of two parts or more, or one under ``~``; a lone ``/v1`` or ``req/s`` is none."""
_URL: Final = re.compile(r"(?P<scheme>\bhttps?://)(?:[^\s/@]*@)?(?P<host>\[[^\]]+\]|[^\s/:?#'\"]+)(?P<port>:\d+)?")
_LOOPBACK: Final = re.compile(r"127\.\d+\.\d+\.\d+|localhost|\[::1\]")
_DROPPED: Final = frozenset({"log"})
"""Names whose value has no meaning on another machine."""


def scrubbed(value: _Value) -> _Value:
    """The value with paths cut to their last part, secrets masked, and the hosts of URLs replaced by ``HOST``.

    Loopback hosts stay, because they name no machine. All other text stays as it is.

    Args:
        value: a result, a part of one, or a string.
    """
    return from_builtins(_scrubbed(to_builtins(value)), type(value))


def _scrubbed(value: object) -> object:
    match value:
        case str():
            return _scrubbed_text(value)
        case Mapping():
            return {
                key: MASK if isinstance(each, str) and each and is_secret_name(str(key)) else _scrubbed(each)
                for key, each in value.items()
                if key not in _DROPPED
            }
        case list():
            return _scrubbed_list(value)
    return value


def _scrubbed_list(values: list[object]) -> list[object]:
    """A list. Where it holds the words of a command line, the word after ``--api-key`` is a secret."""
    found: list[object] = []
    secret = False
    for value in values:
        found.append(MASK if secret and isinstance(value, str) else _scrubbed(value))
        secret = isinstance(value, str) and value.startswith("--") and is_secret_name(value)
    return found


def _scrubbed_text(text: str) -> str:
    text = _URL.sub(_without_host, masked(text))
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)


def _without_host(match: re.Match[str]) -> str:
    if _LOOPBACK.fullmatch(match["host"]):
        return f"{match['scheme']}{match['host']}{match['port'] or ''}"
    return f"{match['scheme']}HOST"
