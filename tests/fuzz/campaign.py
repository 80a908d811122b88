"""Gives many inputs to every door, and counts."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.doors import Door, Place, doors
from tests.fuzz.guard import Guard

_ROUND = 100
"""Inputs of one round over all doors, about; time is looked at between rounds."""


@dataclass(frozen=True)
class Figures:
    """What a campaign did."""

    inputs: int
    refused: int
    seconds: float
    slowest_s: float
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s, {self.refused:,} refused in one line, "
            f"the slowest took {self.slowest_s:.2f} s of processor time, "
            f"memory grew by {self.memory_bytes / 2**20:.0f} MiB"
        )


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
        Broken: for the first input that breaks what must hold; Hypothesis makes it smaller and shows it.
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
    return Figures(guard.inputs, guard.refused, time.monotonic() - began, guard.slowest_s, guard.memory_bytes)


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
