"""What `compare` and `show` share: they find a run by its path or its baseline's name, and print text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_gpucap.cli import CommandError
from pytest_gpucap.history.store import SUFFIX, Run, path_of, read_run
from pytest_gpucap.options import Options
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.result_file import ResultFileError

FOLDER = Options().baselines


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The option for the folder in which names are looked up."""
    parser.add_argument(
        "--baselines", type=Path, default=FOLDER, metavar="DIR", help=f"folder in which names are looked up ({FOLDER})"
    )


def find_run(given: str, folder: Path) -> Run:
    """The run of a path or a name.

    Raises:
        CommandError: if there is none, or if the file is damaged, foreign or from a newer version.
    """
    path = Path(given)
    if not path.exists() and "/" not in given and not given.endswith(SUFFIX):
        path = path_of(folder, given)
        if not path.exists():
            raise CommandError(f"there is no file {given}, and no run of that name in {folder}")
    try:
        return read_run(path)
    except ResultFileError as error:
        raise CommandError(str(error)) from None


def described(run: Run) -> str:
    """A run in one line: its file, when it began, and the plugin's version."""
    started = run.started.isoformat(sep=" ", timespec="minutes")
    return f"{shown(run.path)}, {started}, pytest-gpucap {run.content.plugin_version}"


def put(text: str) -> None:
    """Print a text. A character that the output cannot show becomes its escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")
