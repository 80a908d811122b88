"""The optimal segmentation, compared with all segmentations there are and with another implementation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pytest_gpucap.arrays import Floats
from pytest_gpucap.history.segmentation import level_starts


def loss(values: Floats, starts: Sequence[int], penalty: float) -> float:
    """Squared errors of the levels, and the penalty for every change."""
    bounds = itertools.pairwise([0, *starts, values.size])
    levels = (values[start:stop] for start, stop in bounds)
    return math.fsum(float(((level - level.mean()) ** 2).sum()) for level in levels) + penalty * len(starts)


def segmentations(runs: int, shortest: int) -> Iterator[list[int]]:
    """Every way to cut so many runs into levels of a least length."""
    yield []
    for start in range(shortest, runs - shortest + 1):
        yield from ([start, *(start + each for each in rest)] for rest in segmentations(runs - start, shortest))


def steps(generator: np.random.Generator, runs: int) -> Floats:
    """Noise with up to four changes of level."""
    values = generator.normal(3.0, 1.0, runs)
    for _ in range(generator.integers(0, 5)):
        values[generator.integers(0, runs) :] += generator.normal(0.0, 3.0)
    return values


@pytest.mark.parametrize("shortest", [1, 2, 3])
def test_no_segmentation_loses_less(shortest: int) -> None:
    generator = np.random.default_rng(7)
    changed = 0
    for runs in range(1, 11):
        for penalty in (0.5, 4.0, 30.0):
            values = steps(generator, runs)
            found = level_starts(values, penalty=penalty, shortest=shortest)
            all_there_are = list(segmentations(runs, shortest))
            assert found in all_there_are
            assert loss(values, found, penalty) <= min(loss(values, each, penalty) for each in all_there_are) + 1e-9
            changed += bool(found)
    assert changed > 3


def test_another_implementation_finds_the_same() -> None:
    ruptures = pytest.importorskip("ruptures")
    generator = np.random.default_rng(8)
    for runs in range(6, 300, 7):
        values, penalty = steps(generator, runs), 2.5 * math.log(runs)
        *theirs, _ = ruptures.KernelCPD(kernel="linear", min_size=3).fit(values[:, None]).predict(pen=penalty)
        assert level_starts(values, penalty=penalty, shortest=3) == theirs


def test_a_large_equal_part_costs_no_digits() -> None:
    values = np.random.default_rng(9).normal(0.0, 1.0, 120)
    values[70:] += 4.0
    assert level_starts(values, penalty=12.0, shortest=3) == [70]
    assert level_starts(values + 1e9, penalty=12.0, shortest=3) == [70]


@pytest.mark.parametrize("runs", [0, 1, 5])
def test_too_few_runs_have_no_change(runs: int) -> None:
    assert level_starts(np.arange(runs, dtype=float) * 100, penalty=1.0, shortest=3) == []
