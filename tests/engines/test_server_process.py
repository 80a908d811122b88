"""Nothing is left behind: real trees of processes, ended in every way a process can end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pytest_gpucap.engines.process import OwnedProcess, held_until_gone
from pytest_gpucap.gpu.lease import LeaseTimeout, lease_cpu
from tests.engines.server_family import TREE, Family
from tests.waiting import until

STAND_IN = Path(__file__).with_name("stand_in.py")
COMMAND = [sys.executable, "-S", str(STAND_IN), "--host", "127.0.0.1", "--port", "0"]

Start = Callable[..., OwnedProcess]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture
def start(log: Path, family: Family) -> Iterator[Start]:
    started = []

    def make(mode: str = "serve", *, grace_s: float = 1e6) -> OwnedProcess:
        env = {**os.environ, **family.env, "STAND_IN": mode, "STAND_IN_TOLD": os.devnull}
        owned = OwnedProcess(COMMAND, env=env, log_path=log, grace_s=grace_s)
        started.append(owned)
        until(lambda: len(owned.pids()) == TREE and "serving" in log.read_text())
        return owned

    yield make
    for owned in started:
        owned.close()


def main_of(owned: OwnedProcess) -> int:
    assert owned.pid is not None
    return owned.pid


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_close_ends_every_process_and_the_port(start: Start, family: Family) -> None:
    owned = start()
    connections = psutil.Process(main_of(owned)).net_connections("tcp")
    (port,) = [each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN]
    assert not refused(port)
    assert len({os.getsid(pid) for pid in owned.pids()}) == 3  # two of them escaped into sessions of their own
    owned.close()
    # No waiting here: close() returns only when it is so.
    assert family.alive() == []
    assert refused(port)
    assert owned.poll() == -signal.SIGTERM
    owned.close()


def test_what_ignores_sigterm_is_killed_after_the_grace(start: Start, family: Family) -> None:
    owned = start("stubborn", grace_s=0.3)
    owned.close()
    assert family.alive() == []
    assert owned.poll() == -signal.SIGKILL


def test_when_the_main_process_dies_what_it_left_goes_too(start: Start, family: Family) -> None:
    owned = start()
    os.kill(main_of(owned), signal.SIGKILL)
    until(lambda: owned.poll() is not None)
    assert owned.poll() == -signal.SIGKILL
    family.wait_until_gone()


def test_a_sigkilled_watchdog_leaves_nothing_after_close(start: Start, family: Family) -> None:
    owned = start()
    main = main_of(owned)
    os.kill(owned.watchdog_pid, signal.SIGKILL)
    until(lambda: owned.poll() is not None)
    until(lambda: main not in {each.pid for each in family.alive()})
    assert family.alive() != []  # the others live on ...
    owned.close()
    assert family.alive() == []  # ... until they are found by their environment


def test_sigterm_to_the_watchdog_is_an_order_to_end(start: Start, family: Family) -> None:
    owned = start()
    os.kill(owned._watchdog.pid, signal.SIGTERM)
    family.wait_until_gone()


def test_signals_of_the_terminal_reach_neither_the_server_nor_its_watchdog(start: Start) -> None:
    owned = start()
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in {*owned.pids(), owned._watchdog.pid})
    os.kill(owned._watchdog.pid, signal.SIGINT)
    os.kill(owned._watchdog.pid, signal.SIGHUP)
    assert os.getpgid(main_of(owned)) != os.getpgid(owned._watchdog.pid)
    # Signals are taken in order: the daemon's end is noticed after SIGINT and SIGHUP were, and nothing else has ended.
    (orphan,) = psutil.Process(owned._watchdog.pid).children()[1:]
    orphan.kill()
    until(lambda: len(owned.pids()) == TREE - 1 and not orphan.is_running())
    assert owned.poll() is None


OWNER = """
import os, sys, time
from pathlib import Path
from pytest_gpucap.engines.process import OwnedProcess

