"""A server is kept, taken over and ended, with real processes: whatever dies, nothing is left after its time."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.fingerprint import difference, editable_vllm, fingerprint
from pytest_gpucap.engines.keeping import NotTaken, Place, Taken, TakenProcess, keep, take
from pytest_gpucap.engines.process import held_until_gone
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.gpu import kept
from pytest_gpucap.gpu.lease import Lease, LeaseTimeout, lease_cpu, passed_on
from pytest_gpucap.vllm_arguments import VllmArguments
from tests.engines.server_family import TREE, Family
from tests.waiting import until

HOUR_S = 3600.0


class Desk:
    """One user's machine, with a directory of leases of its own."""

    def __init__(self, leases: Path, spec: ServerSpec) -> None:
        leases.mkdir()
        self.leases, self.spec = leases, spec
        folder = kept.own_folder(leases)
        self.place = Place(folder / "abc.socket", folder / "abc.json")

    def start(self) -> tuple[VllmServer, Lease]:
        lease = lease_cpu(wait_s=0.0, directory=self.leases)
        with held_until_gone(lease.descriptors):
            return start_vllm(self.spec), lease

    def leave(self, server: VllmServer, lease: Lease, seconds: float = HOUR_S) -> None:
        watchdog = server.process.watchdog_pid
        told = {
            "keeper": watchdog,
            "keeper_began": kept.began(watchdog),
            "pid": server.process.pid,
            "engine": "vLLM",
            "model": "/models/stand-in",
            "gpu_class": "cpu",
            "devices": [],
            "locks": ["cpu"],
            "spec": self.spec.key,
            "plugin": "1",
            "port": 1,
            "key_digest": "d",
            "started_at": server.started_at,
        }
        extra = {"word": "for the next"}
        why = keep(server, self.place, seconds, told=told, extra=extra, descriptors=lease.descriptors)
        assert why == ""
        lease.leave()

    @property
    def known(self) -> list[kept.KeptServer]:
        return kept.kept_servers(self.leases)

    @property
    def only(self) -> kept.KeptServer:
        (found,) = self.known
        return found

    def take(self, refuse: Callable[[str, Mapping[str, Any]], str] = lambda *_: "") -> Taken:
        return take(self.place, self.only.keeper, self.spec, cpu=True, refuse=refuse)

    def free(self) -> bool:
        try:
            lease_cpu(wait_s=0.0, directory=self.leases).release()
        except LeaseTimeout:
            return False
        return True


@pytest.fixture
def desk(tmp_path: Path, stand_in: Callable[..., ServerSpec]) -> Desk:
    return Desk(tmp_path / "leases", stand_in())


@pytest.fixture
def left(desk: Desk) -> Iterator[VllmServer]:
    """A server that a run has left for an hour."""
    server, lease = desk.start()
    desk.leave(server, lease)
    yield server
    for each in desk.known:
        kept.end(each)


def test_the_log_of_a_server_that_ends_by_itself_is_masked(
    desk: Desk, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else is there to do it. What it wrote after it was left counts."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrst")
    server, lease = desk.start()
    desk.leave(server, lease, seconds=1.0)
    with server.log.path.open("a") as log:
        log.write(f"\nGET /v1/models by {server.api_key} with {os.environ['HF_TOKEN']}\nlast words\n")
    gone(desk, family)
    text = server.log.path.read_text()
    assert f"{server.api_key}" not in text
    assert "hf_abc" not in text
    assert text.endswith("last words\n")


def gone(desk: Desk, family: Family) -> None:
    """Wait until no process, no file and no lock is left."""
    family.wait_until_gone()
    until(lambda: not desk.place.note.exists() and not desk.place.socket.exists())
    until(desk.free)


def test_the_next_run_gets_the_very_server_and_its_lease(desk: Desk, family: Family, left: VllmServer) -> None:
    before = desk.only
    assert (before.used_by, before.place, before.is_mine) == (None, "the CPU", True)
    assert before.left_s is not None
    assert 0 < before.left_s <= HOUR_S
    taken = desk.take()
    assert desk.only.used_by == os.getpid()
    assert desk.only.left_s is None
    server = taken.server
    assert (server.reused, server.started_at, server.base_url) == (True, left.started_at, left.base_url)
    assert server.process.pid == before.pid
    assert taken.extra == {"word": "for the next"}
    assert len(server.pids()) == TREE
    assert server.version == "0.0.stand-in"
    assert not desk.free()
    lease = passed_on((), taken.descriptors, baseline={}, server_pids=server.pids())
    server.close()
    assert family.alive() == []
    lease.release()
    assert desk.free()
    gone(desk, family)


def test_it_can_be_left_again_and_again(desk: Desk, family: Family, left: VllmServer) -> None:
    for _ in range(2):
        taken = desk.take()
        lease = passed_on((), taken.descriptors, baseline={}, server_pids=taken.server.pids())
        desk.leave(taken.server, lease)
        taken.server.close()  # no longer ours to end
        assert desk.only.used_by is None
        assert left.models() == [left.model]
    kept.end(desk.only)
    gone(desk, family)


