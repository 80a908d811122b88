"""Simulated nights of known capacity: run noise, outlier runs, bad nights, and one drop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVEL_RPS = 30.0
_HANDED_ON = 0.8


@dataclass(frozen=True, slots=True)
class Nights:
    """How runs scatter.

    Attributes:
        sd: of the logarithm of the rate, from run to run.
        outliers: share of runs with a much larger error.
        kind: what an outlier adds to the logarithm: ``symmetric`` (normal, 5 sd), ``low`` (3% to 15% lost).
        shared: an outlier affects the whole night, its confirming run too; otherwise every run has its own.
        reference: nights before the drop.
        lasting: sd of a part of which a night hands 80% on to the next: weather, neighbours, the host.
    """

    sd: float = 0.017
    outliers: float = 0.02
    kind: str = "symmetric"
    shared: bool = False
    reference: int = 60
    lasting: float = 0.0


class Night:
    """One night: `measure` draws the rate of one more run."""

    def __init__(self, nights: Nights, drop: float, random: np.random.Generator, carried: float = 0.0) -> None:
        self._nights, self._random = nights, random
        self._log = math.log(LEVEL_RPS * (1 - drop)) + carried
        if nights.shared:
            self._log += self._outlier()
        self.runs = 0

    def measure(self) -> float:
        """A sustainable rate, req/s."""
        self.runs += 1
        own = 0.0 if self._nights.shared else self._outlier()
        return math.exp(self._log + self._random.normal(0, self._nights.sd) + own)

    def _outlier(self) -> float:
        if self._random.random() >= self._nights.outliers:
            return 0.0
        if self._nights.kind == "low":
            return -float(self._random.uniform(0.03, 0.15))
        return float(self._random.normal(0, 5 * self._nights.sd))


class History:
    """One night after the other."""

    def __init__(self, nights: Nights, random: np.random.Generator) -> None:
        self._nights, self._random = nights, random
        self._carried = 0.0

    def night(self, drop: float) -> Night:
        """The next night, at a level lower by `drop`."""
        if self._nights.lasting:
            fresh = self._random.normal(0, self._nights.lasting * math.sqrt(1 - _HANDED_ON**2))
            self._carried = _HANDED_ON * self._carried + float(fresh)
        return Night(self._nights, drop, self._random, self._carried)
