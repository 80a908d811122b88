"""A server that outlives its pytest run for a while, and is taken over by the next run.

Its watchdog keeps it (`watchdog.Watchdog.keep`), and a sentinel keeps an eye on the watchdog (`sentinel.py`). What the
next run must know, the server's key among it, stays in the watchdog's memory. It is handed over through a socket that
only the same user can reach, together with the descriptors of the leases, so the devices are never free in between.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from pytest_gpucap.engines.errors import ServerError, ServerStartError
from pytest_gpucap.engines.launch import Launched
from pytest_gpucap.engines.process import SERVER_ID_VARIABLE, OwnedProcess, alive, forget
from pytest_gpucap.engines.protocol import ServerLog
from pytest_gpucap.engines.readiness import Readiness
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, with_own_defaults
from pytest_gpucap.masking import Secret

_SENTINEL: Final = Path(__file__).with_name("sentinel.py")
_MASK_LOG: Final = Path(__file__).with_name("mask_log.py")
_TAKE: Final = b"take\n"
_MOST_BYTES: Final = 1 << 20
_MOST_DEVICES: Final = 128
_PATIENCE_S: Final = 30.0
"""Longest wait for the watchdog, and for the first answer of a server that was ready before."""


Refuse = Callable[[str, Mapping[str, Any]], str]
"""Why a server is not wanted, by its key and by what the run before told beside it; empty: it is."""


class NotTaken(ServerError):  # noqa: N818 - reads as what happened
    """A kept server cannot be taken over; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kept server can be found.

    Attributes:
        socket: of its watchdog.
        note: what everybody may know of it.
    """

    socket: Path
    note: Path


class _Stranger:
    """A process that is no child of ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        try:
            self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._fd, select.POLLIN)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            os.close(self._fd)
            self.returncode = 0  # nobody but its parent learns the exit code
        return self.returncode


class TakenProcess(OwnedProcess):
    """A kept server's processes, once they were handed over. It is used as any other `OwnedProcess`.

    Args:
        connection: to the watchdog; it is the owner's pipe from now on.
        watchdog: its pid.
        pid: of the main process.
        token: that marks the processes.
        grace_s: seconds between SIGTERM and SIGKILL.
        sentinel: its pid.
    """

    def __init__(
        self, connection: socket.socket, *, watchdog: int, pid: int, token: str, grace_s: float, sentinel: int
    ) -> None:
        self._begin(token, grace_s)
        self._watchdog = _Stranger(watchdog)
        self._pid = pid
        self.sentinel = sentinel
        connection.setblocking(True)
        self._status = os.dup(connection.fileno())
        self._control = connection.detach()

    def _read_some(self) -> bytes:
        # One socket takes orders and gives news, and orders are to wait for room.
        if not _readable(self._status):
            return b""
        try:
            return os.read(self._status, 4096)
        except ConnectionError:
            return b""


@dataclass(frozen=True, slots=True)
class Taken:
    """A kept server that is ours now.

    Attributes:
        server: it answers; `close` ends it.
        descriptors: of the locks of its lease, in the order of the lease.
        extra: what the run before told beside the server.
    """

    server: VllmServer
    descriptors: tuple[int, ...]
    extra: Mapping[str, Any]


def keep(
    server: VllmServer,
    place: Place,
    seconds: float,
    *,
    told: Mapping[str, object],
    extra: Mapping[str, object],
    descriptors: Sequence[int],
) -> str:
    """Leave a server to its watchdog for so many seconds.

    Args:
        server: ready, and nobody's any more if this succeeds.
        place: where it can be found then.
        seconds: 0: it is ended at once.
        told: everybody may know it.
        extra: for the next owner alone.
        descriptors: of the locks that are held until the last process has ended.

    Returns:
        Why it is not kept, in a few words; empty if it is.
    """
    process = server.process
    sentinel = process.sentinel if isinstance(process, TakenProcess) else _start_sentinel(process, place, descriptors)
    pid = process.pid
    if sentinel is None or pid is None:
        return "it cannot be watched"
    record = {
        "watchdog": process.watchdog_pid,
        "sentinel": sentinel,
        "pid": pid,
        "began_s": psutil.Process(pid).create_time(),
        "token": process.token,
        "grace_s": process.grace_s,
        "base_url": server.base_url,
        "model": server.model,
        "api_key": f"{server.api_key}",
        "command": server.command,
        "log": str(server.log.path),
        "started_at": server.started_at,
        "startup_s": server.startup_s,
        "extra": extra,
    }
    where = {"socket": str(place.socket), "note": str(place.note)}
    mask = {
        "command": [sys.executable, "-P", str(_MASK_LOG)],
        "input": json.dumps([record["log"], record["api_key"], [each for each in sys.path if each]]),
    }
    why_not = process.keep(
        {**where, "seconds": seconds, "sentinel": sentinel, "told": told, "record": record, "mask": mask}
    )
    server.left = not why_not
    return why_not


