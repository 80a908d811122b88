"""What commands share: a run by its path or its baseline's name, the trends of a folder, and printing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from pytest_gpucap.cli import CommandError
from pytest_gpucap.foreign_text import harmless, visible
from pytest_gpucap.history.store import SUFFIX, Run, path_of, read_run
from pytest_gpucap.on_disk import Trends, read_trends
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.results.whole_file import write_text
from pytest_gpucap.user_files import UserFileError, exists, shown_path

FOLDER = Path("gpucap-baselines")
"""The default of ``--gpucap-baselines``. `Options` has it too, but loads pytest, which takes longer than a command."""
STDOUT = "-"
"""In place of a file's name."""


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
    if not exists(path) and "/" not in given and not given.endswith(SUFFIX):
        path = path_of(folder, given)
        if not exists(path):
            raise CommandError(f"there is no file {shown_path(given)}, and no run of that name in {shown_path(folder)}")
    try:
        return read_run(path)
    except ResultFileError as error:
        raise CommandError(str(error)) from None


def trends_in(folder: Path, since: datetime | None = None) -> Trends:
    """See `read_trends`.

    Raises:
        CommandError: without the folder.
    """
    try:
        return read_trends(folder, since)
    except NotADirectoryError as error:
        raise CommandError(str(error)) from None


def report_skipped(lines: Iterable[str]) -> None:
    """Say on standard error what was left out."""
    for line in lines:
        print(f"skipped {visible(line)}", file=sys.stderr)  # noqa: T201 - a command


def described(run: Run) -> str:
    """A run in one line: its file, when it began, and the plugin's version."""
    started = run.started.isoformat(sep=" ", timespec="minutes")
    return visible(f"{shown(run.path)}, {started}, pytest-gpucap {run.content.plugin_version}")


def put(text: str) -> None:
    """Print a text. What the terminal would obey becomes its escape, and so does a character that it cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(harmless(text).encode(encoding, errors="backslashreplace").decode(encoding) + "\n")


def write_out(target: str, text: str) -> None:
    """Write a text to a file, whole or not at all, or to standard output.

    Raises:
        CommandError: if it cannot be written.
    """
    if target == STDOUT:
        # A character that the terminal cannot show becomes its escape instead of a traceback.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
        sys.stdout.flush()
        return
    try:
        write_text(Path(target), text)
    except (OSError, ValueError) as error:
        raise CommandError(str(UserFileError.of(target, error))) from None
