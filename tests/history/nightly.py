"""Folders of nightly runs, as CI would leave them: real result files with drawn rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from pytest_gpucap.results import result_file
from tests.history.made import STARTED, result, session

SD = 0.017


def rates(count: int, *, drop: float = 0.0, at: int = 0, seed: int = 0, sd: float = SD) -> list[float]:
    """Rates of runs, req/s, around 30; from run `at` on lower by `drop`."""
    random = np.random.default_rng(seed)
    return [30 * math.exp(random.normal(0, sd)) * (1 - drop if number >= at else 1) for number in range(count)]


def write_nights(
    folder: Path, values: Sequence[float], environment: Callable[[int], dict[str, Any]] = lambda _: {}, **settings: Any
) -> list[Path]:
    """One result file per night; `environment` says what was different that night, `settings` go to every result."""
    paths = []
    for number, value in enumerate(values):
        paths.append(folder / f"night-{number:03}.json")
        measured = result(value, **environment(number), **settings)
        result_file.write(paths[-1], session(measured, started=STARTED + timedelta(days=number)))
    return paths
