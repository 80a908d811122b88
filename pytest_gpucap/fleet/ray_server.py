"""A server on a node of a Ray cluster, as the driver's side knows it.

Requests go to the server itself. Everything else is asked of its `ReplicaOnNode`, the actor that owns it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pytest_gpucap.engines.errors import ServerStopError
from pytest_gpucap.engines.protocol import Capabilities, ServerLog
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.fleet.ray_library import connected, reason
from pytest_gpucap.masking import masked

if TYPE_CHECKING:
    from pytest_gpucap.fleet.ray_node import LogPart, NodeFacts, Started
    from pytest_gpucap.fleet.ray_telemetry import RayTelemetry

ANSWER_S: Final = 30.0
"""Longest wait for a node's answer to a question that it answers at once."""
GLANCE_S: Final = 2.0
"""Longest wait for the answer to whether the server lives."""
CLOSE_S: Final = 300.0
"""Longest wait for the end of a server: its grace, the kill after it, and the return of GPU memory."""
LOG_PERIOD_S: Final = 0.5
LOG_BYTES: Final = 1 << 17
"""Of a log in one period, at most: 256 KiB a second."""
_PAUSE_S: Final = 0.1


class LogStream:
    """Copies a log on a node to a file on this machine, in a thread of its own, until `stop`.

    A log that grows faster than `LOG_BYTES` in `LOG_PERIOD_S` is copied from its end; a line tells how much is left
    out. Secrets are masked before the lines leave the node, and once more here.

    Args:
        path: the file; only its owner can read it.
        read: asks for the log's whole lines from a byte on, at most so many bytes.
    """

    def __init__(self, path: Path, read: Callable[[int, int], LogPart]) -> None:
        self.log = ServerLog(path.absolute())
        self.until = 0
        """Bytes of the node's log that were copied or left out."""
        self._read = read
        self._stop = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8")
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="gpucap-ray-log", daemon=True)
        self._thread.start()

    def add(self, part: LogPart) -> None:
        """Write a part of the log that follows what is known."""
        with self._lock:
            if self._file.closed or part.until <= self.until:
                return
            gap = f"... {part.left_out} bytes are left out ...\n" if part.left_out else ""
            with contextlib.suppress(OSError):  # a full disk ends no measurement
                self._file.write(f"{gap}{masked(part.text)}")
                self._file.flush()
            self.until = part.until

    def stop(self, last: Callable[[], LogPart] | None = None) -> None:
        """End the copying. Safe to call twice.

        Args:
            last: asks for the rest; None: it cannot be had.
        """
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(ANSWER_S)
            if last is not None:
                self.add(last())
        with self._lock:
            self._file.close()

    def _run(self) -> None:
        while not self._stop.wait(LOG_PERIOD_S):
            # A node that is gone, or too busy to answer, must not end the thread with a traceback.
            with contextlib.suppress(Exception):
                self.add(self._read(self.until, LOG_BYTES))


class Remote:
    """An actor on a node, and the ways to ask it.

    Args:
        actor: its handle.
        mark: of the processes of its server.
    """

    def __init__(self, actor: Any, mark: str) -> None:
        self.actor, self.mark = actor, mark

    def ask(self, what: str, *words: object, timeout_s: float = ANSWER_S, **more: object) -> Any:
        """The answer to one question.

        Raises:
            ray.exceptions.RayError: if none comes, in time or at all.
        """
        return connected().get(getattr(self.actor, what).remote(*words, **more), timeout=timeout_s)

    def read_log(self, since: int, most: int) -> LogPart:
        """See `ReplicaOnNode.read_log`."""
        part: LogPart = self.ask("read_log", since, most)
        return part


