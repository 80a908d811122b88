"""The trend of nightly runs: its levels, where they changed, and what else changed there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import put, report_skipped, trends_in

if TYPE_CHECKING:
    from pytest_gpucap.results.trend import Trend

HELP = "the trend of nightly runs, and where it changed"

DROP, SUSPECTED = 1, 3
"""Exit codes of ``--fail-on-drop``; 2 is a mistake in the command's arguments."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and what to make from it."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of result files, one for each run")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture: .svg, .png or .pdf")
    parser.add_argument(
        "--since",
        type=_day,
        metavar="YYYY-MM-DD",
        help="leave older runs out, for instance to accept an intended drop",
    )
    parser.add_argument(
        "--fail-on-drop",
        action="store_true",
        help="exit 1 for a confirmed drop of a rate that has not recovered, 3 for a suspected one (run once more)",
    )


def run(options: argparse.Namespace) -> int:
    """Print the trends.

    Raises:
        CommandError: if the folder, a result in it, or the extra for an option is missing.
    """
    # Imported here, as in all commands: the help does not need it.
    from pytest_gpucap.history import trend_report

    if options.plot is not None and options.plot.suffix.removeprefix(".") not in trend_report.FORMATS:
        raise CommandError(f"--plot {options.plot}: must end in .svg, .png or .pdf")
    trends, skipped = trends_in(options.folder, options.since)
    if not trends:
        report_skipped(skipped)
        since = f" since {options.since.date()}" if options.since else ""
        raise CommandError(f"{options.folder}: no result with a sustainable rate or a limit beside it{since}")
    try:
        if options.plot is not None:
            trend_report.plot_trends(trends, options.plot)
    except (trend_report.MissingLibraryError, OSError) as error:
        raise CommandError(str(error)) from None
    match options.format:
        case "json":
            shown = trend_report.trends_json(trends, skipped)
        case "markdown":
            shown = trend_report.trends_markdown(trends, skipped)
        case _:
            shown = trend_report.trends_text(trends, skipped, heights=_heights())
    put(shown)
    return _exit_code(trends) if options.fail_on_drop else 0


def _exit_code(trends: Sequence[Trend]) -> int:
    from pytest_gpucap.results.trend import AlarmState

    rates = [trend for trend in trends if trend.figure is None]
    if any(trend.standing is not None for trend in rates):
        return DROP
    return SUSPECTED if any(trend.state is AlarmState.DROP_SUSPECTED for trend in rates) else 0


def _heights() -> str:
    from pytest_gpucap.history.trend_report import ASCII, BLOCKS

    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII
    return BLOCKS


def _day(value: str) -> datetime:
    """The start of a day, UTC."""
    try:
        return datetime.combine(date.fromisoformat(value), time(), tzinfo=UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a date such as 2026-11-22, not {value!r}") from None
