"""How the test of a result ended, whatever its verdict was."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Ending(StrEnum):
    """pytest's outcome of the test that made a result."""

    PASSED = "passed"
    XPASSED = "xpassed"
    """Marked xfail, and passed."""
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    """Marked xfail, and failed."""
    RERUN = "rerun"
    """Another plugin ran the test again; the later run decides."""
    ERROR = "error"
    """Set-up or teardown failed."""
    FAILED = "failed"
    """For whatever reason: a verdict, a regression, an assertion of its own, xfail(strict)."""
    UNFINISHED = "unfinished"
    """The test had not ended when the file was written: the process ended while it ran, or it is still running."""
    CRASHED = "crashed"
    """The worker process ended while the test ran."""


MILDEST_FIRST: Final = tuple(Ending)
"""Of several phases of one test, the last of these counts."""
BROKEN: Final = frozenset({Ending.ERROR, Ending.FAILED, Ending.UNFINISHED, Ending.CRASHED})
"""Endings of a test that did not succeed."""


def worse(one: Ending | None, other: Ending) -> Ending:
    """The ending that counts of two phases of one test."""
    return other if one is None else max(one, other, key=MILDEST_FIRST.index)
