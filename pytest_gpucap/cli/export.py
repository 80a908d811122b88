"""Writes the figures of result files for other programs: OpenMetrics text, for Prometheus and what reads it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import STDOUT, add_folder, find_run, write_out

HELP: Final = "write the figures of result files for Prometheus"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and what to write."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files, or names of baselines")
    parser.add_argument("--openmetrics", metavar="OUT", required=True, help="OpenMetrics text; - for standard output")
    add_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Write the text.

    Raises:
        CommandError: if a file cannot be read or written.
    """
    # Imported here, as in all commands: the help does not need it.
    import msgspec

    from pytest_gpucap.report.exported import exported
    from pytest_gpucap.user_files import real_path, shown_path

    runs = [find_run(given, options.baselines) for given in options.files]
    target: str = options.openmetrics
    if target != STDOUT and "\0" not in target and real_path(Path(target)) in {real_path(run.path) for run in runs}:
        raise CommandError(f"--openmetrics {shown_path(target)}: is one of the result files, and would be replaced")
    # Of one test in several files, the newest counts.
    ordered = sorted(runs, key=lambda run: run.started)
    newest = ordered[-1].content
    results = tuple(result for run in ordered for result in run.results)
    write_out(target, exported(msgspec.structs.replace(newest, results=results)))
    return 0
