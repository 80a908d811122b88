"""Which evidence a plan uses for a GPU class, and what it says where there is none."""

from __future__ import annotations

from pytest_gpucap.engines.synthetic import architecture
from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.evidence import Evidence, NoEvidence, Provenance, best_evidence
from pytest_gpucap.planning.service import Service
from pytest_gpucap.requirement import LatencyLimit, Length, Slo, Workload
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.vllm_arguments import VllmArguments

WORKLOAD = Workload(input_tokens=Length.fixed(256), output_tokens=Length.fixed(512))
STRICT = Slo((LatencyLimit.parse("e2e_p95", "4s"),))


def on(gpu_class: str) -> Roofline:
    config = architecture("synthetic:qwen2-1.5b").config
    found = Service("synthetic:qwen2-1.5b", VllmArguments(), WORKLOAD, Slo(), config).roofline(find_class(gpu_class))
    assert found is not None
    return found


def rate(provenance: Provenance, value: float, low: float | None = None, high: float | None = None) -> Evidence:
    return Evidence(provenance, value, low, high, "somewhere")


def test_the_best_provenance_wins_and_then_the_narrowest_interval() -> None:
    wide, narrow = rate(Provenance.MEASURED, 9, 1, 99), rate(Provenance.MEASURED, 8, 7, 9)
    others = [rate(Provenance.ESTIMATE, 1, 0.5, 2), rate(Provenance.PUBLISHED, 2), rate(Provenance.BASELINE, 3, 2, 4)]
    assert best_evidence([*others, wide, narrow], None, Slo()) == narrow
    assert best_evidence(others, None, Slo()) == others[2]
    assert best_evidence(others[:2], None, Slo()) == others[1]
    assert best_evidence(others[:1], on("t4"), Slo()) == others[0]


def test_without_a_rate_the_physical_limit_is_the_evidence() -> None:
    found = best_evidence([], on("t4"), Slo())
    best = on("t4").best()
    assert isinstance(found, Evidence)
    assert best is not None
    assert (found.provenance, found.rate_rps) == (Provenance.LIMIT, best.rate_rps)


def test_where_physics_allows_no_rate_an_estimate_does_not_count_and_a_measurement_does() -> None:
    assert isinstance(best_evidence([], on("t4"), STRICT), NoEvidence)
    assert isinstance(best_evidence([rate(Provenance.ESTIMATE, 3, 2, 4)], on("t4"), STRICT), NoEvidence)
    measured = rate(Provenance.MEASURED, 3, 2, 4)
    assert best_evidence([measured], on("t4"), STRICT) == measured


def test_the_reason_says_why_there_is_no_rate() -> None:
    strict, unknown = best_evidence([], on("t4"), STRICT), best_evidence([], None, Slo())
    assert isinstance(strict, NoEvidence)
    assert "cannot keep the latency limits" in strict.reason
    assert isinstance(unknown, NoEvidence)
    assert "no limit known" in unknown.reason
