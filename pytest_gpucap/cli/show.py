"""Shows everything in a result file, result by result."""

from __future__ import annotations

import argparse

from pytest_gpucap.cli._runs import add_folder, described, find_run, put
from pytest_gpucap.foreign_text import visible
from pytest_gpucap.results.result import Result

HELP = "everything in a result file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and the format of the output."""
    parser.add_argument("file", metavar="FILE", help="a result file, or a baseline's name")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    add_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print the run.

    Raises:
        CommandError: if the file cannot be read.
    """
    # Imported here, as in all commands: the help does not need it.
    from pytest_gpucap.report import terminal
    from pytest_gpucap.report.columns import terminal_columns, wrapped
    from pytest_gpucap.report.escape import json_text
    from pytest_gpucap.report.markdown import pull_request_page
    from pytest_gpucap.results.encoding import to_builtins

    found = find_run(options.file, options.baselines)
    match options.format:
        case "json":
            shown = json_text(to_builtins(found.content))
        case "markdown":
            shown = pull_request_page(found.content).rstrip("\n")
        case _:
            width = terminal_columns()
            early = [line for problem in found.content.problems for line in wrapped(problem, "! ", "  ", width)]
            parts = ["\n".join([described(found), *early]), terminal.summary(found.results, width)]
            details = (_section(result, terminal.details(result, width)) for result in found.results)
            shown = "\n\n".join([*parts, *details])
    put(shown)
    return 0


def _section(result: Result, details: str) -> str:
    from pytest_gpucap.report.headline import verdict_word

    title = visible(f"{verdict_word(result)}: {result.name} ({result.test})")
    return f"{title}\n{'-' * min(len(title), 80)}\n{details}"
