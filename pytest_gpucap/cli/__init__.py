"""The commands of ``gpucap``, a module each: `HELP`, `add_arguments`, and `run` for the exit code.

A command reads its arguments, calls the room that knows, and prints. What it prints goes to standard output; mistakes
of the user are a `CommandError`, one line on standard error.
"""

from __future__ import annotations

from pytest_gpucap.errors import GpuCapError

COMMANDS: tuple[str, ...] = ("plan", "compare", "show", "history", "report")
"""Names in the order in which the help lists them; module `pytest_gpucap.cli.NAME` is what runs."""


class CommandError(GpuCapError, ValueError):
    """A mistake in what the command was given; one line that names the place and the fix."""
