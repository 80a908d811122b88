"""However a session ends, and in whatever phase: nothing is left, and what was measured is kept and marked as a part.

Every row is a real pytest in a process group of its own. Its server is a real process with a watchdog, behind a real
lease, and ignores SIGTERM. A lease that can be had at once afterwards, and no process: that is nothing left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from pytest_gpucap.__main__ import main
from pytest_gpucap.gpu.lease import lease_cpu
from pytest_gpucap.results import result_file
from pytest_gpucap.results.ending import Ending
from tests.engines.server_family import Family
from tests.waiting import until

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("fast_vllm.py")
HANGS = "9"
CONFTEST = """
import os, signal, threading, time
from pathlib import Path

import pytest

from pytest_gpucap.engines.process import OwnedProcess
from pytest_gpucap.gpu import lease
from pytest_gpucap.load import self_check
from pytest_gpucap.measure import alternation, constants

lease.MACHINE_DIRECTORY = Path(os.environ["ENDS_LOCKS"])
OwnedProcess.__init__.__kwdefaults__["grace_s"] = float(os.environ["ENDS_GRACE_S"])
self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.CPU_LIMIT = self_check.STOPPED_S = 1e6
for name in ("WARM_UP_S", "SEARCH_HOLD_S", "HOLD_S", "LOW_HOLD_S", "OPEN_S"):
    setattr(constants, name, 0.5)
constants.LEAST_PHASE_S = 0.3
TELLS, PHASE, ENDS = Path(os.environ["FAST_VLLM_TELLS"]), os.environ["ENDS_PHASE"], os.environ["ENDS_HOW"]


def reached(phase):
    '''Tell that a phase of the session is reached, and wait for the end.'''
    if phase == PHASE:
        (TELLS / f"reached-{phase}").touch()
        threading.Event().wait(600)


def when(pattern, count, then):
    '''Do something in this process once the servers have told so much.'''
    def wait():
        while len(list(TELLS.glob(pattern))) < count:
            time.sleep(0.01)
        then()
    threading.Thread(target=wait, daemon=True).start()


def time_out():
    '''What pytest-timeout's own thread does when the time is over.'''
    (timer,) = (each for each in threading.enumerate() if isinstance(each, threading.Timer))
    timer.function(*timer.args, **timer.kwargs)


@pytest.fixture(autouse=True)
def ends_itself(request):
    if request.node.name == "test_during":
        then = {
            "os._exit": lambda: os._exit(7),
            "timeout-signal": lambda: os.kill(os.getpid(), signal.SIGALRM),
            "timeout-thread": time_out,
        }.get(ENDS)
        if then is not None and PHASE == "start":
            when("started-*", 2, then)
        if then is not None and PHASE == "load":
            when("loaded-*", 2, then)


def pytest_runtest_logfinish(nodeid):
    if nodeid.endswith("test_before"):
        reached("between")


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary():
    reached("reporting")


@pytest.fixture
def fragile():
    yield
    raise RuntimeError("teardown broke")
"""
SUITE = """
import os

import pytest

pytestmark = pytest.mark.gpucap(qps=2, gpus=1, headroom=1, input_tokens=32, output_tokens=8, e2e_p95="20s")


@pytest.mark.vllm(model="synthetic:tiny", max_model_len=512, max_num_seqs={first})
@pytest.mark.gpucap(name="before")
def test_before(gpucap):
    gpucap.sample(rate=20, duration="500ms")


@pytest.mark.vllm(model="synthetic:tiny", max_model_len=512, max_num_seqs={sequences})
@pytest.mark.gpucap(name="during")
def test_during({fixtures}):
    {body}


@pytest.mark.vllm(model="synthetic:tiny", max_model_len=512, max_num_seqs={sequences})
@pytest.mark.gpucap(name="after")
def test_after(gpucap):
    gpucap.sample(rate=20, duration="500ms")
