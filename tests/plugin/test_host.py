"""Whole runs against a real server that the CPU limits, beside real processes that take it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.problems import ProblemKind, ProblemSource
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.telemetry import HostSummary
from pytest_gpucap.telemetry.host_health import MOST_TAKEN

SERVER = Path(__file__).with_name("burning_server.py")
NAMED = 5
SUITE = """
import pytest

pytestmark = pytest.mark.gpucap(input_tokens=32, output_tokens=8, endpoint="completions", e2e_p95="30s")

def test_check(gpucap):
    gpucap.check()

def test_sample(gpucap):
    gpucap.sample(rate=5, duration="3s")
"""
LOOP = """
import sys, threading
def spin():
    while True:
        pass
threading.Thread(target=spin, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def stranger(*command: str) -> Iterator[tuple[int, str]]:
    """A process that is no child of this one, and ends with its input; its id, and the first line that it writes."""
    shell = 'exec 3<&0; "$@" <&3 & echo $!'  # its parent, the shell, ends at once
    with subprocess.Popen(
        ["sh", "-c", shell, "sh", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.stdout.readline()
        process.stdin.close()
        process.stdout.read()  # until it has ended


@pytest.fixture
def burning() -> Iterator[tuple[str, int]]:
    """The server's URL and process id."""
    with stranger(sys.executable, str(SERVER)) as (pid, port):
        yield f"http://127.0.0.1:{int(port)}", pid


@pytest.fixture(autouse=True)
def short_and_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short phases, and a client that may be late."""
    for name, value in {
        **dict.fromkeys(("constants.HOLD_S", "constants.LOW_HOLD_S", "constants.OPEN_S"), 3.0),
        "constants.WARM_UP_S": 1.0,
    }.items():
        monkeypatch.setattr(f"pytest_gpucap.measure.{name}", value)
    for name in ("LATENESS_FLOOR_S", "RATE_SHARE", "CPU_LIMIT"):
        monkeypatch.setattr(f"pytest_gpucap.load.self_check.{name}", 1e6)


def measured(pytester: pytest.Pytester, url: str, *arguments: str) -> tuple[pytest.RunResult, Result]:
    pytester.makepyfile(test_suite=SUITE)
    run = pytester.runpytest(f"--gpucap-url={url}", "--target-qps=5", *arguments)
    [result] = result_file.read(pytester.path / ".gpucap" / "result.json").results
    return run, result


def host_of(result: Result) -> HostSummary:
    assert result.telemetry is not None
    assert result.telemetry.host is not None
    return result.telemetry.host


@pytest.mark.slow
def test_a_server_without_its_cores_is_not_measured(pytester: pytest.Pytester, burning: tuple[str, int]) -> None:
    url, server = burning
    with ExitStack() as started:
        loops = [started.enter_context(stranger(sys.executable, "-c", LOOP)) for _ in range(3)]
        run, result = measured(pytester, url, "-k", "check", "--gpucap-host-check=error")
    pids = {pid for pid, _ in loops}
    host = host_of(result)
    assert result.outcome == "INVALID"
    [problem] = [each for each in result.problems if each.kind is ProblemKind.OTHERS]
    assert problem.kind in {each.kind for each in host.disturbances}
    assert problem.text.startswith("other processes used ")
    # The busiest are named, of all the time as of the one that was too busy: these, unless others are as busy.
    in_text = {int(pid) for pid in re.findall(r"pid (\d+) \S+ ", problem.text)}
    for named in ({each.pid for each in host.others}, in_text):
        assert named & pids or len(named) == NAMED
        assert server not in named
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["INVALID: *other processes used *", "host *cores busy*"])

    # Without them it is measured, unless the run itself counted others that are as bad.
    _, result = measured(pytester, url, "-k", "sample", "--gpucap-host-check=error")
    host = host_of(result)
    assert not {each.pid for each in host.others} & {*pids, server}
    assert bool(host.disturbances) is any(each.source is ProblemSource.HOST for each in result.problems)
    if any(each.kind is ProblemKind.OTHERS for each in result.problems):
        assert (host.other_cores or 0.0) > MOST_TAKEN * host.cores / 2
    assert host.other_cores is not None, "the server is known by its port, though it is no child of the run"


def test_a_wrong_value_is_one_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    run = pytester.runpytest("--gpucap-host-check=never")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["*--gpucap-host-check: invalid choice: 'never'*"])
