"""A whole session that is stopped in the middle of a measurement and continued: never a verdict about the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.plugin.inner import OWN_LEASE
from tests.plugin.test_dying_servers import hanging

SUITE = """
import pytest

@pytest.mark.gpucap(qps=20, gpus=1, headroom=1, input_tokens=32, output_tokens=16, max_time="90s", e2e_p95="2s")
def test_it(gpucap):
    gpucap.check()
"""
SHORT = f"""
{OWN_LEASE}
from pytest_gpucap.measure import constants

constants.WARM_UP_S = constants.LOW_HOLD_S = constants.HOLD_S = 4.0
constants.MOST_CYCLES = 2  # how sure the verdict is does not matter here
"""
SINCE_S = {"hold at": 1.5, "design rate 1": 3.0}
"""The phase has begun to count. On a busy machine it begins some time after it was announced."""
SLEEP_S = 4.0
"""Twice the latency limit: requests that were in flight are answered meanwhile, and read too late."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phases", "kinds"), [(["hold at"], set()), (["hold at"] * 2, {"suspended"}), (["design rate 1"], {"late"})]
)
def test_a_suspended_session_is_no_verdict_about_the_server(tmp_path: Path, phases: list[str], kinds: set[str]) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text(SHORT)
    words = ["-m", "pytest", "-pno:cacheprovider", "-pno:benchmark", "-ogpucap_host_check=warn", "--gpu-class=cpu"]
    with hanging("never", 10**6) as url:
        session = subprocess.Popen(
            [sys.executable, *words, f"--gpucap-url={url}"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        try:
            for phase in phases:
                assert session.stdout is not None
                for line in session.stdout:
                    if phase in line:
                        break
                time.sleep(SINCE_S[phase])
                suspend(session.pid)
            said = session.communicate()[0]
        finally:
            if session.poll() is None:
                os.killpg(session.pid, signal.SIGKILL)
                session.wait()
    (found,) = json.loads((tmp_path / ".gpucap" / "result.json").read_text())["results"]
    # On a busy machine a measurement may be INVALID for another reason, and that too is no verdict about the server.
    assert found["outcome"] == "INVALID" or (not kinds and found["outcome"] != "FAIL"), said
    assert {each["source"] for each in found["problems"]} <= {"load generator", "host"}, found["problems"]
    assert {each["kind"] for each in found["problems"]} & {"suspended", "late"} >= kinds, found["problems"]
    assert kinds or "suspended" not in {each["kind"] for each in found["problems"]}, found["problems"]
    assert ("lost to a suspension" in found["spent_s"]) == (phases[0] == "hold at"), found["spent_s"]


def suspend(pid: int) -> None:
    """Stop the process and its children for `SLEEP_S`."""
    every = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for each in every:
        each.send_signal(signal.SIGSTOP)
    time.sleep(SLEEP_S)
    for each in every:
        each.send_signal(signal.SIGCONT)
