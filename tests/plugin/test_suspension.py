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

from tests.plugin.test_dying_servers import hanging

SUITE = """
import pytest

@pytest.mark.gpucap(qps={qps}, gpus=1, headroom=1, input_tokens=32, output_tokens=16, max_time="90s", e2e_p95="2s")
def test_it(gpucap):
    gpucap.check()
"""
SINCE_S = 1.5
"""The phase has begun to count."""
SLEEP_S = 4.0
"""Twice the latency limit: requests that were in flight are answered meanwhile, and read too late."""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["hold at", "design rate 1"])
def test_a_session_that_was_suspended_is_invalid(tmp_path: Path, phase: str) -> None:
    (tmp_path / "test_it.py").write_text(SUITE.format(qps=20))
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
            assert session.stdout is not None
            for line in session.stdout:
                if phase in line:
                    break
            time.sleep(SINCE_S)
            every = [psutil.Process(session.pid), *psutil.Process(session.pid).children(recursive=True)]
            for each in every:
                each.send_signal(signal.SIGSTOP)
            time.sleep(SLEEP_S)
            for each in every:
                each.send_signal(signal.SIGCONT)
            said = session.communicate()[0]
        finally:
            if session.poll() is None:
                os.killpg(session.pid, signal.SIGKILL)
                session.wait()
    (found,) = json.loads((tmp_path / ".gpucap" / "result.json").read_text())["results"]
    assert found["outcome"] == "INVALID", said
    assert {each["source"] for each in found["problems"]} <= {"load generator", "host"}, found["problems"]
