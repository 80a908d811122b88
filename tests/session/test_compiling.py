"""What a check calls of compiled code is compiled while a server starts, once, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.session.compiling import CompileAhead, is_compiled, marker_path
from tests.waiting import FOREVER_S, until

AS_A_CHECK = """
import math, os, select
from fractions import Fraction

from pytest_gpucap.estimate import forgetting, prefix_cache, queue_simulation, session_simulation
from pytest_gpucap.load.fastpath import reader
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.shared_memory import PhaseTable, RunTable, anonymous_memory
from pytest_gpucap.session import compile_ahead
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.load.sessions import with_session_lengths
from pytest_gpucap.workloads.sessions import with_sessions

FUNCTIONS = (
    reader._drain, queue_simulation.simulate, queue_simulation.simulate_replications, prefix_cache._found,
    session_simulation.simulate_sessions,
)

def types():
    return [sorted(map(str, function.signatures)) for function in FUNCTIONS]

compile_ahead.compile_reader()
compile_ahead.compile_queue_model()
compile_ahead.compile_sessions()
ahead = types()
assert all(len(each) == 1 for each in ahead), ahead

recorder = Recorder(RunTable.attach(anonymous_memory(RunTable.size(2)), 2).tokens[1], 0.0, 1)
table, _ = PhaseTable.create(8, 2)
recorder.begin(table)
reader.FastReader(select.epoll().fileno(), recorder).drain(0, math.inf, 0)
limits = [LatencyLimit.parse(name, "400ms") for name in ("ttft_p95", "itl_p99")]
workload, slo = Workload(Length.fixed(64), Length.fixed(64)), Slo((*limits,))
server = SimRunner(EngineModel(base_s=0.01, per_seq_s=1e-4, per_prompt_token_s=1e-5), 1)
declared = Requirement("x", Fraction(8), 1, Fraction(1), 1, workload, slo)
verdict = check(server, declared, Settings(max_time_s=90, seed=1))
assert verdict.measurement.sustainable_rate is not None
assert types() == ahead, types()

talk = with_session_lengths(with_sessions(workload, "turns=4 think=1s"))
server = SimRunner(EngineModel(base_s=0.01, per_seq_s=1e-4, per_prompt_token_s=1e-5, kv_tokens=2000), 1)
declared = Requirement("x", Fraction(8), 1, Fraction(1), 1, talk, slo)
forgetting.MOST_RUNS, forgetting.LEAST_RUNS = 1, 1
verdict = check(server, declared, Settings(max_time_s=60, seed=1, kv_tokens=2000))
assert verdict.measurement.forgetting_cost, verdict
assert types() == ahead, types()
"""
"""Checks in virtual time, after what is compiled ahead: they need no function for other types."""

KILLED = """
import sys
from pytest_gpucap.session.compiling import CompileAhead
ahead = CompileAhead()
ahead.begin()
print(ahead.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take any time to compile."""
    monkeypatch.setattr("pytest_gpucap.session.compiling._PATIENCE_S", FOREVER_S)


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for Numba's code."""
    folder = tmp_path / "compiled"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    return folder


def marker() -> Path:
    found = marker_path()
    assert found is not None
    return found


def test_a_check_calls_what_was_compiled_with_the_same_types() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", AS_A_CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_check_finds_all_that_was_compiled_ahead(nothing_compiled: Path) -> None:
    ahead, waited = CompileAhead(), list[str]()
    ahead.begin()
    assert ahead.pid is not None
    while ahead.pid is not None:
        ahead.finish(waited.append)
    assert set(waited) == {"waiting for compiled code, once after an installation"}
    assert is_compiled(marker())
    assert marker().parent == nothing_compiled

    again = CompileAhead()
    again.begin()
    assert again.pid is None  # nothing is left to do

    code = {path: path.stat().st_mtime_ns for path in nothing_compiled.rglob("*.nb?")}
    assert len(code) > 20
    marker().unlink()
    again = CompileAhead()
    again.begin()
    assert again.pid is not None
    again.finish(lambda _: None)
    assert is_compiled(marker())  # all was found, and nothing is compiled anew
    assert {path: path.stat().st_mtime_ns for path in nothing_compiled.rglob("*.nb?")} == code

    min(nothing_compiled.rglob("reader._drain*.nbi")).unlink()
    again = CompileAhead()
    again.begin()
    assert again.pid is not None
    again.close()


def test_it_ends_with_the_session_that_is_killed(nothing_compiled: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    session = subprocess.Popen(
        [sys.executable, "-c", KILLED], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with session:
        assert session.stdout is not None
        compiling = psutil.Process(int(session.stdout.readline()))
        assert compiling.ppid() == session.pid
        session.send_signal(signal.SIGKILL)
    until(lambda: not compiling.is_running() or compiling.status() == psutil.STATUS_ZOMBIE)
    assert not is_compiled(marker())


def test_what_is_cut_short_is_begun_again(nothing_compiled: Path) -> None:
    ahead = CompileAhead()
    ahead.begin()
    first = ahead.pid
    assert first is not None
    ahead.close()
    assert ahead.pid is None
    assert not psutil.pid_exists(first)
    ahead.begin()
    assert ahead.pid not in {None, first}
    ahead.close()


def test_a_wait_that_is_ended_ends_it(nothing_compiled: Path) -> None:
    def no_time_left(_: str) -> None:
        raise TimeoutError

    ahead = CompileAhead()
    ahead.begin()
    compiling = ahead.pid
    assert compiling is not None
    os.kill(compiling, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        ahead.finish(no_time_left)
    assert not psutil.pid_exists(compiling)


def test_a_failure_is_silent_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_folder = tmp_path / "file"
    no_folder.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(no_folder / "inside"))
    ahead = CompileAhead()
    ahead.begin()
    assert ahead.pid is not None
    ahead.finish(lambda _: None)
    assert not is_compiled(marker())
    ahead.begin()
    assert ahead.pid is None

    monkeypatch.setattr(sys, "executable", str(no_folder))
    ahead = CompileAhead()
    ahead.begin()
    assert ahead.pid is None
    ahead.finish(lambda _: pytest.fail("it waits for nothing"))


@pytest.mark.parametrize("name", ["GPUCAP_NO_NUMBA", "NUMBA_DISABLE_JIT"])
def test_nothing_is_started_where_nothing_is_compiled(
    name: str, monkeypatch: pytest.MonkeyPatch, nothing_compiled: Path
) -> None:
    monkeypatch.setenv(name, "1")
    assert marker_path() is None
    ahead = CompileAhead()
    ahead.begin()
    assert ahead.pid is None


@pytest.mark.parametrize("content", ["", "[]", "{", "3", '["/nowhere/a.nbi"]', "[1]"])
def test_a_damaged_marker_says_nothing(content: str, tmp_path: Path) -> None:
    path = tmp_path / "marker"
    path.write_text(content)
    assert not is_compiled(path)


def test_the_marker_depends_on_the_package(monkeypatch: pytest.MonkeyPatch, nothing_compiled: Path) -> None:
    before = marker()
    monkeypatch.setattr("pytest_gpucap.session.compiling._PACKAGE", nothing_compiled)
    assert marker() != before
