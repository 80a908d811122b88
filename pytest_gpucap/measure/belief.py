"""What is believed of the rate: by the queue model, and by how far the server was seen to depart from it.

A server is either built as the model, or otherwise. If it is, the model's estimate holds with the model's error. If it
is not, the model may be off by much (`constants.MISFIT_LN`), and only the corrected estimate holds, with the error of
the correction. The distance between both tells which is likely (Bayes), so the belief is a mixture of two normal
distributions of ln(rate).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from pytest_gpucap.measure import constants as c
from pytest_gpucap.results.measured import Outcome

_HALVINGS = 50
"""Of the range in which a quantile is looked for: what is left of it is far below any error."""


@dataclass(frozen=True, slots=True)
class Part:
    """One estimate of a mixture.

    Attributes:
        weight: its share.
        value: the rate.
        least, greatest: around the value, where the curve beyond the batch sizes measured leaves it open.
        error: standard error of the logarithm.
    """

    weight: float
    value: float
    least: float
    greatest: float
    error: float


@dataclass(frozen=True, slots=True)
class Belief:
    """A mixture of estimates."""

    parts: tuple[Part, ...]

    def spread(self, shifts: tuple[tuple[float, float], ...]) -> Belief:
        """The same where something unknown moves ln(rate): by each of these shifts with its chance."""
        return Belief(
            tuple(
                Part(
                    p.weight * chance,
                    p.value * math.exp(shift),
                    p.least * math.exp(shift),
                    p.greatest * math.exp(shift),
                    p.error,
                )
                for p in self.parts
                for chance, shift in shifts
            )
        )

    def widened(self, errors: tuple[tuple[float, float], ...]) -> Belief:
        """The same where the error is not known: with each of these chances, a further standard error."""
        return Belief(
            tuple(
                replace(p, weight=p.weight * chance, error=math.hypot(p.error, error))
                for p in self.parts
                for chance, error in errors
            )
        )

    def widest(self) -> Belief:
        """The parts with the largest error: what is believed of a server that is built otherwise than the model."""
        error = max(p.error for p in self.parts)
        parts = [p for p in self.parts if p.error == error]
        total = sum(p.weight for p in parts)
        return Belief(tuple(replace(p, weight=p.weight / total) for p in parts))

    def chance_below(self, rate_rps: float) -> float:
        """Highest chance that the rate is below `rate_rps`."""
        return self._chance(rate_rps, [p.least for p in self.parts])

    def chance_above(self, rate_rps: float) -> float:
        """Highest chance that the rate is above `rate_rps`."""
        return 1.0 - self._chance(rate_rps, [p.greatest for p in self.parts])

    def outcome(self, design_rps: float, wrong: float) -> Outcome:
        """PASS or FAIL where the chance that it is wrong is below `wrong`; else INCONCLUSIVE."""
        if self.chance_below(design_rps) < wrong:
            return Outcome.PASS
        if self.chance_above(design_rps) < wrong:
            return Outcome.FAIL
        return Outcome.INCONCLUSIVE

    def interval(self, confidence: float = 0.95) -> tuple[float, float, float]:
        """Median, and the low and high end that hold so much of it."""
        tail = (1.0 - confidence) / 2.0
        value = self._quantile(0.5, [p.value for p in self.parts])
        low = self._quantile(tail, [p.least for p in self.parts])
        high = self._quantile(1.0 - tail, [p.greatest for p in self.parts])
        return value, min(low, value), max(high, value)

    def _chance(self, rate_rps: float, centres: list[float]) -> float:
        """Chance of a rate below `rate_rps`, of normal distributions around these centres."""
        return _weight_below(math.log(rate_rps), self._around(centres))

    def _around(self, centres: list[float]) -> list[tuple[float, NormalDist]]:
        """The parts' weights, and their distributions of ln(rate) around these centres."""
        return [
            (p.weight, NormalDist(math.log(centre), p.error)) for p, centre in zip(self.parts, centres, strict=True)
        ]

    def _quantile(self, level: float, centres: list[float]) -> float:
        """The rate below which lies so much of it; by halving, which never fails."""
        spread = 9.0 * max(p.error for p in self.parts)
        low, high = math.log(min(centres)) - spread, math.log(max(centres)) + spread
        around = self._around(centres)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            if _weight_below(middle, around) < level:
                low = middle
            else:
                high = middle
        return math.exp((low + high) / 2.0)


def _weight_below(log_rate: float, around: list[tuple[float, NormalDist]]) -> float:
    """Weight of what lies below a logarithm of a rate, of weighted distributions of it."""
    return sum(weight * each.cdf(log_rate) for weight, each in around)


def mixture(model: Part, corrected: Part | None) -> Belief:
    """The belief from the model's estimate and the corrected one; None: nothing was seen that corrects.

    Both parts' weights are ignored.
    """
    chance = c.MISFIT_CHANCE
    if corrected is None:
        wide = replace(model, weight=chance, error=math.hypot(model.error, c.MISFIT_LN))
        return Belief((replace(model, weight=1.0 - chance), wide))
    apart = math.log(corrected.value / model.value)
    built = math.hypot(model.error, corrected.error)
    otherwise = math.hypot(built, c.MISFIT_LN)
    as_model = (1.0 - chance) * math.exp(-0.5 * (apart / built) ** 2) / built
    as_other = chance * math.exp(-0.5 * (apart / otherwise) ** 2) / otherwise
    weight = as_model / max(as_model + as_other, 1e-300)
    # Built as the model, the server shows both estimates, and their mean by precision is better than either. Both have
    # its drift.
    share = corrected.error**2 / built**2
    moved = math.exp((1.0 - share) * apart)
    both = min(model.error, math.hypot(model.error * math.sqrt(share), c.DRIFT_SD))
    joint = Part(weight, model.value * moved, model.least * moved, model.greatest * moved, both)
    return Belief((joint, replace(corrected, weight=1.0 - weight)))
