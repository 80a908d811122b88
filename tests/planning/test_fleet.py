"""Fleets: GPUs, memory and cost of a class, and which is the cheapest that is known to fit."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.fleet import Evidence, Fleet, FleetTarget, Provenance, cheapest, size, worth_measuring
from pytest_gpucap.requirement import LatencyLimit, Length, Slo, Workload
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.roofline.served import hardware_of

TARGET = FleetTarget(Fraction(10), Fraction(13, 10))
CONFIG = architecture("synthetic:qwen2-1.5b").config


def on(gpu_class: str) -> Roofline:
    hardware = hardware_of(find_class(gpu_class))
    assert hardware is not None
    workload = Workload(input_tokens=Length.fixed(256), output_tokens=Length.fixed(512))
    return Roofline(model_of(CONFIG), precision_of(CONFIG), hardware, workload)


def rate(provenance: Provenance, value: float, low: float | None = None, high: float | None = None) -> Evidence:
    return Evidence(provenance, value, low, high, "somewhere")


def test_the_worked_example() -> None:
    found = size(TARGET, "a10g", None, [rate(Provenance.PUBLISHED, 3.85)], memory_gb=24, price=Fraction("1.006"))
    assert (found.gpus, found.fewest, found.most) == (4, 4, 4)
    assert found.memory_gb == 96
    assert found.cost_per_hour == Fraction("4.024")
    assert found.fits


def test_an_interval_gives_a_range_of_gpus() -> None:
    found = size(TARGET, "a10g", None, [rate(Provenance.MEASURED, 3.85, 3.0, 4.4)])
    assert (found.gpus, found.fewest, found.most) == (4, 3, 5)


@pytest.mark.parametrize("budget", [3, 4])
def test_a_budget_is_kept_or_not_and_carries_so_much(budget: int) -> None:
    target = FleetTarget(Fraction(10), Fraction(13, 10), budget=budget)
    found = size(target, "a10g", None, [rate(Provenance.MEASURED, 3.85, 3.8, 3.9)])
    assert found.fits == (budget == 4)
    assert found.largest_qps == budget * Fraction("3.85") / Fraction("1.3")


def test_the_best_evidence_counts_and_of_several_the_narrowest() -> None:
    wide, narrow = rate(Provenance.MEASURED, 9, 1, 99), rate(Provenance.MEASURED, 8, 7, 9)
    others = [rate(Provenance.ESTIMATE, 1, 0.5, 2), rate(Provenance.PUBLISHED, 2), rate(Provenance.BASELINE, 3, 2, 4)]
    assert size(TARGET, "x", None, [*others, wide, narrow]).evidence == narrow
    assert size(TARGET, "x", None, others).evidence == others[2]
    assert size(TARGET, "x", None, others[:2]).evidence == others[1]


def test_without_evidence_the_limit_gives_the_least_number_of_gpus() -> None:
    found = size(TARGET, "t4", on("t4"), [])
    assert found.evidence is not None
    assert found.evidence.provenance is Provenance.LIMIT
    best = on("t4").best()
    assert best is not None
    assert found.evidence.rate_rps == best.rate_rps
    assert found.gpus == 1
    assert found.weights_gb == pytest.approx(3.55, abs=0.01)


def test_a_class_that_can_serve_nothing_says_why() -> None:
    strict = FleetTarget(Fraction(10), Fraction(13, 10), Slo((LatencyLimit.parse("e2e_p95", "4s"),)))
    assert "cannot keep the latency limits" in size(strict, "t4", on("t4"), []).reason
    assert not size(strict, "t4", on("t4"), []).fits
    # An estimate does not help where physics says no; a measurement is believed.
    assert size(strict, "t4", on("t4"), [rate(Provenance.ESTIMATE, 3, 2, 4)]).evidence is None
    assert size(strict, "t4", on("t4"), [rate(Provenance.MEASURED, 3, 2, 4)]).fits
    assert "no limit known" in size(TARGET, "x", None, []).reason


def fleet(name: str, provenance: Provenance, gpus: int, price: str | None, fewest: int | None = None) -> Fleet:
    cost = None if price is None else gpus * Fraction(price)
    return Fleet(
        name, 1, rate(provenance, 1.0), gpus=gpus, fewest=fewest or gpus, most=gpus, cost_per_hour=cost, fits=True
    )


def test_the_cheapest_is_chosen_among_what_was_measured() -> None:
    fleets = [
        fleet("few", Provenance.MEASURED, 1, "5"),
        fleet("many", Provenance.PUBLISHED, 4, "1"),
        fleet("guess", Provenance.ESTIMATE, 3, "1.5", fewest=2),
        fleet("limit", Provenance.LIMIT, 1, "0.5"),
        fleet("dear", Provenance.LIMIT, 1, "50"),
        fleet("unpriced", Provenance.MEASURED, 1, None),
    ]
    best = cheapest(fleets)
    assert best is not None
    assert best.gpu_class == "many"
    assert [each.gpu_class for each in worth_measuring(fleets, best)] == ["limit", "guess"]
    assert cheapest(fleets[2:]) is None
    assert [each.gpu_class for each in worth_measuring(fleets, None)] == ["limit", "guess", "dear"]
