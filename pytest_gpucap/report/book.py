"""The session's records: written down as they come, summed up at the end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.report import resultfile, text
from pytest_gpucap.report.record import Record
from pytest_gpucap.report.wording import shown


class Book:
    """Collects records, keeps the result files up to date, writes the terminal summary."""

    def __init__(self, paths: Sequence[Path], config: pytest.Config) -> None:
        self._paths = paths
        self._started = datetime.now(UTC)
        self._arguments = [str(argument) for argument in config.invocation_params.args]
        self._records: list[Record] = []
        self._unwritten: str | None = None

    def add(self, records: Sequence[Record]) -> None:
        """Keep the records of one test and write the files anew."""
        self._records += records
        content = resultfile.document(self._records, started=self._started, arguments=self._arguments)
        for path in self._paths:
            try:
                resultfile.write(path, content)
            except OSError as error:
                # A full disk must not cost the verdicts that are still to come; it is said at the end.
                self._unwritten = f"{path} could not be written: {error}"

    def summarise(self, terminal: Any) -> None:
        """Write the summary to pytest's terminal reporter."""
        terminal.section("GPU capacity")
        terminal.write_line(text.summary(self._records))
        terminal.write_line(self._unwritten or f"result file: {shown(self._paths[-1])}")
