"""Results on disk, for scripts: read one file, read a folder of nights, and make a page of what was read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # of the three functions below a script may need one
    from pytest_gpucap.results.result import ResultFile
    from pytest_gpucap.results.trend import Trend


class Trends(NamedTuple):
    """What a folder of result files says together.

    Attributes:
        trends: one for each series of runs: of rates, then of limits beside the rate.
        skipped: one line for each file or result that could not be used.
    """

    trends: list[Trend]
    skipped: list[str]


def read_result_file(path: str | os.PathLike[str]) -> ResultFile:
    """The content of a result file of any version.

    Args:
        path: of the file.

    Raises:
        GpuCapError: one line, if the file is missing, damaged, foreign or from a newer version.
    """
    from pytest_gpucap.results import result_file

    return result_file.read(Path(path))


def read_trends(folder: str | os.PathLike[str], since: datetime | None = None) -> Trends:
    """The trends of the result files in a folder and below, as ``gpucap history`` shows them.

    Args:
        folder: the files are here, one for each run.
        since: runs that began before are left out; it has a time zone. None: all count.

    Raises:
        NotADirectoryError: one line, if there is no such folder.
    """
    from pytest_gpucap.history.figures import figures_of
    from pytest_gpucap.history.nightly import read_folder, series_of
    from pytest_gpucap.history.trend import trend_of

    runs, skipped = read_folder(Path(folder))
    runs = [run for run in runs if since is None or run.started >= since]
    series, broken = series_of(runs)
    return Trends([trend_of(each) for each in [*series, *figures_of(runs)]], [*skipped, *broken])


def html_report(content: ResultFile, history: Iterable[Trend] = ()) -> str:
    """The report as one HTML file, which opens offline and fetches nothing.

    Args:
        content: of the result file.
        history: trends of earlier runs; there is a panel for each.

    Returns:
        The file's text, to be written as UTF-8.

    Raises:
        ImportError: without the extra ``html``.
    """
    from pytest_gpucap.report.html import render

    return render(content, history)
