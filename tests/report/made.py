"""The results of `tests.results.made` in their plain form, for reports that read that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.record import Record, as_record, document_of
from tests.results import made
from tests.results.made import CONTEXT, FAILED, MEASUREMENT, REQUIREMENT, SAMPLES, STARTED, sample

__all__ = ["CONTEXT", "FAILED", "MEASUREMENT", "REQUIREMENT", "SAMPLES", "STARTED", "sample"]


def check(outcome: Outcome = Outcome.FAIL, name: str = "chat") -> Record:
    """The record of a check that ended so."""
    return as_record(made.check(outcome, name))


def measured(name: str = "chat") -> Record:
    """The record of a measurement without a budget."""
    return as_record(made.measured(name))


def swept() -> Record:
    """The record of a sweep."""
    return as_record(made.swept())


def compared(record: Record, decision: str = "REGRESSED") -> Record:
    """The record with a comparison to a baseline."""
    comparison = as_record(made.compared(made.check(), RegressionDecision(decision)))["comparison"]
    if comparison["head_rate"] is not None:
        comparison["head_rate"] = record["sustainable_rate"]
    return {**record, "comparison": comparison}


def document(*records: Record) -> dict[str, Any]:
    """What a session writes."""
    return document_of(records, started=STARTED, arguments=["tests"])


def with_texts(value: Any, change: Callable[[str], str], keep: frozenset[str]) -> Any:
    """A part of a document with every text changed, but for those under the keys in `keep`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_texts(each, change, keep) for each in value]
    if isinstance(value, dict):
        return {key: each if key in keep else with_texts(each, change, keep) for key, each in value.items()}
    return value
