"""Writes ``commands.md`` from the parsers of the ``gpucap`` commands: ``python docs/make_commands.py``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from docs.docstrings import cell, markdown
from pytest_gpucap.cli import COMMANDS, module_of

HEAD = """\
# Commands

`gpucap COMMAND` plans, compares and reports. It needs no GPU and runs no test. `python -m pytest_gpucap COMMAND` is the
same, for an interpreter whose scripts are not on `PATH`. `FILE` may be `-` where a command writes a report: standard
output. What a command returns is in [Exit codes](exit-codes.md).
"""


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command with its parser, in the order of the help."""
    for name in COMMANDS:
        module = import_module(module_of(name))
        parser = argparse.ArgumentParser(prog=f"gpucap {name}", description=module.__doc__)
        module.add_arguments(parser)
        yield name, parser


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, parser in parsers():
        about = "\n\n".join(markdown(part) for part in (parser.description or "").strip().split("\n\n"))
        parts.append(f"\n## gpucap {name}\n\n{about}\n")
        actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]  # noqa: SLF001 - argparse has no other way
        if actions:
            rows = "".join(f"| `{cell(_written(action))}` | {cell(_about(action))} |\n" for action in actions)
            parts.append(f"\n| argument | |\n| --- | --- |\n{rows}")
    return "".join(parts)


def _written(action: argparse.Action) -> str:
    """An argument as it is written on the command line."""
    choices = "|".join(map(str, action.choices)) if action.choices is not None else ""
    named = action.metavar if action.metavar is not None else choices or action.dest.upper()
    value = " ".join(named) if isinstance(named, tuple) else str(named)
    if not action.option_strings:
        return f"{value} ..." if action.nargs in {"+", "*"} else value
    flags = ", ".join(action.option_strings)
    return flags if action.nargs == 0 else f"{flags} {value}"


def _about(action: argparse.Action) -> str:
    return markdown(action.help or "").replace("%%", "%")


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(page(), encoding="utf-8")
