"""Earlier runs for the HTML report: the trends that it draws."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_gpucap.cli import CommandError
from pytest_gpucap.results.trend import Trend


def past(folder: Path) -> list[Trend]:
    """The trend of every series in the result files of a folder and below.

    Each file that is not a result file gets a line on standard error.

    Raises:
        CommandError: if the folder or the extra ``history`` is missing.
    """
    from pytest_gpucap.history.detection import MissingLibraryError
    from pytest_gpucap.history.nightly import read_folder, series_of
    from pytest_gpucap.history.trend import trend_of

    try:
        runs, skipped = read_folder(folder)
        found, broken = series_of(runs)
        trends = [trend_of(series) for series in found]
    except (NotADirectoryError, MissingLibraryError) as error:
        raise CommandError(str(error)) from None
    for line in (*skipped, *broken):
        print(f"skipped {line}", file=sys.stderr)  # noqa: T201 - a command
    return trends
