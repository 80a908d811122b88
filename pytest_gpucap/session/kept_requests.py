"""Keeps the single requests of a measurement in a file: what ``--gpucap-keep-requests`` means for a test."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.load.request_rows import request_rows
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.report.formatting import shown
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.requests import MOST_ROWS, SUFFIX, RequestsFile, write_requests
from pytest_gpucap.session.server_manager import SystemUnderTest

_LONGEST_NAME: Final = 80


def keep_requests(
    folder: Path, target: SystemUnderTest, samples: Sequence[Sample], declared: Declaration
) -> RequestsFile:
    """Write the requests of the measurement that has just ended.

    Args:
        folder: of the files; made if it is missing.
        target: with the runner that carried the requests, which has none in flight.
        samples: the windows of the measurement.
        declared: of the test.

    Returns:
        The file. If it cannot be written, that says why: a full disk must not lose the verdict.
    """
    runner = target.runner
    assert runner is not None  # noqa: S101 - what callers know
    journal = runner.journal()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", declared.name).strip("-.")[:_LONGEST_NAME] or "requests"
    # Another session, or another worker, may keep requests of this test in the same folder.
    name = f"{slug}-{secrets.token_hex(4)}{SUFFIX}"
    count = journal.due_s.size
    try:
        write_requests(folder / name, request_rows(journal, samples, tuple(declared.workload.adapters), MOST_ROWS))
    except (OSError, ValueError) as error:
        why = on_one_line(getattr(error, "strerror", None) or str(error))
        return RequestsFile("", missing=f"the requests of {declared.name} could not be kept in {shown(folder)}: {why}")
    return RequestsFile(name, rows=min(count, MOST_ROWS), left_out=max(0, count - MOST_ROWS))