def _start_sentinel(process: OwnedProcess, place: Place, descriptors: Sequence[int]) -> int | None:
    """Start what watches the watchdog; its pid once it does, None if it cannot."""
    mark = f"{SERVER_ID_VARIABLE}={process.token}"
    command = [sys.executable, "-I", "-S", str(_SENTINEL), str(process.watchdog_pid), mark]
    started = subprocess.Popen(
        [*command, str(place.socket), str(place.note)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(descriptors),
        cwd="/",
        start_new_session=True,
    )
    assert started.stdout is not None  # noqa: S101 - a pipe was asked for
    with started.stdout as output:
        watching = output.readline() != b""
    forget(started)
    return started.pid if watching else None


def take(place: Place, watchdog: int, spec: ServerSpec, *, cpu: bool, refuse: Refuse) -> Taken:
    """Take a kept server over, and see that it is what it was.

    Args:
        place: where it can be found.
        watchdog: the pid of its watchdog, as its note says.
        spec: what the server must be.
        cpu: it has no GPU.
        refuse: see `Refuse`.

    Raises:
        NotTaken: it ended, somebody else was faster, or it is not what it was. In the last case it has been ended.
    """
    connection, record, descriptors = _handed_over(place, watchdog)
    process = TakenProcess(
        connection,
        watchdog=watchdog,
        pid=record["pid"],
        token=record["token"],
        grace_s=record["grace_s"],
        sentinel=record["sentinel"],
    )
    try:
        _check(_stranger(record, watchdog) or refuse(record["api_key"], record["extra"]))
        server = _server(process, record, with_own_defaults(spec, cpu=cpu))
        _check_answers(server, process)
    except BaseException as error:
        process.close()
        for each in descriptors:
            with contextlib.suppress(OSError):
                os.close(each)
        if isinstance(error, ServerStartError):
            raise NotTaken(error.cause) from None
        raise
    return Taken(server, descriptors, record["extra"])


def _check(why_not: str) -> None:
    if why_not:
        raise NotTaken(why_not)


def _handed_over(place: Place, watchdog: int) -> tuple[socket.socket, dict[str, Any], tuple[int, ...]]:
    """The connection to a watchdog, what it knows of its server, and the descriptors of the lease.

    Raises:
        NotTaken: if it does not answer as a watchdog does.
    """
    connection = socket.socket(socket.AF_UNIX)
    descriptors: list[int] = []
    try:
        connection.settimeout(_PATIENCE_S)
        with short(place.socket) as name:
            connection.connect(name)
        _check("" if peer_of(connection) == (watchdog, os.getuid()) else "another process answers in its place")
        connection.sendall(_TAKE)
        begin, descriptors, _, _ = socket.recv_fds(connection, 1, _MOST_DEVICES)
        for each in descriptors:
            os.set_inheritable(each, False)
        line = b""
        while begin and not line.endswith(b"\n") and len(line) < _MOST_BYTES:
            # One at a time: what follows the line is news of the server, for whoever reads it then.
            if not (more := connection.recv(1)):
                break
            line += more
        return connection, json.loads(line), tuple(descriptors)
    except NotTaken:
        connection.close()
        raise
    except (OSError, ValueError) as error:
        connection.close()
        for each in descriptors:
            os.close(each)
        raise NotTaken(f"its watchdog does not answer ({error})") from None


@contextlib.contextmanager
def short(path: Path) -> Iterator[str]:
    """A short name of a socket: the kernel takes no more than 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel knows them."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", told)
    return pid, user


def _readable(descriptor: int) -> bool:
    found = select.poll()
    found.register(descriptor, select.POLLIN)
    return bool(found.poll(0))


def _stranger(record: Mapping[str, Any], watchdog: int) -> str:
    """Why the main process is not the one that was left here; empty if it is."""
    pid = record["pid"]
    try:
        main = psutil.Process(pid)
        same = main.create_time() == record["began_s"] and main.uids().real == os.getuid()
        if same and main.ppid() == watchdog and os.getpgid(pid) == pid and alive(main):
            return ""
    except (psutil.Error, OSError):
        pass
    return f"its main process {pid} has ended"


def _server(process: TakenProcess, record: Mapping[str, Any], spec: ServerSpec) -> VllmServer:
    launched = Launched(
        process=process,
        log=ServerLog(Path(record["log"])),
        command=tuple(record["command"]),
        model=record["model"],
        api_key=Secret(record["api_key"]),
        base_url=record["base_url"],
        started_at=record["started_at"],
        startup_s=record["startup_s"],
    )
    return VllmServer(launched, spec, reused=True)


def _check_answers(server: VllmServer, process: TakenProcess) -> None:
    """Check that it answers as after its start, at a port of its own process, and to nobody without the key.

    Raises:
        ServerStartError: if it does not.
    """
    host = urlsplit(server.base_url).hostname or ""
    deadline = time.monotonic() + _PATIENCE_S
    ready = Readiness(process, server.log, server.model, server.api_key, deadline, None, server.software, host=host)
    ready.again(server.base_url)
    server.check_key()
