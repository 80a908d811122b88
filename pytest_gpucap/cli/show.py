"""Everything that a result file says, result by result."""

from __future__ import annotations

import argparse
import json

from pytest_gpucap.cli._runs import add_folder, described, find_run, put

HELP = "everything that a result file says"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, and how to say it."""
    parser.add_argument("file", metavar="FILE", help="a result file, or a baseline's name")
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    add_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print the run.

    Raises:
        CommandError: for a file that cannot be read.
    """
    # Late, as everywhere in these commands: the help needs none of it.
    from pytest_gpucap.report import markdown, terminal
    from pytest_gpucap.results.record import read_document

    found = find_run(options.file, options.baselines)
    document = read_document(found.path)
    match options.format:
        case "json":
            shown = json.dumps(document, indent=1, ensure_ascii=False)
        case "markdown":
            shown = markdown.render(document).rstrip("\n")
        case _:
            parts = [described(found), terminal.summary(document["results"])]
            shown = "\n\n".join(
                [*parts, *(_result(record, terminal.details(record)) for record in document["results"])]
            )
    put(shown)
    return 0


def _result(record: dict[str, object], details: str) -> str:
    title = f"{record['outcome'] or record['kind']}: {record['name']} ({record['test']})"
    return f"{title}\n{'-' * min(len(title), 80)}\n{details}"