def test_no_file_has_the_key_and_only_its_user_reaches_the_socket(desk: Desk, left: VllmServer) -> None:
    key = f"{left.api_key}".encode()
    assert not [path for path in desk.leases.rglob("*") if path.is_file() and key in path.read_bytes()]
    mine = [desk.only.keeper, desk.only.pid]
    assert not [pid for pid in mine if key in Path(f"/proc/{pid}/environ").read_bytes()]
    assert not [pid for pid in mine if key in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert stat.S_IMODE(desk.place.socket.stat().st_mode) == 0o600
    with pytest.raises(EndpointError, match="401"):
        type(left)(left_without_key(left), left.spec).models()


def left_without_key(server: VllmServer) -> Any:
    """What a stranger knows of it."""
    from pytest_gpucap.engines.launch import Launched

    return Launched(
        process=server.process,
        log=server.log,
        command=(),
        model=server.model,
        api_key="",
        base_url=server.base_url,
        started_at=0.0,
        startup_s=0.0,
    )


def sentinel_of(desk: Desk) -> psutil.Process:
    name = str(desk.place.note)
    (found,) = [
        each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE and name in each.cmdline()
    ]
    return found


@pytest.mark.parametrize("victim", ["keeper", "server", "sentinel"])
def test_whichever_process_is_killed_the_others_end(desk: Desk, family: Family, left: VllmServer, victim: str) -> None:
    assert len(left.pids()) == TREE
    pid = {"keeper": desk.only.keeper, "server": desk.only.pid, "sentinel": sentinel_of(desk).pid}[victim]
    os.kill(pid, signal.SIGKILL)
    gone(desk, family)
    assert desk.known == []


def test_its_time_is_over(desk: Desk, family: Family) -> None:
    server, lease = desk.start()
    desk.leave(server, lease, seconds=0.0)
    gone(desk, family)


def test_ended_by_command(desk: Desk, family: Family, left: VllmServer) -> None:
    kept.end(desk.only)
    assert not psutil.pid_exists(left.process.pid or 0)
    gone(desk, family)


def test_a_keeper_that_is_stopped_is_ended_too(desk: Desk, family: Family, left: VllmServer) -> None:
    assert left.left
    os.kill(desk.only.keeper, signal.SIGSTOP)
    kept.end(desk.only, patience_s=0.5)
    gone(desk, family)


def test_one_that_is_not_wanted_is_ended(desk: Desk, family: Family, left: VllmServer) -> None:
    with pytest.raises(NotTaken, match=r"^too old$"):
        desk.take(lambda key, extra: "too old" if key == left.api_key and extra else "")
    gone(desk, family)


def test_one_that_answers_no_more_is_ended(desk: Desk, family: Family, left: VllmServer) -> None:
    """Its port is another process's by now: the stand-in's main process has let go of it."""
    main = psutil.Process(desk.only.pid)
    (port,) = [each.laddr.port for each in main.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert str(port) in left.base_url
    main.suspend()  # it listens, and answers nothing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pytest_gpucap.engines.readiness._HEALTH_S", 0.2)
        with pytest.raises(NotTaken, match="does not answer"):
            take_without_grace(desk)
    gone(desk, family)


def take_without_grace(desk: Desk) -> None:
    """A suspended process takes no SIGTERM: the grace would be waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TakenProcess, "close", _killing(TakenProcess.close))
        desk.take()


def _killing(close: Callable[[TakenProcess], None]) -> Callable[[TakenProcess], None]:
    def closing(process: TakenProcess) -> None:
        process._order(b"k")
        close(process)

    return closing


RUN = """
import sys, time
from pathlib import Path
from pytest_gpucap.engines.keeping import Place, take
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.gpu import kept

leases, python = map(Path, sys.argv[1:])
(found,) = kept.kept_servers(leases)
spec = ServerSpec("/models/stand-in", python=str(python))
taken = take(Place(found.socket, found.note), found.keeper, spec, cpu=True, refuse=lambda *_: "")
print(*taken.server.pids(), flush=True)
time.sleep(600)
"""


def test_a_run_that_is_killed_takes_the_server_with_it(desk: Desk, family: Family, left: VllmServer) -> None:
    command = [sys.executable, "-c", RUN, str(desk.leases), desk.spec.python]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert len(run.stdout.readline().split()) == TREE
        assert desk.only.used_by == run.pid
        assert left.models() == [left.model]
        with pytest.raises(kept.KeptError, match=rf"used by pid {run.pid}\): end that run"):
            kept.end(desk.only)
        run.kill()
    gone(desk, family)


def test_two_runs_cannot_have_it(desk: Desk, left: VllmServer) -> None:
    first = desk.only
    taken = desk.take()
    with pytest.raises(NotTaken, match="does not answer"):
        take(desk.place, first.keeper, desk.spec, cpu=True, refuse=lambda *_: "")
    assert left.models() == [left.model]
    taken.server.close()


def test_a_stranger_at_the_socket_gets_nothing_for_a_wrong_word(desk: Desk, left: VllmServer) -> None:
    folder = os.open(desk.place.socket.parent, os.O_RDONLY)
    with ExitStack() as stack:
        stack.callback(os.close, folder)
        asking = stack.enter_context(socket.socket(socket.AF_UNIX))
        asking.connect(f"/proc/self/fd/{folder}/{desk.place.socket.name}")
        asking.sendall(b"give\n")
        assert asking.recv(100) == b""
    assert left.models() == [left.model]
    assert desk.only.used_by is None


def test_another_lease_names_the_kept_server_and_the_command(desk: Desk, left: VllmServer) -> None:
    assert left.left
    said: list[str] = []
    with pytest.raises(LeaseTimeout, match=r"kept server abc \(.*gpucap servers --end abc ends it came first"):
        lease_cpu(wait_s=0.0, on_wait=said.append, directory=desk.leases)
    assert "gpucap servers --end abc" in said[0]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "{",
        "[]",
        json.dumps({"keeper": 1}),
        json.dumps({"until_s": "soon"}),
        "[" * 100_000,
    ],
)
def test_a_note_that_is_none_is_passed_over(tmp_path: Path, wrong: str) -> None:
    folder = kept.own_folder(tmp_path)
    (folder / "x.json").write_text(wrong)
    assert kept.kept_servers(tmp_path) == []
    assert kept.own_folder(tmp_path) == folder
    assert list(folder.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_believed(desk: Desk, left: VllmServer) -> None:
    assert left.left
    assert len(desk.known) == 1
    desk.place.note.parent.chmod(0o777)
    assert desk.known == []
    desk.place.note.parent.chmod(0o755)


def test_the_environment_counts_but_not_the_terminal(tmp_path: Path) -> None:
    spec = ServerSpec("hub/model", python=sys.executable)
    before = fingerprint(spec, "salt", {"VLLM_X": "1", "HF_TOKEN": "hf_secret", "TERM": "xterm", "PWD": "/a"})
    assert not [value for value in before.values() if "hf_secret" in value]
    other_terminal = {"VLLM_X": "1", "HF_TOKEN": "hf_secret", "TERM": "vt100", "PWD": "/b", "SSH_TTY": "1"}
    assert difference(before, fingerprint(spec, "salt", other_terminal)) == ""
    changed = {"VLLM_X": "2", "HF_TOKEN": "hf_other", "NEW": "1"}
    assert difference(before, fingerprint(spec, "salt", changed)) == "the environment differs in HF_TOKEN, NEW, VLLM_X"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    spec = ServerSpec(str(model), VllmArguments({"chat_template": str(tmp_path / "chat")}), sys.executable)
    before = fingerprint(spec, "salt", {})
    (tmp_path / "chat").write_text("x")
    assert "files" in difference(before, fingerprint(spec, "salt", {}))
    before = fingerprint(spec, "salt", {})
    (model / "model.safetensors").write_text("weights")
    assert "files" in difference(before, fingerprint(spec, "salt", {}))


def test_packages_of_the_interpreter_count(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "pyvenv.cfg").touch()
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    spec = ServerSpec("hub/model", python=str(python))
    before = fingerprint(spec, "salt", {})
    assert difference(before, fingerprint(spec, "salt", {})) == ""
    assert not editable_vllm(str(python))
    told = packages / "vllm-0.11.0.dist-info" / "direct_url.json"
    told.parent.mkdir()
    told.write_text(json.dumps({"url": "file:///src/vllm", "dir_info": {"editable": True}}))
    assert difference(before, fingerprint(spec, "salt", {})) == "packages of its interpreter have changed"
    assert editable_vllm(str(python))


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_a_real_vllm_is_taken_over_and_ends_with_its_keeper(tmp_path: Path, vllm_python: str, family: Family) -> None:
    """Its engine is a process of its own, which nothing but the sentinel ends once the keeper is killed."""
    spec = ServerSpec("synthetic:tiny", python=vllm_python, env=family.env, log_dir=tmp_path)
    desk = Desk(tmp_path / "leases", spec)
    desk.leave(*desk.start())
    taken = desk.take()
    reply = taken.server.client.completions.create(model=taken.server.model, prompt="one two three", max_tokens=4)
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 0
    assert len(taken.server.pids()) > 1
    desk.leave(taken.server, passed_on((), taken.descriptors, baseline={}, server_pids=taken.server.pids()))
    taken.server.close()  # our connections alone
    os.kill(desk.only.keeper, signal.SIGKILL)
    gone(desk, family)