owned = OwnedProcess({command!r}, env=dict(os.environ), log_path=Path({log!r}))
while "serving" not in Path({log!r}).read_text():  # then the tree is whole
    time.sleep(0.02)
if (pid := os.fork()) == 0:
    owned.close()  # not its to close
    os._exit(0)
os.waitpid(pid, 0)
if (holder := os.fork()) == 0:
    time.sleep(600)
print(holder, *owned.pids(), flush=True)
time.sleep(600)
"""


def test_a_fork_of_the_owner_neither_ends_the_server_nor_keeps_it(log: Path, family: Family) -> None:
    """A forked child has a copy of the control pipe: its end must not end the server, its life must not keep it."""
    script = OWNER.format(command=COMMAND, log=str(log))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, **family.env}
    ) as owner:
        assert owner.stdout is not None
        holder, *pids = map(int, owner.stdout.readline().split())
        assert len(pids) == TREE
        servers = [psutil.Process(pid) for pid in pids]
        owner.kill()
    psutil.wait_procs(servers)
    until(lambda: [process.pid for process in family.alive()] == [holder])


HOLDER = """
import os, sys
from pathlib import Path
from pytest_gpucap.engines.process import OwnedProcess, held_until_gone
from pytest_gpucap.gpu.lease import lease_cpu

held = lease_cpu(wait_s=0, directory=Path({locks!r}))
with held_until_gone(held.descriptors):
    owned = OwnedProcess({command!r}, env=dict(os.environ), log_path=Path({log!r}))
print("started", flush=True)
sys.stdin.read()
"""


def test_a_lease_outlives_its_process_until_the_server_has_ended(log: Path, tmp_path: Path, family: Family) -> None:
    """The server ignores SIGTERM, and whoever leased for it is killed: the next one does not measure beside it."""
    told = tmp_path / "told"
    script = HOLDER.format(command=COMMAND, log=str(log), locks=str(tmp_path))
    environment = {**os.environ, **family.env, "STAND_IN": "stubborn", "STAND_IN_TOLD": str(told)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "started\n"
        until(lambda: len(family.alive()) > TREE and "serving" in log.read_text())
        (watchdog,) = [each for each in family.alive() if each.ppid() == holder.pid]
        watchdog.suspend()  # it takes what time it likes
        holder.kill()
    with pytest.raises(LeaseTimeout, match=rf"pid {holder.pid} \(it has ended, and its server not yet\) came first"):
        lease_cpu(wait_s=0, directory=tmp_path)
    watchdog.resume()
    with lease_cpu(wait_s=1e6, directory=tmp_path):
        assert told.exists()
        assert [each for each in family.alive() if each.pid != watchdog.pid] == []


def test_a_lease_that_is_given_back_is_free_at_once(start: Start, tmp_path: Path) -> None:
    held = lease_cpu(wait_s=0, directory=tmp_path)
    with held_until_gone(held.descriptors):
        owned = start()
    inherited = [str(fd.readlink()) for fd in Path(f"/proc/{owned.pid}/fd").iterdir()]
    assert not any(name.endswith(".lock") for name in inherited)
    held.release()
    lease_cpu(wait_s=0, directory=tmp_path).release()


def test_a_command_that_cannot_run_says_so_in_the_log(log: Path) -> None:
    owned = OwnedProcess(["/no/such/python", "-m", "x"], env=dict(os.environ), log_path=log)
    until(lambda: owned.poll() is not None)
    owned.close()
    assert owned.poll() == 127
    assert "cannot start /no/such/python" in log.read_text()


def test_the_server_gets_no_descriptor_of_ours(start: Start) -> None:
    owned = start()
    names = {str(fd.readlink()) for fd in Path(f"/proc/{owned.pid}/fd").iterdir()}
    assert not any(name.startswith("pipe:") for name in names), names


def test_the_server_starts_with_default_signal_handling(start: Start) -> None:
    owned = start()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{owned.pid}/status").read_text().splitlines())
    ignored, blocked = int(status["SigIgn"], 16), int(status["SigBlk"], 16)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        assert not (ignored | blocked) & (1 << (number - 1)), number
