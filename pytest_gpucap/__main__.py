"""``gpucap COMMAND``: planning, comparing and reporting, with no GPU and no test run.

``python -m pytest_gpucap COMMAND`` is the same, for an interpreter whose scripts are not on PATH.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_gpucap import __version__
from pytest_gpucap.cli import COMMANDS, CommandError, module_of
from pytest_gpucap.foreign_text import harmless, on_one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The command's exit code; 2 for a mistake in what it was given, as argparse has it.
    """
    parser = argparse.ArgumentParser(prog=_called(), description="Plan, compare and report: no GPU, no test run.")
    parser.add_argument("--version", action="version", version=f"pytest-gpucap {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    given = sys.argv[1:] if arguments is None else arguments
    # A command that is named is loaded alone: none needs what only another one imports.
    for name in given[:1] if given and given[0] in COMMANDS else COMMANDS:
        module = importlib.import_module(module_of(name))
        own = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(own)
        own.set_defaults(run=module.run)
    options = parser.parse_args(given)
    try:
        return int(options.run(options))
    except CommandError as error:
        print(harmless(on_one_line(f"{parser.prog} {options.command}: {error}")), file=sys.stderr)  # noqa: T201 - a command
        return 2
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _called() -> str:
    """How the user called this, for the usage texts and messages."""
    return "python -m pytest_gpucap" if Path(sys.argv[0]) == Path(__file__) else "gpucap"


if __name__ == "__main__":
    raise SystemExit(main())
