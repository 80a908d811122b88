"""The commands of ``gpucap``. Each is a module with `HELP`, `add_arguments`, and `run`, which returns the exit code.

A command reads its arguments, calls other rooms, and prints to standard output. A mistake of the user is a
`CommandError`: one line on standard error.
"""

from __future__ import annotations

import keyword

from pytest_gpucap.errors import GpuCapError

COMMANDS: tuple[str, ...] = ("plan", "compare", "show", "history", "report", "servers", "import", "export", "frame")
"""Names in the order in which the help lists them; see `module_of`."""


def module_of(command: str) -> str:
    """The module of a command: `pytest_gpucap.cli.NAME`, with ``_`` behind a name that is a word of Python."""
    return f"pytest_gpucap.cli.{command}{'_' if keyword.iskeyword(command) else ''}"


class CommandError(GpuCapError, ValueError):
    """A mistake in a command's arguments or files; one line that names the place and the fix."""
