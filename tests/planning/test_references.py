"""Published figures against physics: the ones that no server can have reached are found by computing, not by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.fleet import BATCHING_GAIN, TIERS, check_tiers
from pytest_gpucap.planning.other_class import what_if
from pytest_gpucap.planning.references import Reference, judge, references, roofline_for
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.roofline.served import hardware_of

GUIDE = "DeepSeek-R1-Distill-Qwen-1.5B sizing guide, 2026"


def hardware(reference: Reference):  # type: ignore[no-untyped-def]
    found = hardware_of(find_class(reference.gpu_class))
    assert found is not None
    return found


def of_guide(gpu_class: str, build: str) -> Reference:
    return next(r for r in references() if (r.source, r.gpu_class, r.build) == (GUIDE, gpu_class, build))


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
    row = of_guide(gpu_class, build)
    assert row.latency_s == latency_ms / 1000
    assert (row.rate_rps, row.memory_gb, row.batch) == (rate, memory_gb, 1)
    assert (row.workload.input_tokens.low, row.workload.output_tokens.low) == (256, 512)
    assert row.engine == "vLLM 0.4.2"
    assert row.rate_rps == pytest.approx(1000 / latency_ms, abs=0.005)  # one request at a time
    judged = judge(row, hardware(row))
    assert not judged.plausible
    assert judged.floor_s / row.latency_s == pytest.approx(times_below, abs=0.05)
    assert judged.text.startswith(f"implausible: {times_below} times the bandwidth limit")


def test_every_other_reference_is_plausible_and_none_far_from_its_limit() -> None:
    shares = [judge(row, hardware(row)).share for row in references() if row.source != GUIDE]
    assert len(shares) >= 30
    assert min(shares) > 0.2
    assert max(shares) < 0.9


def test_a_reference_that_claims_more_than_its_limit_is_found(  # whatever its source says
) -> None:
    row = next(r for r in references() if r.source != GUIDE)
    judged = judge(row, hardware(row))
    assert judged.plausible
    faster = replace(row, rate_rps=row.rate_rps * 1.01 / judged.share)
    assert not judge(faster, hardware(row)).plausible
    small = replace(hardware(row), memory_bytes=4 * 2**30)
    assert not judge(row, small).plausible
    assert "does not fit" in judge(row, small).text


def test_every_reference_has_a_source_and_a_known_class() -> None:
    for row in references():
        assert row.source
        assert row.url or row.source == GUIDE
        assert find_class(row.gpu_class).name == row.gpu_class


# What-if: published pairs of the same model, build and load on two classes say whether the band can be believed.


def _pairs() -> list[tuple[Reference, Reference]]:
    rows = [row for row in references() if row.batch is None]
    return [
        (a, b)
        for a in rows
        for b in rows
        if a.gpu_class != b.gpu_class
        and (a.model, a.workload, a.quantization, a.engine) == (b.model, b.workload, b.quantization, b.engine)
    ]


def _estimate(a: Reference, b: Reference) -> Interval:
    known = Interval(a.rate_rps, a.rate_rps, a.rate_rps)
    estimate = what_if(known, roofline_for(a, hardware(a)), roofline_for(b, hardware(b)))
    assert estimate is not None
    return estimate.rate


@pytest.mark.parametrize(
    ("a", "b"),
    _pairs(),
    ids=lambda r: f"{r.model}-{r.gpu_class}-{r.workload.input_tokens.low}-{r.workload.output_tokens.low}",
)
def test_the_band_holds_what_was_published_on_the_other_class(a: Reference, b: Reference) -> None:
    # Published figures have no interval; 2% is their least noise.
    band = _estimate(a, b)
    assert band.low * 0.98 <= b.rate_rps <= band.high * 1.02


def test_the_value_is_near_what_was_published_on_the_other_class() -> None:
    pairs = _pairs()
    assert len(pairs) >= 20
    errors = sorted(abs(_estimate(a, b).value / b.rate_rps - 1) for a, b in pairs)
    assert errors[len(errors) // 2] < 0.06
    assert errors[-1] < 0.30


# The guide's formula and tiers

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
    check = next(c for c in check_tiers(RATES) if c.tier.text == text and f"{c.gpu_class} {c.build}" == build)
    assert check.agrees is False
    assert (check.needed, check.needed_batching) == (needed, with_batching)
    assert float(check.carries_qps or 0) == pytest.approx(carries, abs=0.005)


def test_tiers_without_a_rate_are_not_checked_and_a_faster_rate_agrees() -> None:
    unknown = [check.gpu_class for check in check_tiers(RATES) if check.agrees is None]
    assert unknown == ["a100-40gb", "a100-80gb"]
    assert all(check.agrees for check in check_tiers({("a10g", "any"): "5.2"}) if check.rate_rps)
    assert (Fraction(3, 2), Fraction(5, 2)) == BATCHING_GAIN
