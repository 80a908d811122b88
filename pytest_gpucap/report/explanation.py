"""Which place of ``docs/when-it-fails.md`` a result's failure text names: the one that helps most."""

from __future__ import annotations

from typing import Final

from pytest_gpucap.explained import Subject, pointer
from pytest_gpucap.report.headline import verdict_word
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import BottleneckKind

_NO_LIMIT: Final = {BottleneckKind.NONE, BottleneckKind.UNKNOWN}


def explained_in(result: Result) -> str:
    """The line that names the place.

    A measurement that cannot be trusted is explained by its first problem, too small a capacity by its bottleneck,
    anything else by its verdict.
    """
    if result.outcome is Outcome.INVALID and not result.left_unmeasured and result.problems:
        return pointer(Subject.PROBLEM, result.problems[0].kind)
    if _too_slow(result) and result.bottleneck is not None and result.bottleneck.kind not in _NO_LIMIT:
        return pointer(Subject.BOTTLENECK, result.bottleneck.kind)
    return pointer(Subject.VERDICT, verdict_word(result))


def _too_slow(result: Result) -> bool:
    """Whether the budget fails for the rate, and not for wrong answers or for a limit beside the rate."""
    return result.outcome is Outcome.FAIL and result.slack is not None and result.slack.value < 0
