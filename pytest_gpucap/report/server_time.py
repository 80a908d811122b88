"""What the time on servers was spent on, in one line; and what a start-up was spent on."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_gpucap.report.formatting import seconds
from pytest_gpucap.results.result import START_UP, Result

_SHOWN_S = 0.05
"""Phases shorter than this are left out of the server time shown."""


def start_phases(result: Result) -> str:
    """``imports 20 s, weights 5 s, rest 2 s``: what the start-up was spent on; empty where nothing is known of it.

    The rest is what no phase accounts for: a log tells some of its times to the second, and not of everything.
    """
    known_s = sum(result.start_phases_s.values())
    if not known_s:
        return ""
    rest_s = result.spent_s.get(START_UP, 0.0) - known_s
    return ", ".join(_shown_phases({**result.start_phases_s, "rest": rest_s}))


def server_time(result: Result) -> str:
    """``start-up 29 s (imports 20 s, weights 5 s, rest 4 s), check 95 s``; ``none`` where no server ran."""
    parts, phases = _shown_phases(result.spent_s), start_phases(result)
    if phases:
        parts = [f"{part} ({phases})" if part.startswith(f"{START_UP} ") else part for part in parts]
    return ", ".join(parts) or "none"


def _shown_phases(spent_s: Mapping[str, float]) -> list[str]:
    return [f"{phase} {seconds(spent)}" for phase, spent in spent_s.items() if spent >= _SHOWN_S]
