"""What ``--gpucap-compare`` names: one saved run, the newest comparable one, or the median of a folder's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_gpucap.history.store import LATEST, SUFFIX, Run, check_name, path_of, read_run, read_runs
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.result_file import ResultFileError

MEDIAN_RUNS: Final = 10
"""Runs of a folder that its median is taken over: enough that their noise hardly counts, few enough to be recent."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What ``--gpucap-compare`` names.

    Attributes:
        name: as given.
        runs: newest first; of several the newest comparable one counts, or the median of them.
        median: the median of the runs counts.
        missing: why there is none yet; empty where there is one.
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
        required: a name that was not saved yet is a mistake. ``latest`` never is one: somebody has to be the first.

    Raises:
        ResultFileError: one line, for a file that is missing, corrupt, foreign or from a newer version.
    """
    if named == LATEST:
        runs = read_runs(folder) if folder.is_dir() else []
        return Baseline(
            named, tuple(reversed(runs)), missing="" if runs else f"nothing is saved in {shown(folder)} yet"
        )
    if "/" not in named and not named.endswith(SUFFIX):
        try:
            path = path_of(folder, check_name(named))
        except ValueError as error:
            raise ResultFileError(str(error)) from None
        if not path.exists():
            missing = f"no baseline {named!r} is saved in {shown(folder)}"
            if required:
                raise ResultFileError(f"{missing}; save one with --gpucap-save {named}")
            return Baseline(named, (), missing=missing)
        return Baseline(named, (read_run(path),))
    path = root / Path(named).expanduser()
    if path.is_dir():
        runs = read_runs(path)
        return Baseline(
            named, tuple(reversed(runs)), median=True, missing="" if runs else f"{shown(path)} holds no runs"
        )
    return Baseline(named, (read_run(path),))