class RayServer(HttpServer):
    """A server on a node of a Ray cluster that we started there. `close` ends it.

    Args:
        remote: the actor that owns it.
        where: its node.
        started: what the node says of it.
        api_key: that it requires.
        log: its log, as it is copied here.
        on_close: called once, when nothing of it is left.

    Attributes:
        node: the node's name and address.
        node_id: Ray's id of the node.
        startup_s: seconds from start to ready.
        devices: what it has of the node, a line each.
    """

    def __init__(
        self,
        remote: Remote,
        where: NodeFacts,
        started: Started,
        api_key: str,
        log: LogStream,
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(started.base_url, started.model, api_key)
        # Of the class elsewhere; here it is the server's own.
        self.software = started.software
        self.node = f"{where.name} ({where.address})"
        self.node_id = where.node_id
        self.startup_s, self.devices = started.startup_s, started.devices
        self._remote, self._stream, self._on_close = remote, log, on_close
        self._ended = ""
        self._closing = threading.Lock()
        self._closed = False
        self._known: Capabilities | None = None

    @property
    def log(self) -> ServerLog:
        """The server's log, as far as it was copied to this machine."""
        return self._stream.log

    @property
    def loopback(self) -> bool:
        """See `HttpServer.loopback`: there is a network in between."""
        return False

    def ask(self, what: str, *words: object, timeout_s: float = ANSWER_S) -> Any:
        """The answer of the node to one question.

        Raises:
            ray.exceptions.RayError: if none comes, in time or at all.
        """
        return self._remote.ask(what, *words, timeout_s=timeout_s)

    def perhaps_gone(self) -> AbstractContextManager[None]:
        """A context in which a node may fail to answer."""
        from ray.exceptions import RayError

        return contextlib.suppress(RayError, TimeoutError)

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`; as the node sees them, with a network in between."""
        if self._known is None:
            with self.perhaps_gone():
                self._known = replace(self.ask("capabilities"), loopback=False)
        return self._known or super().capabilities()

    def facts(self) -> Mapping[str, object]:
        """See `Server.facts`."""
        told: dict[str, object] = {}
        with self.perhaps_gone():
            told = self.ask("facts")
        told = told or dict(super().facts())
        name = told.pop("server", self.software)
        return {"server": name, "node": self.node, **told, "log": str(self.log.path)}

    def telemetry(self, host: str = "warn") -> RayTelemetry:
        """What watches the server on its node; it samples in a ``with`` block, or between its `start` and `stop`.

        Args:
            host: ``error``, ``warn`` or ``off``: what a disturbed host of the node does to a window.
        """
        from pytest_gpucap.fleet.ray_telemetry import RayTelemetry

        return RayTelemetry(self, host)

    def ended(self, patience_s: float = 0.0) -> str:
        """See `HttpServer.ended`: the server, its replica or its node is gone."""
        until_s = time.monotonic() + patience_s
        while not (why := self._ended or self._why_ended()) and time.monotonic() < until_s:
            time.sleep(min(_PAUSE_S, patience_s))
        return why

    def _why_ended(self) -> str:
        from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError

        try:
            why: str = self.ask("ended", timeout_s=GLANCE_S)
        except (GetTimeoutError, ActorUnavailableError):
            return self._why_silent()  # not kept: a network may come back
        except RayActorError as error:
            self._ended = self._node_gone() or f"the replica on {self.node} ended: {reason(error)}"
            return self._ended
        except RayError as error:
            return self._node_gone() or f"the replica on {self.node} cannot be asked: {reason(error)}"
        own = f"the {self.software} server"
        if why.startswith(own):
            return f"the replica on {self.node}{why.removeprefix(own)}"
        return f"the replica on {self.node}: {why}" if why else ""

    def _why_silent(self) -> str:
        """Why a replica does not answer. A node may only be busy, so the server itself must be gone too."""
        if gone := self._node_gone():
            return gone
        parts = urlsplit(self.base_url)
        try:
            with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=GLANCE_S):
                return ""
        except OSError:
            return f"the node {self.node} does not answer, and neither does the server on it"

    def _node_gone(self) -> str:
        with self.perhaps_gone():
            if not _lives(self.node_id):
                return f"the node {self.node} went away"
        return ""

    def close(self) -> None:
        """End the server; returns when its processes are gone, as far as its node can be asked. Safe to call twice.

        Raises:
            ServerStopError: if a process outlived SIGKILL, or GPU memory did not come back.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            super().close()
            try:
                end_replica(self._remote, self.node_id, self.node, self._stream)
            finally:
                self._ended = self._ended or "it was closed"
                self._on_close()


def end_replica(remote: Remote, node_id: str, node: str, log: LogStream) -> None:
    """End a replica's server, ready or not, and its actor; then nothing of it is left on its node.

    Args:
        remote: its actor.
        node_id: Ray's id of its node; empty if it is not known.
        node: its name for messages.
        log: completed and closed.

    Raises:
        ServerStopError: if a process outlived SIGKILL, or GPU memory did not come back.
    """
    from ray.exceptions import RayError

    trouble = ""
    try:
        with contextlib.suppress(
            RayError, TimeoutError
        ):  # its worker or its node is gone: the watchdog ends the server
            trouble = remote.ask("close", timeout_s=CLOSE_S)
        with contextlib.suppress(RayError, ValueError):
            connected().kill(remote.actor)
        last = None
        with contextlib.suppress(RayError, TimeoutError):
            left, last = sweep(remote.mark, node_id, log.until)
            if left and not trouble:
                trouble = f"processes {left} of the server outlived SIGKILL"
    finally:
        log.stop(None if last is None else lambda: last)
    if trouble:
        raise ServerStopError(f"{trouble} (on {node})")


def sweep(mark: str, node_id: str, since: int) -> tuple[list[int], LogPart]:
    """See `ray_node.clean_up`, run on a node as a task that needs nothing.

    Raises:
        ray.exceptions.RayError: if the node does not run it.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pytest_gpucap.fleet.ray_node import clean_up

    ray = connected()
    if not _lives(node_id):
        raise ray.exceptions.RayError("the node is gone")
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(clean_up).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
    found: tuple[list[int], LogPart] = ray.get(task.remote(mark, since, LOG_BYTES), timeout=CLOSE_S)
    return found


def _lives(node_id: str) -> bool:
    return any(each["NodeID"] == node_id and each["Alive"] for each in connected().nodes())


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which Ray replaces by its own."""
    import signal

    kept = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, so Ray has replaced nothing
            if signal.getsignal(signal.SIGTERM) is not kept:
                signal.signal(signal.SIGTERM, kept)
