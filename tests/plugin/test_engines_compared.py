"""Two ways to serve one model in one session, compared at an equal rate: simulated engines, and real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from tests.plugin.real_session import RealSession

USUAL = {f"{metric}_p{percent}" for metric in ("ttft", "tpot", "itl", "e2e") for percent in (50, 95)}
SUITE = """
    import pytest

    pytestmark = pytest.mark.gpucap(qps=10, gpus=1, headroom=1.0)

    @pytest.mark.gpucap(name="on vLLM")
    @pytest.mark.vllm(max_num_seqs=11)
    def test_vllm(gpucap):
        gpucap.check()

    @pytest.mark.gpucap(name="on SGLang")
    @pytest.mark.engine("sglang")
    def test_sglang(gpucap):
        gpucap.check()
"""


def test_two_simulated_engines_at_an_equal_rate(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest(
        "--gpu-class=sim:fast", "--gpucap-model=synthetic:tiny", "--gpucap-inconclusive=pass"
    ).assert_outcomes(passed=2)
    capsys.readouterr()
    words = ["compare", ".gpucap/result.json", ".gpucap/result.json", "--variants", "on vLLM", "on SGLang"]
    assert main([*words, "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["results"]
    latencies = {each["limit"]: each for each in found["comparison"]["latencies"]}
    assert set(latencies) >= USUAL
    (load,) = {each["load"] for each in latencies.values()}
    assert load.endswith(" req/s")
    # On the first, requests wait for one of few places, where steps are shorter with fewer in flight.
    assert latencies["ttft_p95"]["base_s"] > 2 * latencies["ttft_p95"]["head_s"]
    assert latencies["tpot_p50"]["base_s"] < latencies["tpot_p50"]["head_s"]
    assert main(words) == 0
    assert_side_by_side(capsys.readouterr().out, load)


def assert_side_by_side(shown: str, load: str) -> None:
    """That p50 and p95 of each latency of both stand under one load."""
    _, _, table = shown.partition(f"\n  at {load} ")
    for limit in USUAL:
        metric, _, percent = limit.partition("_")
        row = rf"^  {percent} {metric.upper()} +([0-9.]+ [mu]?s +){{2}}[+-][0-9.]+% \("
        assert re.search(row, table, re.MULTILINE), shown


def compared(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], str]:
    """What ``gpucap compare`` says of two results: as JSON, and on the terminal."""
    capsys.readouterr()
    assert main(["compare", *words, "--format", "json"]) in {0, 1}
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert main(["compare", *words]) in {0, 1}
    return found["comparison"], capsys.readouterr().out


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_two_real_engines_at_an_equal_rate(
    real_session: RealSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM and transformers serve, and llama.cpp where it is: what is told of each, and what is compared."""
    if "test_transformers" not in real_session.failures:
        pytest.skip("no Accelerate beside Transformers: `make vllm` installs it")
    # On a busy machine an engine may carry less than what is asked of it.
    (ours,) = real_session.results["test_vllm"]
    others = [each for test in ("test_transformers", "test_llama_cpp") for each in real_session.results.get(test, ())]
    assert len(others) == len({"test_transformers", "test_llama_cpp"} & set(real_session.failures))
    kept, file = real_session.kept, str(real_session.file)
    assert (ours.environment.engine, ours.environment.not_told) == ("vllm", ())
    titles = {"transformers": "transformers serve ", "llama.cpp": "llama.cpp "}
    for other in others:
        told = other.environment
        assert other.outcome is not Outcome.INVALID
        assert (told.model, other.workload.ignore_eos, other.simulated) == ("synthetic:tiny", True, False)
        assert (told.server or "").startswith(titles[str(told.engine)])
        assert "emptying its caches" in told.not_told
        comparison, shown = compared(capsys, file, file, "--variants", ours.name, other.name)
        missing = ", ".join(told.not_told)
        assert {f"engine: vllm -> {told.engine}", f"not told: none -> {missing}"} <= set(comparison["changed"])
        assert shown.startswith(f"base: on vLLM, {file}")
        assert f"\nhead: {other.name}, {file}" in shown
        latencies = {each["limit"]: each for each in comparison["latencies"]}
        # Few tokens of a quick engine arrive together, and then have no time between them.
        sure = {limit for limit in USUAL if limit.startswith(("ttft", "e2e"))}
        assert set(latencies) >= sure
        loads = {latencies[limit]["load"] for limit in sure}
        assert all(load.endswith(" req/s") for load in loads)
        for limit, found in latencies.items():
            assert found["ratio"]["low"] < found["head_s"] / found["base_s"] < found["ratio"]["high"]
            metric, percent = limit.split("_p")
            for side, result in (("base_s", ours), ("head_s", other)):
                kind = "open" if found["load"].endswith(" req/s") else "closed"
                seen = [each.latencies[metric].percentile(int(percent)) for each in result.samples if each.kind == kind]
                assert min(filter(None, seen)) <= found[side] <= max(seen)
        assert all(f"\n  at {load} " in shown for load in loads)
        # Without a word on variants one engine's rate is no baseline of the other's.
        moved = msgspec.structs.replace(other, test=ours.test, name=ours.name)
        ours_alone, alone = tmp_path / "vllm.json", tmp_path / f"{told.engine}.json"
        result_file.write(ours_alone, msgspec.structs.replace(kept, results=(ours,)))
        result_file.write(alone, msgspec.structs.replace(kept, results=(moved,)))
        mixed, shown = compared(capsys, str(ours_alone), str(alone))
        assert mixed["decision"] == "NOT COMPARABLE"
        assert f"engine: vllm -> {told.engine}" in mixed["differs"]
        assert (mixed.get("ratio"), mixed["latencies"]) == (None, [])
        assert f"differs: engine: vllm -> {told.engine}" in shown
