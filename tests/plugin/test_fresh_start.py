"""A regression is confirmed from a fresh start: a real server process ends, and another one is measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from pytest_gpucap.measure import constants
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lateness_forgiven")]

SERVER = Path(__file__).with_name("fast_vllm.py")
SUITE = """
    import pytest

    @pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
    @pytest.mark.gpucap(qps=2, gpus=1, input_tokens=32, output_tokens=32, endpoint="completions", e2e_p95="1500ms")
    def test_chat(gpucap):
        gpucap.measure()
"""

PROFILE = """
[engine]
base_s = 0.02
per_seq_s = 0.002
per_prompt_token_s = 0.00001
warm_extra = 0.0
[workload]
input_tokens = 32
output_tokens = 32
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite whose measurements take seconds: what they find is rough, and roughly enough here."""
    for name, value in {
        "WARM_UP_S": 2.0,
        "SEARCH_HOLD_S": 3.0,
        "HOLD_S": 3.0,
        "OPEN_S": 3.0,
        "LEAST_PHASE_S": 1.0,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name, times in {"SEARCH_MOVES": 2, "MEASURE_CYCLES": 1}.items():
        monkeypatch.setattr(constants, name, times)
    # Some nine requests a second: no strain for the load generator, however busy this machine is.
    profile = pytester.path / "steady.toml"
    profile.write_text(PROFILE)
    monkeypatch.setenv("FAST_VLLM_PROFILE", str(profile))
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest("--gpu-class=cpu", f"--gpucap-vllm-python={pytester.path / 'python'}", *arguments)


def logs(pytester: pytest.Pytester) -> set[str]:
    return {path.name for path in pytester.path.glob(".gpucap/logs/*.log")}


def test_the_server_is_started_again(suite: pytest.Pytester) -> None:
    run(suite, "--gpucap-save=main").assert_outcomes(passed=1)
    before = logs(suite)
    assert len(before) == 1
    baseline = suite.path / "gpucap-baselines" / "main.json"
    _times(baseline, 5.0)
    result = run(suite, "--gpucap-compare=main", "-v")
    result.assert_outcomes(failed=1)
    assert len(logs(suite) - before) == 2
    result.stdout.fnmatch_lines(
        ["*: starting vLLM with *", "*% against main: measuring again from a fresh start", "*: starting vLLM with *"]
    )
    (found,) = result_file.read(suite.path / ".gpucap" / "result.json").results
    assert found.comparison is not None
    assert found.comparison.confirmed is True
    assert found.spent_s["confirmation"] > 0
    ours = psutil.Process(os.getpid()).children(recursive=True)
    assert not [process for process in ours if str(SERVER) in " ".join(process.cmdline())]


def _times(path: Path, factor: float) -> None:
    """Make the rates of a saved run those of a faster machine."""
    content = result_file.read(path)
    (result,) = content.results
    rate = result.sustainable_rate
    assert rate is not None
    faster = Interval(rate.value * factor, rate.low * factor, rate.high * factor, rate.confidence)
    result = msgspec.structs.replace(result, sustainable_rate=faster)
    result_file.write(path, msgspec.structs.replace(content, results=(result,)))
