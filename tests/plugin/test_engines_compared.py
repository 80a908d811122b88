"""Two engines of one model in one session, compared at an equal rate."""

from __future__ import annotations

import json
import re

import pytest

from pytest_gpucap.__main__ import main

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
    assert set(latencies) >= {f"{metric}_p{p}" for metric in ("ttft", "tpot", "itl", "e2e") for p in (50, 95)}
    (load,) = {each["load"] for each in latencies.values()}
    assert load.endswith(" req/s")
    # On the first, requests wait for one of few places, where steps are shorter with fewer in flight.
    assert latencies["ttft_p95"]["base_s"] > 2 * latencies["ttft_p95"]["head_s"]
    assert latencies["tpot_p50"]["base_s"] < latencies["tpot_p50"]["head_s"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for name in ("TTFT", "TPOT", "ITL", "E2E"):
        assert re.search(rf"p50 {name} at {re.escape(load)} .* -> ", shown), shown
