"""Published figures against physics: a computation finds the figures that no server can have reached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.guide import SOURCE
from pytest_gpucap.planning.other_class import what_if
from pytest_gpucap.planning.references import Reference, plausibility_of, references, roofline_for
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.roofline.limits import Hardware
from pytest_gpucap.roofline.served import hardware_of


def hardware(reference: Reference) -> Hardware:
    found = hardware_of(find_class(reference.gpu_class))
    assert found is not None
    return found


def test_every_other_reference_is_plausible_and_none_far_from_its_limit() -> None:
    shares = [plausibility_of(row, hardware(row)).share for row in references() if row.source != SOURCE]
    assert len(shares) >= 30
    assert min(shares) > 0.2
    assert max(shares) < 0.9


def test_a_reference_above_its_limit_is_implausible_whatever_its_source() -> None:
    row = next(r for r in references() if r.source != SOURCE)
    found = plausibility_of(row, hardware(row))
    assert found.plausible
    faster = replace(row, rate_rps=row.rate_rps * 1.01 / found.share)
    assert not plausibility_of(faster, hardware(row)).plausible
    small = replace(hardware(row), memory_bytes=4 * 2**30)
    assert not plausibility_of(row, small).plausible
    assert "does not fit" in plausibility_of(row, small).text


def test_every_reference_has_a_source_and_a_known_class() -> None:
    for row in references():
        assert row.source
        assert row.url or row.source == SOURCE
        assert find_class(row.gpu_class).name == row.gpu_class


# The same model, build and load were published for two classes: does the band of the estimate hold the other figure?


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
