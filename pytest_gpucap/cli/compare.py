"""How the sustainable rates changed from one run to another.

Exit code 1 when a test REGRESSED, 2 for a mistake in the command's arguments, 0 otherwise. Each file holds
one measurement. Only a test run with --gpucap-compare confirms a regression on a fresh server.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_gpucap.cli import CommandError
from pytest_gpucap.cli._runs import add_folder, described, find_run, put

if TYPE_CHECKING:
    from pytest_gpucap.results.result import Result

HELP = "how the sustainable rates changed from one run to another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two runs, the allowed loss, and the format of the output."""
    parser.add_argument("base", metavar="A", help="the run to compare with: a result file, or a baseline's name")
    parser.add_argument("head", metavar="B", help="the run to look at")
    parser.add_argument(
        "--max-regression", default="5%", metavar="SHARE", help="share of the rate that may be lost (5%%)"
    )
    parser.add_argument(
        "--variants",
        nargs=2,
        metavar=("BASE", "HEAD"),
        help="compare these two tests, of A and of B (may be one file), that serve the model differently",
    )
    parser.add_argument(
        "--any-prefix-hits",
        action="store_true",
        help="compare sessions whose prefix hit rates differ clearly, too: the cache is what is being tested",
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    add_folder(parser)


def run(options: argparse.Namespace) -> int:
    """Print the comparison.

    Raises:
        CommandError: if a run cannot be read, lacks a named test, or the share is invalid.
    """
    # Imported here, as in all commands: the help does not need it.
    from pytest_gpucap.foreign_text import visible
    from pytest_gpucap.history.compare import compare_runs, compare_variants
    from pytest_gpucap.history.store import Baseline
    from pytest_gpucap.report.columns import terminal_columns
    from pytest_gpucap.report.comparison import comparison_markdown, comparison_text
    from pytest_gpucap.results.comparison import RegressionDecision

    base, head = (find_run(given, options.baselines) for given in (options.base, options.head))
    share = _share(options.max_regression)
    if options.variants:
        try:
            compared = compare_variants((base, options.variants[0]), (head, options.variants[1]), share)
        except LookupError as error:
            raise CommandError(f"--variants: {error.args[0]}") from None
    else:
        compared = compare_runs(head, Baseline(base.name, (base,)), share, any_hits=options.any_prefix_hits)
    sides = [described(base), described(head)]
    if options.variants:  # both may be of one file
        sides = [f"{visible(name)}, {side}" for name, side in zip(options.variants, sides, strict=True)]
    base_said, head_said = sides
    match options.format:
        case "json":
            shown = _json(base_said, head_said, compared)
        case "markdown":
            shown = comparison_markdown(compared, base_said, head_said).rstrip("\n")
        case _:
            shown = comparison_text(compared, base_said, head_said, terminal_columns())
    put(shown)
    decisions = {result.comparison.decision for result in compared if result.comparison is not None}
    return int(RegressionDecision.REGRESSED in decisions)


def _json(base: str, head: str, compared: Sequence[Result]) -> str:
    from pytest_gpucap.report.escape import json_text
    from pytest_gpucap.results.encoding import to_builtins

    results = [
        {
            "test": result.test,
            "name": result.name,
            "kind": result.kind,
            "simulated": result.simulated,
            "comparison": to_builtins(result.comparison),
        }
        for result in compared
    ]
    return json_text({"base": base, "head": head, "results": results})


def _share(given: str) -> float:
    from pytest_gpucap.requirement import proper_share

    try:
        return proper_share(given, "--max-regression")
    except ValueError as error:
        raise CommandError(str(error)) from None
