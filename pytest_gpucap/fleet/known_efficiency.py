"""An efficiency that was measured before, for checks that measure one replica."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result
from pytest_gpucap.sizing import decimal_text
from pytest_gpucap.user_files import shown_path


def known_efficiency(path: Path, replicas: int, model: str | None) -> Fraction:
    """The efficiency in a result file: of the model's fleet whose size is nearest to `replicas`, the larger of two.

    At most 1: what is above is the error of the measurement.

    Args:
        path: a result file with a fleet in it.
        replicas: that the budget holds.
        model: as declared; None takes fleets of every model.

    Raises:
        ValueError: one line, if the file cannot be read, or has no trusted fleet of the model.
    """
    found = [
        (result.fleet.replicas, result.fleet.efficiency.value)
        for result in result_file.read(path).results
        if _fits(result, model) and result.fleet is not None and result.fleet.efficiency is not None
    ]
    if not found:
        of = "" if model is None else f" of {model}"
        raise ValueError(
            f"{shown_path(path)} has no measured efficiency of a fleet{of}: gpucap(replicas=...) measures it"
        )
    _, value = min(found, key=lambda each: (abs(each[0] - replicas), -each[0]))
    return min(Fraction(decimal_text(value)), Fraction(1))


def _fits(result: Result, model: str | None) -> bool:
    return result.trusted and (model is None or result.environment.model in {None, model})
