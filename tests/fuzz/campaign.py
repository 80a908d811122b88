"""Gives many inputs to every door, and counts."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.doors import Door, Place, doors
from tests.fuzz.guard import Figures, Guard

_ROUND = 100
"""Inputs of one round over all doors, about; time is looked at between rounds."""


def campaign(
    place: Place,
    *,
    first_seed: int,
    inputs: int | None = None,
    seconds: float | None = None,
    faults: list[Exception] | None = None,
) -> Figures:
    """Run rounds until there were so many inputs, or the time is over.

    Args:
        place: where.
        first_seed: of the first round; the same seed gives the same inputs.
        inputs: at least so many.
        seconds: at least so long.
        faults: takes the faults; without it the first one ends the campaign.

    Raises:
        BrokenError: for the first input that breaks what must hold; Hypothesis makes it smaller and shows it.
    """
    guard, began, number = Guard(place.kept), time.monotonic(), first_seed
    everything = doors(place)
    with warnings.catch_warnings(), _folder(place.work):
        warnings.simplefilter("ignore")  # of libraries
        while (inputs is None or guard.inputs < inputs) and (seconds is None or time.monotonic() - began < seconds):
            for door in everything:
                _round(door, guard, number, faults)
            guard.check_files()
            number += 1
    return guard.figures(time.monotonic() - began)


def _round(door: Door, guard: Guard, number: int, faults: list[Exception] | None) -> None:
    @seed(number)
    @settings(
        max_examples=max(1, door.weight * _ROUND // 100),
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if faults is None else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(door.values)
    def give(value: Any) -> None:
        guard.run(door.enter, value)

    try:
        give()
    except Exception as error:
        error.add_note(f"door: {door.name}, seed {number}")
        if faults is None:
            raise
        faults.append(error)


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def place_of(pytester: pytest.Pytester) -> Place:
    """A place in a pytester's folder."""
    item = pytester.getitem("def test_it(gpucap): ...", "test_it")
    return Place(item.config, item, pytester.path / "kept", pytester.path / "work")
