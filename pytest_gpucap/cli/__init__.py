"""The commands of ``gpucap``. Each is a module with `HELP`, `add_arguments`, and `run`, which returns the exit code.

A command reads its arguments, calls other rooms, and prints to standard output. A mistake of the user is a
`CommandError`: one line on standard error.
"""

from __future__ import annotations

from pytest_gpucap.errors import GpuCapError

COMMANDS: tuple[str, ...] = ("plan", "compare", "show", "history", "report", "servers")
"""Names in the order in which the help lists them; `pytest_gpucap.cli.NAME` is the module."""


class CommandError(GpuCapError, ValueError):
    """A mistake in a command's arguments or files; one line that names the place and the fix."""
