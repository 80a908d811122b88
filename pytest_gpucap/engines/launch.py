"""Starts a server program in its own process and waits until it is ready."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import psutil

from pytest_gpucap.access import LOOPBACK, NO_KEY
from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.process import OwnedProcess
from pytest_gpucap.engines.protocol import ServerLog
from pytest_gpucap.engines.readiness import Readiness
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.startup_diagnosis import diagnose, find, known_cause, oom_kills, signal_name
from pytest_gpucap.engines.startup_errors import NOTHING, Given
from pytest_gpucap.vllm_arguments import VllmArguments

_TAIL_LINES = 30
_POLL_S: Final = 0.2
_LONGEST_TITLE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A server process that is ready.

    Attributes:
        process: the process and everything that it starts.
        log: the server's log.
        command: its command line.
        model: the name under which it serves the model.
        api_key: the key that it requires.
        base_url: ends in ``/v1``.
        started_at: when it was started, in seconds since the epoch.
        startup_s: seconds from start to ready.
    """

    process: OwnedProcess
    log: ServerLog
    command: tuple[str, ...]
    model: str
    api_key: str
    base_url: str
    started_at: float
    startup_s: float


def launch(
    command: Sequence[str],
    *,
    model: str | None,
    log_path: Path,
    timeout_s: float,
    devices: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    default_env: Mapping[str, str] | None = None,
    without_env: Iterable[str] = (),
    api_key: str = NO_KEY,
    host: str = LOOPBACK,
    port: int | None = None,
    listed: bool = True,
    title: str = "",
    arguments: VllmArguments | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Launched:
    """Start a server and wait until it answers.

    Let the server bind port 0 of `host`, so that the kernel chooses a free port. The port is read from the listening
    sockets of our own process, so it cannot belong to another server. Ready means that ``/v1/models``
    lists the model, ``/health`` succeeds or is not there, and a chat (or a completion) is answered, whole and streamed.

    Args:
        command: the program; its first word is an absolute path or found on PATH.
        model: the name that it serves the model under; None: the only one that it lists.
        log_path: file for its output.
        timeout_s: longest wait.
        devices: UUIDs of the GPUs that it may use; they become ``CUDA_VISIBLE_DEVICES``.
        env: variables laid over this process's environment.
        default_env: variables for which this process's environment has no value.
        without_env: variables of this process's environment that it does not get.
        api_key: the key that it asks for.
        host: the address that it listens on.
        port: that the command names, for a server that cannot bind port 0 (see `free_port`); None: the kernel chose it.
        listed: its model stands in ``/v1/models``. If not, `model` is the name, and ``/health`` tells its port.
        title: the name of the engine, for messages.
        arguments: that the command holds, so that no advice contradicts them.
        on_wait: called about once a second with what the start is doing.

    Raises:
        ServerStartError: if it is not ready in time or ends before. None of its processes is left running.
    """
    started, started_at = time.monotonic(), time.time()
    killed_before = oom_kills()
    given = Given(arguments or VllmArguments(), cpu=not devices)
    log = ServerLog(log_path.absolute())
    # NVML numbers GPUs in this order, and so do we.
    visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(devices)}
    withheld = set(without_env)
    inherited = {name: value for name, value in os.environ.items() if name not in withheld}
    process = OwnedProcess(
        command, env={**(default_env or {}), **inherited, **visible, **(env or {})}, log_path=log.path
    )
    try:
        deadline = started + timeout_s
        readiness = Readiness(
            process, log, model, api_key, deadline, on_wait, title, given, host=host, port=port, listed=listed
        )
        try:
            ready = readiness.wait()
        except ServerStartError as error:
            process.close()
            exit_code = readiness.exit_code
            killed = oom_kills() - killed_before
            cause, known_as = error.cause, error.known_as
            if exit_code is not None:
                cause, known_as = diagnose(log.text(), exit_code, killed, given), known_cause(log.text())
            raise ServerStartError(
                f"{cause}{_no_room(log)}", log.tail(_TAIL_LINES), log.path, title=title, known_as=known_as
            ) from None
    except BaseException:
        process.close()
        log.mask()
        raise
    return Launched(
        process=process,
        log=log,
        command=tuple(command),
        model=ready.model,
        api_key=api_key,
        base_url=ready.base_url,
        started_at=started_at,
        startup_s=time.monotonic() - started,
    )


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody listens on now, for a server that must be told one.

    Another program may take it before the server does. Then no process of the server listens there, and the start
    fails; no other server is measured.
    """
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        taken.bind((host, 0))
        port: int = taken.getsockname()[1]
    return port


def _no_room(log: ServerLog) -> str:
    """Why a log may lack what it should tell, after a semicolon; empty where its disk has room."""
    with contextlib.suppress(OSError):
        if not shutil.disk_usage(log.path.parent).free:
            return f"; the disk of its log, {log.path.parent}, is full"
    return ""


class LaunchedServer(HttpServer):
    """A server that we started. `close` ends everything it started.

    Attributes:
        command: its command line.
        started_at: when it was started, in seconds since the epoch.
        startup_s: seconds from start to ready.
        engines: matches the titles of processes that it cannot do without, beside the main one.
        reused: an earlier run started it and left it to us; `started_at` and `startup_s` are of that start.
        left: it was left to the next run, and `close` does not end it.
    """

    engines: ClassVar[re.Pattern[str] | None] = None

    def __init__(self, launched: Launched, *, reused: bool = False) -> None:
        super().__init__(launched.base_url, launched.model, launched.api_key)
        self.command = list(launched.command)
        self.started_at, self.startup_s = launched.started_at, launched.startup_s
        self.reused, self.left = reused, False
        self._log, self._process = launched.log, launched.process
        self._log_is_masked = False
        self._vital = _named(self.pids(), self.engines) if self.engines is not None else {}
        """Processes that it cannot do without: by pid, the name and when it began."""

    @property
    def log(self) -> ServerLog:
        """The server's log."""
        return self._log

    @property
    def process(self) -> OwnedProcess:
        """Its processes."""
        return self._process

    @property
    def running(self) -> bool:
        """Whether its main process still runs."""
        return self._process.poll() is None

    def ended(self, patience_s: float = 0.0) -> str:
        """See `HttpServer.ended`: its main process or one of its engines ended, or is stopped."""
        until_s = time.monotonic() + patience_s
        while not (why := self._why_ended()) and time.monotonic() < until_s:
            self._process.wait_news(min(_POLL_S, patience_s))
        return why

    def _why_ended(self) -> str:
        exit_code = self._process.poll()
        name = f"the {self.software or 'server'} server".replace("the server server", "the server")
        lost = next(filter(None, (_lost(pid, *known) for pid, known in self._vital.items())), None)
        if lost is not None and exit_code is None:
            return f"{name} {'stopped answering' if lost.stopped else 'can answer no more'}: its {lost.what}"
        if exit_code is None:
            pid = self._process.pid
            return f"{name} stopped answering: its main process {pid} is stopped" if pid and _is_stopped(pid) else ""
        how = f"by {signal_name(-exit_code)}" if exit_code < 0 else f"with exit code {exit_code}"
        first = f", after its {lost.what}" if lost is not None else ""
        cause = find(self.log.text())
        told = f": {cause[0].describe(cause[1], NOTHING)}" if cause is not None else ""
        return f"{name} ended {how} in the middle of the measurement{first}{told}"

    def pids(self) -> set[int]:
        """Every living process of the server."""
        return self._process.pids()

    def facts(self) -> Mapping[str, object]:
        """See `HttpServer.facts`."""
        own = {"command": shlex.join(self.command), "log": str(self.log.path)}
        return {name: value for name, value in super().facts().items() if name != "url"} | own

    def close(self) -> None:
        """End the server; returns when its processes are reaped and its port is closed. Safe to call twice."""
        super().close()
        self._process.close()
        if not self._log_is_masked:
            self._log_is_masked = True
            self._log.mask()


def _named(pids: Iterable[int], titles: re.Pattern[str]) -> dict[int, tuple[str, float]]:
    """The processes whose titles match: by pid, the title and when it began."""
    found = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            title = " ".join(process.cmdline()).strip()
            if titles.search(title):
                found[pid] = title.split()[0][:_LONGEST_TITLE], process.create_time()
    return found


class _Lost(NamedTuple):
    """What became of an engine, such as "engine VLLM::EngineCore (pid 12) ended"; whether it could go on."""

    what: str
    stopped: bool


def _lost(pid: int, title: str, began_s: float) -> _Lost | None:
    """What became of an engine; None while it runs."""
    try:
        process = psutil.Process(pid)
        alive = process.create_time() == began_s and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        alive = False
    engine = f"engine {title} (pid {pid})"
    if not alive:
        return _Lost(f"{engine} ended", stopped=False)
    return _Lost(f"{engine} is stopped", stopped=True) if _is_stopped(pid) else None


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger."""
    try:
        return psutil.Process(pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
    except psutil.Error:
        return False
