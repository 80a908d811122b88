"""Writes or sends the figures of result files: OpenMetrics text, to a Pushgateway, to an OTLP receiver."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import STDOUT, add_folder, find_run, write_out

HELP: Final = "write or send the figures of result files for Prometheus and OpenTelemetry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and where the figures go."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files, or names of baselines")
    parser.add_argument("--openmetrics", metavar="OUT", help="OpenMetrics text; - for standard output")
    parser.add_argument("--push", metavar="URL", help="send them to this Pushgateway, as the job gpucap")
    parser.add_argument(
        "--otlp",
        metavar="URL",
        help="send them to this OTLP receiver over HTTP, such as http://127.0.0.1:4318 (pytest-gpucap[otlp])",
    )
    add_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Write and send the figures.

    Raises:
        CommandError: if a file cannot be read or written, or a receiver does not take them.
    """
    # Imported here, as in all commands: the help does not need it.
    import msgspec

    from pytest_gpucap.cli._sending import push, receiver, send_otlp
    from pytest_gpucap.report.exported import exported
    from pytest_gpucap.user_files import real_path, shown_path

    target: str | None = options.openmetrics
    if target is None and options.push is None and options.otlp is None:
        raise CommandError("say where the figures go: --openmetrics OUT, --push URL or --otlp URL")
    push_to = None if options.push is None else receiver(options.push, "--push")
    otlp = None if options.otlp is None else receiver(options.otlp, "--otlp")
    runs = [find_run(given, options.baselines) for given in options.files]
    paths = {real_path(run.path) for run in runs}
    if target is not None and target != STDOUT and "\0" not in target and real_path(Path(target)) in paths:
        raise CommandError(f"--openmetrics {shown_path(target)}: is one of the result files, and would be replaced")
    # Of one test in several files, the newest counts.
    ordered = sorted(runs, key=lambda run: run.started)
    newest = ordered[-1].content
    results = tuple(result for run in ordered for result in run.results)
    together = msgspec.structs.replace(newest, results=results)
    if target is not None:
        write_out(target, exported(together))
    if push_to is not None:
        push(push_to, together)
    if otlp is not None:
        # Every point has its own time there, so nothing of an older file is lost.
        send_otlp(otlp, [run.content for run in ordered])
    return 0
