"""Where ``docs/when-it-fails.md`` explains what went wrong.

The page has one anchor for each verdict, bottleneck, problem, cause of a failed start and class of errors. The long
text of a failed check and of a failed start with a log end with a line that names it. Errors of one line stay so.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

PAGE: Final = "docs/when-it-fails.md"


class Subject(StrEnum):
    """What an anchor of the page is about; the value is the anchor's first word."""

    VERDICT = "verdict"
    """Verdicts, decisions of a comparison, and what else a test comes to."""
    BOTTLENECK = "bottleneck"
    PROBLEM = "problem"
    """Why a measurement cannot be trusted."""
    START = "start"
    """Why a server did not start, as its log shows."""
    ERROR = "error"
    """Classes of errors."""


def anchor(subject: Subject, name: str) -> str:
    """``bottleneck-gpu-memory-bandwidth`` of the bottleneck ``GPU memory bandwidth``."""
    return f"{subject}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"


def pointer(subject: Subject, name: str) -> str:
    """The line that names the place: ``explained: docs/when-it-fails.md#verdict-fail``."""
    return f"explained: {PAGE}#{anchor(subject, name)}"
