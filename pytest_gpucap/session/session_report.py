"""The session's results: written down as they come, summed up at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from pytest_gpucap.report import rows
from pytest_gpucap.report import terminal as text
from pytest_gpucap.report.comparison import comparison_summary
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.report.publish import publish
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result, ResultFile
from pytest_gpucap.results.result_file import GrowingResultFile, session_file

_COLOURS: Final[dict[Outcome | None, dict[str, bool]]] = {
    Outcome.PASS: {"green": True},
    Outcome.FAIL: {"red": True},
    Outcome.INVALID: {"red": True},
    Outcome.INCONCLUSIVE: {"yellow": True},
    None: {},
}
"""By the outcome that a line states; its words say the same."""


class SessionReport:
    """Collects results, keeps the result files up to date, writes the terminal summary."""

    def __init__(
        self, paths: Sequence[Path], config: pytest.Config, *, markdown: Path | None = None, html: Path | None = None
    ) -> None:
        self._files = [GrowingResultFile(path) for path in paths]
        self._markdown, self._html = markdown, html
        self._root = config.rootpath
        self._started = datetime.now(UTC)
        self._arguments = [str(argument) for argument in config.invocation_params.args]
        self._results: list[Result] = []
        self._unwritten: dict[Path, str] = {}
        self._notes: list[str] = []

    def add(self, results: Sequence[Result], *, expected: bool = False) -> None:
        """Keep the results of one test, which may have been `expected` to fail, and write them down."""
        for result in results:
            failed = rows.failed(result) or rows.regressed(result)
            self._results.append(msgspec.structs.replace(result, expected_failure=expected and failed))
        content = self.content()
        for file in self._files:
            try:
                file.write(content)
            except OSError as error:
                # A full disk must not lose the verdicts that follow. The summary reports it.
                self._unwritten[file.path] = f"{file.path} could not be written: {error}"
            else:
                self._unwritten.pop(file.path, None)

    def content(self) -> ResultFile:
        """The result file of the session so far."""
        return session_file(self._results, started=self._started, arguments=self._arguments)

    def note(self, line: str) -> None:
        """A line for the end of the summary."""
        self._notes.append(line)

    def summarise(self, terminal: Any) -> None:
        """Write the summary to pytest's terminal reporter."""
        terminal.section("GPU capacity")
        for line, outcome in text.summary_lines(self._results):
            terminal.write_line(line, **_COLOURS[outcome])
        for line in comparison_summary(self._results):
            terminal.write_line(line)
        for line in self._unwritten.values() or [f"result file: {shown(self._files[-1].path)}"]:
            terminal.write_line(line)
        published = publish(
            self.content(),
            markdown_file=self._markdown,
            html_file=self._html,
            root=self._root,
            environ=os.environ,
        )
        for line in (*self._notes, *published):
            terminal.write_line(line)
