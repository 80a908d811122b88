"""Estimates for classes that were not measured: what the band promises, and what it never does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.other_class import Operation, what_if
from pytest_gpucap.requirement import LatencyLimit, Length, Slo, Workload
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.model_shape import model_of
from pytest_gpucap.roofline.precision import precision_of
from pytest_gpucap.roofline.served import hardware_of

CONFIG = architecture("synthetic:qwen2-1.5b").config
MEASURED = Interval(44.0, 40.0, 48.0)
CLASSES = ("t4", "l4", "a10g", "l40s", "a100-80gb", "h100-sxm", "h200", "b200")


def on(gpu_class: str) -> Roofline:
    hardware = hardware_of(find_class(gpu_class))
    assert hardware is not None
    workload = Workload(input_tokens=Length.fixed(256), output_tokens=Length.fixed(512))
    return Roofline(model_of(CONFIG), precision_of(CONFIG), hardware, workload)


@pytest.mark.parametrize(("here", "there"), list(itertools.permutations(CLASSES, 2)))
@pytest.mark.parametrize("operation", [None, Operation(64, 0.29)])
def test_a_server_made_of_any_mixture_of_resources_stays_in_the_band(
    here: str, there: str, operation: Operation | None
) -> None:
    estimate = what_if(MEASURED, on(here), on(there), operation=operation)
    assert estimate is not None
    ratios = list(estimate.ratios.values())
    most = on(there).best()
    assert most is not None
    for shares in itertools.product((0.0, 0.25, 0.5, 1.0), repeat=len(ratios)):
        if sum(shares) == 1:
            rate = MEASURED.value / sum(share / ratio for share, ratio in zip(shares, ratios, strict=True))
            assert estimate.rate.low <= rate
            assert min(rate, most.rate_rps) <= estimate.rate.high * (1 + 1e-9)
    assert estimate.rate.low <= estimate.rate.value <= estimate.rate.high <= most.rate_rps
    assert "scaled from" in estimate.text


def test_the_same_class_is_the_measurement_itself() -> None:
    estimate = what_if(MEASURED, on("h200"), on("h200"), operation=Operation(64, 0.29))
    assert estimate is not None
    found = estimate.rate
    assert (found.value, found.low, found.high) == pytest.approx((44.0, 40.0, 48.0))


def test_only_the_share_that_the_limit_explains_scales_with_it() -> None:
    here, there = on("h200"), on("a10g")
    ratio = there.at(64).rate_rps / here.at(64).rate_rps
    for share in (0.0, 0.29, 1.0):
        estimate = what_if(MEASURED, here, there, operation=Operation(64, share))
        assert estimate is not None
        most = there.best()
        assert most is not None
        expected = 44.0 / (share / ratio + 1 - share)
        assert estimate.rate.value == pytest.approx(min(expected, most.rate_rps))


def test_a_class_that_cannot_keep_the_limits_gets_no_estimate() -> None:
    strict = Slo((LatencyLimit.parse("e2e_p95", "4s"),))
    assert what_if(MEASURED, on("h200"), on("t4"), strict) is None  # 512 tokens take it 5 s
    assert what_if(MEASURED, on("h200"), on("a10g"), strict) is not None


def test_a_class_that_cannot_hold_the_model_gets_no_estimate() -> None:
    small = on("t4")
    small = replace(small, hardware=replace(small.hardware, memory_bytes=3 * 2**30))
    assert what_if(MEASURED, on("h200"), small) is None


def test_without_the_arithmetic_rate_of_a_class_there_is_no_estimate() -> None:
    processor = on("h200")
    processor = replace(processor, hardware=replace(processor.hardware, operations_per_s={}))
    assert what_if(MEASURED, processor, on("t4")) is None
    assert what_if(MEASURED, on("t4"), processor) is None