"""
LONG = 'gpucap.sample(rate=20, duration="600s")'
SHORT = 'gpucap.sample(rate=20, duration="500ms")'
KILLED = "the session had not ended when this was written"
INTERRUPTED = "the session was interrupted"
STOPPED = "the session stopped early"
CRASHED = "crashed"


@dataclass(frozen=True)
class Row:
    """One ending in one phase.

    Attributes:
        how: the ending: signals from outside, or what the session does to itself.
        phase: in which it comes: start, load, between tests, reporting; any other for what comes by itself.
        codes: exit codes that are right.
        results: name and ending of what is kept.
        marked: what the file says of a part; None: it is whole.
        arguments: of pytest.
        body: of the test during which it comes.
        fixtures: of that test.
        needs: another plugin.
    """

    how: str
    phase: str
    codes: tuple[int, ...]
    results: tuple[tuple[str, Ending], ...]
    marked: str | None
    arguments: tuple[str, ...] = ()
    body: str = LONG
    fixtures: str = "gpucap"
    needs: str = ""
    signals: tuple[int, ...] = field(default=())

    @property
    def name(self) -> str:
        """Of the test."""
        pair = "-pair" if any("base" in each for each in self.arguments) else ""
        return f"{self.how}-{self.phase}{pair}"


BEFORE = (("before", Ending.PASSED),)
ALL = (*BEFORE, ("during", Ending.PASSED), ("after", Ending.PASSED))
PAIR = ("--gpucap-base-args=--max-num-batched-tokens 64",)
OUTSIDE = {
    "ctrl-c": ((signal.SIGINT,), (2,), INTERRUPTED),
    "ctrl-c-twice": ((signal.SIGINT, signal.SIGINT), (2, -2, 130, 1), INTERRUPTED),
    "sigterm": ((signal.SIGTERM,), (-15,), KILLED),
    "sigkill": ((signal.SIGKILL,), (-9,), KILLED),
}


def from_outside(how: str, phase: str, arguments: tuple[str, ...] = (), body: str = LONG) -> Row:
    """A row whose signals come from outside."""
    signals, codes, marked = OUTSIDE[how]
    return Row(how, phase, codes, BEFORE, marked, arguments, body, signals=signals)


# Each takes some ten seconds, so they are no product of all endings and all phases. In every phase comes one ending
# that Python sees and one that it does not, but between two tests, where nothing is under way. What pytest-timeout's
# thread does is os._exit.
ROWS = [
    *(from_outside("ctrl-c", phase) for phase in ("start", "between")),
    from_outside("sigkill", "start"),
    *(from_outside(how, "load") for how in ("ctrl-c-twice", "sigterm")),
    *(from_outside(how, "load", PAIR, "gpucap.check()") for how in ("ctrl-c", "sigkill")),
    # Everything is measured and written by then.
    *(
        Row(how, "reporting", (*codes, 1, 2, 130, -2), ALL, None, body=SHORT, signals=signals)
        for how, (signals, codes, _) in OUTSIDE.items()
        if how in {"ctrl-c-twice", "sigterm"}
    ),
    *(
        Row(
            "timeout-signal",
            phase,
            (1,),
            (*BEFORE, ("after", Ending.PASSED)) if phase == "load" else BEFORE,
            None if phase == "load" else STOPPED,
            ("--timeout=3000", "--timeout-method=signal", *(("-x",) if phase == "start" else ())),
            needs="pytest_timeout",
        )
        for phase in ("start", "load")
    ),
    Row(
        "timeout-thread",
        "load",
        (1,),
        BEFORE,
        KILLED,
        ("--timeout=3000", "--timeout-method=thread"),
        needs="pytest_timeout",
    ),
    Row("os._exit", "load", (1,), BEFORE, CRASHED, ("-n1", "--max-worker-restart=0"), needs="xdist"),
    Row(
        "-x",
        "after a test whose teardown breaks",
        (1,),
        (*BEFORE, ("during", Ending.ERROR)),
        STOPPED,
        ("-x",),
        SHORT,
        "fragile, gpucap",
    ),
    Row(
        "rerun",
        "after a test",
        (0,),
        (*BEFORE, ("during", Ending.RERUN), ("during", Ending.PASSED), ("after", Ending.PASSED)),
        None,
        ("--reruns=1",),
        f"{SHORT}; assert test_during.__dict__.setdefault('runs', []) or test_during.runs.append(1)",
        needs="pytest_rerunfailures",
    ),
]


class Run:
    """One pytest in a process group of its own."""

    def __init__(self, folder: Path, family: Family, row: Row, locks: Path, grace_s: float) -> None:
        self.folder, self.tells = folder, folder / "tells"
        for each in (self.tells, folder / "tmp"):
            each.mkdir(parents=True)
        (folder / "conftest.py").write_text(CONFTEST)
        # A second server is started where its start, or its load, is what the ending comes in.
        sequences = {"start": HANGS, "load": "16"}.get(row.phase, "8")
        suite = SUITE.format(first="8", sequences=sequences, fixtures=row.fixtures, body=row.body)
        (folder / "test_it.py").write_text(suite)
        (folder / "pytest.ini").write_text("[pytest]\ngpucap_host_check = warn\n")
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
        python.chmod(0o755)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-pno:cacheprovider",
            "-pno:benchmark",
        ]
        command += ["--gpu-class=cpu", f"--gpucap-vllm-python={python}", "--gpucap-json=out/r.json"]
        environment = {
            **os.environ,
            **family.env,
            "TMPDIR": str(folder / "tmp"),
            "FAST_VLLM_TELLS": str(self.tells),
            "FAST_VLLM_HANGS": HANGS,
            "ENDS_PHASE": row.phase,
            "ENDS_HOW": row.how,
            "ENDS_LOCKS": str(locks),
            "ENDS_GRACE_S": str(grace_s),
        }
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *row.arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def told(self, pattern: str, count: int = 1) -> bool:
        """Whether so much has been told; an assertion if the session has ended before."""
        if len(list(self.tells.glob(pattern))) >= count:
            return True
        assert self.process.poll() is None, "the session ended before that"
        return False


@contextmanager
def running(folder: Path, family: Family, row: Row, locks: Path, *, grace_s: float = 0.3) -> Iterator[Run]:
    run = Run(folder, family, row, locks, grace_s)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        print((folder / "output").read_text(errors="replace"))


def wait_for_phase(run: Run, row: Row) -> None:
    """Until the session is where the row's ending comes."""
    pair = bool(set(PAIR) & set(row.arguments))
    pattern, count = {
        "start": ("started-*", 2),
        # The first test's server, that of the second, and for a pair the base's.
        "load": ("loaded-*", 3 if pair else 2),
    }.get(row.phase, (f"reached-{row.phase}", 1))
    until(lambda: run.told(pattern, count))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_is_left_and_what_was_measured_is_kept(
    tmp_path: Path,
    family: Family,
    row: Row,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if row.needs and find_spec(row.needs) is None:
        pytest.skip(f"{row.needs} is not installed")
    locks = tmp_path / "locks"
    locks.mkdir()
    folder = tmp_path / "run"
    with running(folder, family, row, locks) as run:
        if row.signals:
            wait_for_phase(run, row)
            for number in row.signals:
                if run.process.poll() is None:
                    os.killpg(run.process.pid, number)
        assert run.process.wait() in row.codes
        # The lease can be had once all is gone, and not before.
        with lease_cpu(wait_s=1e6, directory=locks):
            servers = [each for each in family.alive() if str(SERVER) in " ".join(each.cmdline())]
            assert servers == []
    family.wait_until_gone()
    lease_cpu(wait_s=0, directory=locks).release()
    assert [each.name for each in (folder / "tmp").iterdir() if not each.name.startswith("pytest-of-")] == []
    assert [each.name for each in (folder / "out").iterdir()] == ["r.json"]

    content = result_file.read(folder / "out" / "r.json")
    kept = [(each.name, each.ending) for each in content.results if each.ending is not Ending.UNFINISHED]
    assert kept == list(row.results)
    assert row.marked is None or any(row.marked in line for line in content.problems), content.problems
    assert row.marked is not None or content.problems == ()
    # Whoever reads the file hears of it, in every form.
    for form in ("text", "markdown"):
        assert main(["show", str(folder / "out" / "r.json"), f"--format={form}"]) == 0
        assert row.marked is None or row.marked in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(folder / "out" / "r.json")]) in (0, 1)
    assert row.marked is None or row.marked in " ".join(capsys.readouterr().out.split())


