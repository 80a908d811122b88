"""Which engine served is a part of what makes results comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.history.comparable import changed, differences
from pytest_gpucap.history.compare import compare_variants
from pytest_gpucap.history.store import Run
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.windows import Phase, WindowId
from tests.history.made import ENVIRONMENT, result, session, windows


def by(engine: str | None, **environment: Any) -> Result:
    found = result()
    served = msgspec.structs.replace(ENVIRONMENT, engine=engine, **environment)
    return msgspec.structs.replace(found, environment=served)


def test_results_of_two_engines_are_not_compared_as_base_and_head() -> None:
    base, head = by("vllm"), by("sglang", server="SGLang 0.5.23")
    assert differences(base, head) == ["engine: vllm -> sglang"]


def test_two_engines_are_variants_of_one_model() -> None:
    base, head = by("vllm"), by("sglang", server="SGLang 0.5.23", server_args={"tp_size": 1})
    assert differences(base, head, variants=True) == []
    told = changed(base, head, variants=True)
    assert "engine: vllm -> sglang" in told
    assert "server: vLLM 0.26.0 -> SGLang 0.5.23" in told
    other = msgspec.structs.replace(head, workload=msgspec.structs.replace(head.workload, ignore_eos=False))
    assert differences(base, other, variants=True) == ["workload ignore_eos: true -> false"]


def test_latencies_of_two_engines_stand_side_by_side_at_an_equal_rate(tmp_path: Path) -> None:
    """Each had arrivals of its own: the procedure led up to the design rate in another number of phases."""
    base = msgspec.structs.replace(by("vllm"), test="a", name="on vLLM")
    slower = [
        msgspec.structs.replace(each, offered_rps=16.3) if each.offered_rps else each for each in windows(slower=1.5)
    ]
    head = msgspec.structs.replace(by("sglang"), test="b", name="on SGLang", samples=tuple(slower))
    run = Run(tmp_path / "result.json", session(base, head))
    (found,) = compare_variants((run, "on vLLM"), (run, "on SGLang"), 0.05)
    assert found.comparison is not None
    latencies = {each.limit: each for each in found.comparison.latencies}
    assert set(latencies) == {"e2e_p95", "ttft_p95", "ttft_p50", "e2e_p50"}  # these windows have no others
    for each in latencies.values():
        assert each.load == "16.2 req/s"
        assert each.head_s == pytest.approx(1.5 * each.base_s)
        assert each.ratio is not None
        assert each.ratio.low < 1.5 < each.ratio.high
    # At another design rate they are not: then the closed loop tells, which knows no TTFT.
    elsewhere = msgspec.structs.replace(head, design_rate_rps=16.3)
    run = Run(tmp_path / "result.json", session(base, elsewhere))
    (found,) = compare_variants((run, "on vLLM"), (run, "on SGLang"), 0.05)
    assert found.comparison is not None
    assert {(each.limit, each.load) for each in found.comparison.latencies} == {
        ("e2e_p95", "70 in flight"),
        ("e2e_p50", "70 in flight"),
    }


def test_latencies_stand_side_by_side_whatever_the_checks_concluded(tmp_path: Path) -> None:
    """One check decided by a direct run, which fits no model and finds no rate."""
    direct = tuple(
        msgspec.structs.replace(each, window=WindowId(Phase.DIRECT, slice=each.window.slice, slices=3))
        for each in windows(slower=1.5)
        if each.kind == "open"
    )
    fitted = msgspec.structs.replace(by("vllm"), test="a", name="on vLLM")
    unfitted = msgspec.structs.replace(by("sglang"), test="b", name="on SGLang", samples=direct, sustainable_rate=None)
    run = Run(tmp_path / "result.json", session(fitted, unfitted))
    for base, head, factor in (("on vLLM", "on SGLang", 1.5), ("on SGLang", "on vLLM", 1 / 1.5)):
        (found,) = compare_variants((run, base), (run, head), 0.05)
        assert found.comparison is not None
        assert found.comparison.ratio is None
        assert any(each.startswith("engine: ") for each in found.comparison.changed)
        for each in found.comparison.latencies:
            assert each.load == "16.2 req/s"
            assert each.head_s == pytest.approx(factor * each.base_s)
        assert {each.limit for each in found.comparison.latencies} == {"e2e_p95", "ttft_p95", "ttft_p50", "e2e_p50"}
        if head == "on vLLM":
            assert found.comparison.decision is RegressionDecision.NOT_COMPARABLE
            assert found.comparison.reason == "on SGLang has no sustainable rate"


@pytest.mark.parametrize("known", ["vllm", None])
def test_an_early_file_does_not_say_its_engine_and_was_of_vllm(known: str | None) -> None:
    assert differences(by(None), by(known)) == []
    assert differences(by(None), by("sglang")) == ["engine: vllm -> sglang"]


def test_behind_a_url_any_engine_may_stand() -> None:
    behind = by(None, url="http://gpu:8000/v1")
    assert differences(behind, by("sglang")) == []
    assert differences(behind, by("vllm")) == []


def test_an_early_file_is_read_without_engine_and_missing_evidence() -> None:
    raw = msgspec.to_builtins(ENVIRONMENT)
    assert not {"engine", "not_told"} & set(raw)
    assert msgspec.convert(raw, Environment).not_told == ()
