"""A server that ends, or stops answering, in the middle of a measurement: INVALID with the reason, never a verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pytest_gpucap.measure import liveness
from tests.plugin.inner import OWN_LEASE
from tests.plugin.real_session import RealSession

SILENCE = """
from pytest_gpucap.load import self_check
from pytest_gpucap.measure import constants, liveness

liveness.SILENCE_S = 4.0
constants.WARM_UP_S = constants.LOW_HOLD_S = constants.HOLD_S = constants.SEARCH_HOLD_S = 4.0
self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.CPU_LIMIT = self_check.STOPPED_S = 1e6
"""
SUITE = """
    import pytest

    @pytest.mark.gpucap(qps=5, headroom=1, input_tokens=32, output_tokens=16, max_time="60s", e2e_p95="2s")
    def test_it(gpucap):
        gpucap.{call}
"""
RESTARTED = "the server was restarted in the middle of the measurement: the process * that answered has ended"
SUITE_OF_CHECK = dedent(SUITE.format(call="check()"))


@contextmanager
def hanging(how: str, after: int = 0) -> Iterator[str]:
    environment = {**os.environ, "HANGS": how, "HANGS_AFTER": str(after), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hanging_server.py"))],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        process_group=0,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def the_result(pytester: pytest.Pytester) -> dict[str, Any]:
    (found,) = json.loads((pytester.path / ".gpucap" / "result.json").read_text())["results"]
    return dict(found)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("how", "after", "call", "words"),
    [
        ("all", 30, "check()", "the server stopped answering: no token came for * s while * requests were in flight"),
        ("all", 0, "measure()", "the server stopped answering: no token came for * s while * requests were in flight"),
        ("half", 0, "sample(rate=20, duration='6s')", "the server stopped answering *: they hang for over 4 s*"),
        (
            "middle",
            40,
            "check()",
            "the server stopped answering: no token came for * s while * requests were in flight",
        ),
        ("gone", 40, "check()", "the server can answer no more: *refused*"),
        ("replaced", 40, "sample(rate=20, duration='6s')", RESTARTED),
    ],
)
def test_a_server_that_stops_answering_is_given_up(
    pytester: pytest.Pytester, how: str, after: int, call: str, words: str
) -> None:
    pytester.makeconftest(SILENCE)
    pytester.makepyfile(test_suite=SUITE.format(call=call).replace('e2e_p95="2s"', 'e2e_p95="1500ms"'))
    with hanging(how, after) as url:
        result = pytester.runpytest("--gpucap-url", url)
    result.assert_outcomes(failed=1)
    found = the_result(pytester)
    assert found["outcome"] in {"INVALID", None}  # None: of a measurement without a verdict
    pytest.LineMatcher([found["problems"][0]["text"]]).fnmatch_lines([f"*{words}"])
    assert "Traceback" not in result.stdout.str()


def test_the_documented_time_is_the_one_that_is_waited() -> None:
    page = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")
    assert f"no token came for {liveness.SILENCE_S:g} s with requests in flight" in page


@pytest.mark.usefixtures("no_gpu")
def test_a_server_that_runs_out_of_memory_under_load_says_so(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fast_vllm.py")} "$@"\n')
    python.chmod(0o755)
    pytester.makeconftest(OWN_LEASE)
    said = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22 GiB"
    )
    monkeypatch.setenv("FAST_VLLM_DIES", f"ERROR 11-29 09:00:00 [core.py:700] {said}")
    pytester.makepyfile(test_suite="import pytest\npytestmark = pytest.mark.vllm(model='/models/m')\n" + SUITE_OF_CHECK)
    result = pytester.runpytest("--gpu-class=cpu", f"--gpucap-vllm-python={python}")
    result.assert_outcomes(failed=1)
    found = the_result(pytester)
    assert found["outcome"] == "INVALID"
    assert found["problems"][0]["text"].startswith(
        "the vLLM server ended with exit code 1 in the middle of the measurement: out of GPU memory (tried to allocate "
        "2.00 GiB); lower gpu_memory_utilization"
    )
    result.stdout.fnmatch_lines(["the last * lines of its log:", f"*{said[:60]}*", "whole log: *"])


@pytest.mark.vllm_cpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("killed", "the vLLM server *engine VLLM::EngineCore (pid *) ended*"),
        ("stopped", "the vLLM server stopped answering: its engine VLLM::EngineCore (pid *) is stopped"),
    ],
)
def test_an_engine_that_dies_under_load(real_session: RealSession, how: str, words: str) -> None:
    """It fails a test that is expected to fail, since what dies is no budget that does not hold."""
    (found,) = real_session.results[f"test_engine[{how}]"]
    pytest.LineMatcher([found.problems[0].text]).fnmatch_lines([f"*{words}"])
    assert real_session.failed(f"test_engine[{how}]")
    shown = real_session.failures[f"test_engine[{how}]"] or ""
    # The end of the log stands under it.
    pytest.LineMatcher(shown.splitlines()).fnmatch_lines(["the last * lines of its log:", "whole log: *"])
    assert "Traceback (most recent call last)" not in shown.partition("the last ")[0]
