"""Earlier runs for the HTML report, as the plain values that it draws."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pytest_gpucap.cli import CommandError


def past(folder: Path) -> list[dict[str, Any]]:
    """The trend of everything that was measured again and again, from the result files in a folder and below.

    Files that are no result get a line on standard error.

    Raises:
        CommandError: without the folder, or without the extra ``history``.
    """
    from pytest_gpucap.history.changes import MissingLibraryError
    from pytest_gpucap.history.nightly import read_folder, series_of
    from pytest_gpucap.history.trend import record, trend

    try:
        runs, skipped = read_folder(folder)
        found, broken = series_of(runs)
        trends = [record(trend(series)) for series in found]
    except (NotADirectoryError, MissingLibraryError) as error:
        raise CommandError(str(error)) from None
    for line in (*skipped, *broken):
        print(f"skipped {line}", file=sys.stderr)  # noqa: T201 - a command
    return trends
