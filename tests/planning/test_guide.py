"""The published sizing guide: its rows against physics, its tiers against its own formula."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.guide import BATCHING_GAIN, SOURCE, TIERS, check_tiers, sizing_guide
from pytest_gpucap.planning.references import Reference, plausibility_of, references
from pytest_gpucap.roofline.served import hardware_of


def published(gpu_class: str, build: str) -> Reference:
    return next(r for r in references() if (r.source, r.gpu_class, r.build) == (SOURCE, gpu_class, build))


@pytest.mark.parametrize(
    ("gpu_class", "build", "latency_ms", "rate", "memory_gb", "times_below"),
    [
        ("t4", "fp16", 420, 2.38, 5.2, 11.8),
        ("t4", "INT8", 380, 2.63, 3.1, 7.5),
        ("a10g", "fp16", 290, 3.45, 5.0, 9.1),
        ("a10g", "AWQ", 260, 3.85, 2.8, 3.8),
    ],
)
def test_the_guides_rows_are_implausible(
    gpu_class: str, build: str, latency_ms: int, rate: float, memory_gb: float, times_below: float
) -> None:
    row = published(gpu_class, build)
    assert row.latency_s == latency_ms / 1000
    assert (row.rate_rps, row.memory_gb, row.batch) == (rate, memory_gb, 1)
    assert (row.workload.input_tokens.low, row.workload.output_tokens.low) == (256, 512)
    assert row.engine == "vLLM 0.4.2"
    assert row.rate_rps == pytest.approx(1000 / latency_ms, abs=0.005)  # one request at a time
    hardware = hardware_of(find_class(gpu_class))
    assert hardware is not None
    found = plausibility_of(row, hardware)
    assert not found.plausible
    assert found.floor_s / row.latency_s == pytest.approx(times_below, abs=0.05)
    assert found.text.startswith(f"implausible: {times_below} times the bandwidth limit")


RATES = {("t4", "fp16"): "2.38", ("t4", "INT8"): "2.63", ("a10g", "fp16"): "3.45", ("a10g", "AWQ"): "3.85"}


@pytest.mark.parametrize(
    ("position", "above", "up_to", "text", "memory", "stars", "purpose"),
    [
        (0, 0, 3, "1 x T4 or 1 x A10G", "5-8 GB", 2, "small applications, proofs of concept"),
        (1, 3, 8, "2 x A10G", "10 GB", 3, "small and medium online services"),
        (2, 8, 15, "4 x A10G or 2 x A100 40GB", "16-40 GB", 4, "enterprise services with high concurrency"),
        (3, 15, None, "4 x A100 80GB or an H100 cluster", ">= 80 GB", 5, "large platforms"),
    ],
)
def test_the_guides_tiers(
    position: int, above: int, up_to: int | None, text: str, memory: str, stars: int, purpose: str
) -> None:
    tier = TIERS[position]
    assert (tier.above, tier.up_to) == (Fraction(above), None if up_to is None else Fraction(up_to))
    assert tier.text == text
    assert (tier.memory, tier.cost_stars, tier.purpose) == (memory, stars, purpose)


@pytest.mark.parametrize(
    ("text", "build", "needed", "with_batching", "carries"),
    [
        ("1 x T4 or 1 x A10G", "t4 fp16", 2, (2, 1), 1.83),
        ("1 x T4 or 1 x A10G", "t4 INT8", 2, (1, 1), 2.02),
        ("1 x T4 or 1 x A10G", "a10g fp16", 2, (1, 1), 2.65),
        ("1 x T4 or 1 x A10G", "a10g AWQ", 2, (1, 1), 2.96),
        ("2 x A10G", "a10g fp16", 4, (3, 2), 5.31),  # 8 QPS on A10G: ceil(8 x 1.3 / 3.45) = 4, the tier says 2
        ("2 x A10G", "a10g AWQ", 3, (2, 2), 5.92),
        ("4 x A10G or 2 x A100 40GB", "a10g fp16", 6, (4, 3), 10.62),
        ("4 x A10G or 2 x A100 40GB", "a10g AWQ", 6, (4, 3), 11.85),
    ],
)
def test_the_tiers_do_not_follow_from_the_formula(
    text: str, build: str, needed: int, with_batching: tuple[int, int], carries: float
) -> None:
    check = next(c for c in check_tiers(RATES) if c.recommends == text and f"{c.gpu_class} {c.build}" == build)
    assert check.agrees is False
    assert (check.needed, check.needed_with_batching) == (needed, with_batching)
    assert check.carries_qps == pytest.approx(carries, abs=0.005)


def test_tiers_without_a_rate_are_not_checked_and_a_faster_rate_agrees() -> None:
    unknown = [check.gpu_class for check in check_tiers(RATES) if check.agrees is None]
    assert unknown == ["a100-40gb", "a100-80gb"]
    assert all(check.agrees for check in check_tiers({("a10g", "any"): "5.2"}) if check.rate_rps)
    assert (Fraction(3, 2), Fraction(5, 2)) == BATCHING_GAIN


def test_the_guide_holds_its_rows_and_every_check() -> None:
    guide = sizing_guide()
    assert [(row.gpu_class, row.build) for row in guide.references] == list(RATES)
    assert not any(row.plausible for row in guide.references)
    assert guide.tiers == tuple(check_tiers(RATES))
    assert guide.awq_saving.by_its_rows == pytest.approx(1 - 2.8 / 5.0)
    assert guide.awq_saving.of_the_weights < guide.awq_saving.said
