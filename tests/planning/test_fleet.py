"""Fleets: GPUs, memory and cost of a class, and which is the cheapest that is known to fit."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.evidence import Evidence, NoEvidence, Provenance
from pytest_gpucap.planning.fleet import Fleet, FleetTarget, cheapest, size, worth_measuring
from pytest_gpucap.planning.prices import Prices

TARGET = FleetTarget(Fraction(10), Fraction(13, 10))
A10G = find_class("a10g")


def rate(provenance: Provenance, value: float, low: float | None = None, high: float | None = None) -> Evidence:
    return Evidence(provenance, value, low, high, "somewhere")


def test_the_worked_example() -> None:
    found = size(TARGET, A10G, rate(Provenance.PUBLISHED, 3.85), price=Fraction("1.006"))
    assert (found.gpus, found.fewest, found.most) == (4, 4, 4)
    assert found.memory_gb == 96
    assert found.cost_per_hour == 4.024
    assert found.fits


def test_an_interval_gives_a_range_of_gpus() -> None:
    found = size(TARGET, A10G, rate(Provenance.MEASURED, 3.85, 3.0, 4.4))
    assert (found.gpus, found.fewest, found.most) == (4, 3, 5)


@pytest.mark.parametrize("budget", [3, 4])
def test_a_fleet_fits_the_budget_or_not_and_says_what_the_budget_carries(budget: int) -> None:
    target = FleetTarget(Fraction(10), Fraction(13, 10), budget)
    found = size(target, A10G, rate(Provenance.MEASURED, 3.85, 3.8, 3.9))
    assert found.fits == (budget == 4)
    assert found.largest_qps == float(budget * Fraction("3.85") / Fraction("1.3"))


def test_a_class_without_a_rate_has_a_reason_and_no_gpus() -> None:
    found = size(TARGET, A10G, NoEvidence("too small"), price=Fraction(1))
    assert (found.provenance, found.evidence, found.gpus, found.cost_per_hour) == (None, "too small", None, None)
    assert not found.fits
    assert not found.known


def fleet(name: str, provenance: Provenance, gpus: int, fewest: int | None = None) -> Fleet:
    return Fleet(
        name, 1, provenance, 1.0, None, None, "somewhere", gpus=gpus, fewest=fewest or gpus, most=gpus, fits=True
    )


def test_the_cheapest_is_chosen_among_what_was_measured() -> None:
    fleets = [
        fleet("few", Provenance.MEASURED, 1),
        fleet("many", Provenance.PUBLISHED, 4),
        fleet("guess", Provenance.ESTIMATE, 3, fewest=2),
        fleet("limit", Provenance.LIMIT, 1),
        fleet("dear", Provenance.LIMIT, 1),
        fleet("unpriced", Provenance.MEASURED, 1),
    ]
    per_hour = {"few": "5", "many": "1", "guess": "1.5", "limit": "0.5", "dear": "50"}
    prices = Prices("USD", {name: Fraction(price) for name, price in per_hour.items()})
    best = cheapest(fleets, prices)
    assert best is not None
    assert best.gpu_class == "many"
    assert [each.gpu_class for each in worth_measuring(fleets, prices, best)] == ["limit", "guess"]
    assert cheapest(fleets[2:], prices) is None
    assert [each.gpu_class for each in worth_measuring(fleets, prices, None)] == ["limit", "guess", "dear"]
    assert [each.gpu_class for each in worth_measuring(fleets, prices, None, budget=1)] == ["limit", "dear"]


def test_costs_are_compared_exactly() -> None:
    # 3 x 0.1 is above 0.3 in floats. An equal cost is not cheaper.
    prices = Prices("", {"known": Fraction("0.3"), "guess": Fraction("0.1")})
    known, guess = fleet("known", Provenance.MEASURED, 1), fleet("guess", Provenance.ESTIMATE, 3)
    assert worth_measuring([known, guess], prices, known) == []
    both = [known, fleet("guess", Provenance.MEASURED, 3)]
    assert cheapest(both, prices) == known  # of equal cost, the one with fewer GPUs