def test_a_run_waits_for_what_a_killed_one_has_left(tmp_path: Path, family: Family) -> None:
    """Two at once: the first is killed under load, and its server takes its time to end."""
    locks = tmp_path / "locks"
    locks.mkdir()
    first_row = Row("sigkill", "load", (-9,), BEFORE, KILLED)
    second_row = Row("none", "none", (0,), ALL, None, body=SHORT)
    with running(tmp_path / "first", family, first_row, locks) as first:
        wait_for_phase(first, first_row)
        (watchdog,) = [
            each for each in family.alive() if each.ppid() == first.process.pid and "watchdog" in str(each.cmdline())
        ]
        with running(tmp_path / "second", family, second_row, locks) as second:
            until(lambda: "waiting for the lease that pid" in (tmp_path / "second" / "output").read_text())
            watchdog.suspend()
            os.killpg(first.process.pid, signal.SIGKILL)
            assert first.process.wait() == -signal.SIGKILL
            assert second.process.poll() is None
            assert not list(second.tells.glob("started-*"))
            watchdog.resume()
            assert second.process.wait() == 0
        assert list(first.tells.glob("told-*"))
    family.wait_until_gone()
    content = result_file.read(tmp_path / "second" / "out" / "r.json")
    assert [(each.name, each.ending) for each in content.results] == list(ALL)
