"""Two ways to serve one model in one session, compared at an equal rate: simulated engines, and real servers."""

from __future__ import annotations

import json
import re

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.results import result_file

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


REAL = """
    import pytest

    pytestmark = pytest.mark.gpucap(
        # Answers last longer than a busy machine lets a process wait: their tokens do not arrive at once.
        qps=4, gpus=1, headroom=1.0, input_tokens=32, output_tokens=128, e2e_p95="20s", max_time="60s"
    )

    @pytest.mark.gpucap(name="few")
    @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512, max_num_seqs=4)
    def test_few(gpucap):
        gpucap.check()

    @pytest.mark.gpucap(name="many")
    @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512, max_num_seqs=16)
    def test_many(gpucap):
        gpucap.check()
"""
SHORT = """
    from pytest_gpucap.load import self_check
    from pytest_gpucap.measure import constants

    constants.WARM_UP_S = constants.HOLD_S = constants.LOW_HOLD_S = 3.0
    constants.OPEN_S = constants.DIRECT_S = 9.0
    self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.CPU_LIMIT = self_check.STOPPED_S = 1e6
"""
"""That both have their latencies at one rate shows in short phases too, however busy the machine is."""


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_two_real_servers_at_an_equal_rate(
    pytester: pytest.Pytester, vllm_python: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytester.makepyfile(test_it=REAL)
    pytester.makeconftest(SHORT)
    pytester.runpytest_subprocess(
        "--gpu-class=cpu",
        f"--gpucap-vllm-python={vllm_python}",
        "--gpucap-inconclusive=pass",
        "--gpucap-host-check=off",
    ).assert_outcomes(passed=2)
    few, many = result_file.read(pytester.path / ".gpucap" / "result.json").results
    for each in (few, many):
        assert (each.environment.server or "").startswith("vLLM ")
        assert not each.simulated
    assert (few.environment.max_num_seqs, many.environment.max_num_seqs) == (4, 16)
    capsys.readouterr()
    words = ["compare", ".gpucap/result.json", ".gpucap/result.json", "--variants", "few", "many"]
    assert main([*words, "--format", "json"]) in {0, 1}
    (found,) = json.loads(capsys.readouterr().out)["results"]
    assert "server argument max_num_seqs: 4 -> 16" in found["comparison"]["changed"]
    latencies = {each["limit"]: each for each in found["comparison"]["latencies"]}
    assert set(latencies) >= USUAL
    assert {each["load"] for each in latencies.values()} == {"4 req/s"}
    for each in latencies.values():
        # Side by side and measured: the interval holds the ratio of both.
        assert each["ratio"]["low"] < each["head_s"] / each["base_s"] < each["ratio"]["high"]
    assert main(words) in {0, 1}
    assert_side_by_side(capsys.readouterr().out, "4 req/s")
