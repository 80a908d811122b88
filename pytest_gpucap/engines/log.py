"""The log of a server: a file that the server itself writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NOISE = re.compile(r"^nanobind: |^ - leaked |^ - \.\.\. skipped|^See https://nanobind")


@dataclass(frozen=True, slots=True)
class ServerLog:
    """The log file of one server."""

    path: Path

    def text(self) -> str:
        """The whole log so far; empty if nothing was written."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def tail(self, lines: int = 30) -> str:
        """The last lines, without the leak reports that C++ bindings write at the end of every failed start."""
        return "\n".join([line for line in self.text().splitlines() if not _NOISE.search(line)][-lines:])
