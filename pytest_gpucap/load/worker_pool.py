"""The worker processes as the runner sees them: it starts them, sends them orders, and notices when one fails."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest_gpucap
from pytest_gpucap.load.parent_death import can_be_followed
from pytest_gpucap.load.protocol import ErrorText, LoadError, Status
from pytest_gpucap.load.shared_memory import RunTable, WorkerProgress, anonymous_memory, shared_bytes

WORKER_START_TIMEOUT_S = 60.0
"""Importing NumPy takes a second even on a busy machine; a minute means that something is wrong."""
SILENCE_S = 15.0
"""A worker's heartbeat beats 50 times a second. A machine too busy for one beat in this time measures nothing."""
WORKER_STOP_TIMEOUT_S = 5.0


class WorkerPool:
    """A number of worker processes, started together.

    Args:
        workers: how many.
        setup: the first message to every worker.
        mask: takes secrets out of what the workers report: answers of a server may repeat them.
        bodies_fd: descriptor of the bodies of the user's own prompts (`own_bodies`); None: they are made on the spot.

    Raises:
        LoadError: if one of them does not start.
    """

    def __init__(
        self, workers: int, setup: dict[str, Any], mask: Callable[[str], str] = str, bodies_fd: int | None = None
    ) -> None:
        self.workers = workers
        self._mask = mask
        self.errors: list[list[ErrorText]] = [[] for _ in range(workers)]
        self._log: IO[bytes] = tempfile.TemporaryFile(prefix="gpucap-load-")  # noqa: SIM115 - closed in `close`
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._inbox: list[list[dict[str, Any]]] = [[] for _ in range(workers)]
        run_table_fd = anonymous_memory(RunTable.size(workers))
        try:
            self.run_table = RunTable.attach(run_table_fd, workers)
            for worker in range(workers):
                self._start({**setup, "worker": worker, "workers": workers}, run_table_fd, bodies_fd)
            self._started_s = time.monotonic()
            deadline_s = self._started_s + WORKER_START_TIMEOUT_S
            for worker in range(workers):
                self._wait_for(worker, "ready", deadline_s, watch_heartbeat=False)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(run_table_fd)

    def _start(self, setup: dict[str, Any], run_table_fd: int, bodies_fd: int | None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "pytest_gpucap.load.worker"]
        if can_be_followed():
            command.append("--die-with-parent")
        environment = dict(os.environ)
        home = str(Path(pytest_gpucap.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), home]))
        with theirs:
            self._sockets.append(ours)
            self._processes.append(
                subprocess.Popen(command, stdin=theirs.fileno(), stdout=self._log, stderr=self._log, env=environment)
            )
        # The texts around prompts may be longer than a datagram.
        text = json.dumps(setup).encode()
        setup_fd = shared_bytes(text)
        try:
            fds = [run_table_fd, setup_fd, *([] if bodies_fd is None else [bodies_fd])]
            socket.send_fds(ours, [json.dumps({"setup": len(text)}).encode()], fds)
        finally:
            os.close(setup_fd)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(process.pid for process in self._processes)

    def tell(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Send every worker a message, and a file descriptor along with it.

        Raises:
            LoadError: if one is dead.
        """
        text = json.dumps(message).encode()
        for worker, sock in enumerate(self._sockets):
            try:
                socket.send_fds(sock, [text], [] if fd is None else [fd])
            except OSError:
                self._dead(worker)

    def watch(self, timeout_s: float) -> None:
        """Wait at most this long for messages, and keep them for `heard` and `collect`.

        Raises:
            LoadError: if a worker has died or fallen silent.
        """
        for worker in self._readable(timeout_s):
            sock = self._sockets[worker]
            try:
                data = sock.recv(2**20)
            except OSError:
                data = b""
            if not data:
                self._dead(worker)
            message = _changed(json.loads(data), self._mask)
            if "died" in message:
                self._dead(worker, message["died"])
            if "errors" in message:
                self.errors[worker] = [ErrorText(Status(status), *told) for status, *told in message["errors"]]
            self._inbox[worker].append(message)

    def _readable(self, timeout_s: float) -> list[int]:
        """The workers that have sent something within this time. `select` takes no descriptor beyond 1,023."""
        poll = select.poll()
        workers = {sock.fileno(): worker for worker, sock in enumerate(self._sockets)}
        for fd in workers:
            poll.register(fd, select.POLLIN)
        return [workers[fd] for fd, _ in poll.poll(math.ceil(max(timeout_s, 0.0) * 1e3))]

    def check_heartbeats(self) -> None:
        """Check that every worker is alive.

        Raises:
            LoadError: if one has been silent for too long; names it.
        """
        now_s = time.monotonic()
        for worker in range(self.workers):
            last_s = max(float(self.run_table.progress[worker, WorkerProgress.HEARTBEAT_NS]) * 1e-9, self._started_s)
            if now_s - last_s > SILENCE_S:
                raise LoadError(
                    f"load worker {worker} (pid {self._processes[worker].pid}) has been silent for "
                    f"{now_s - last_s:.0f} s: stopped, or starved of CPU; the measurement is void"
                )

    def collect(self, kind: str, timeout_s: float) -> None:
        """Wait until every worker has sent a message of a kind.

        Raises:
            LoadError: if one does not send it in time, or has died.
        """
        deadline_s = time.monotonic() + timeout_s
        for worker in range(self.workers):
            self._wait_for(worker, kind, deadline_s)

    def heard(self, kind: str) -> bool:
        """Whether every worker has sent a message of this kind; if so, the messages are taken."""
        if not all(any(kind in message for message in inbox) for inbox in self._inbox):
            return False
        for worker in range(self.workers):
            self._take(worker, kind)
        return True

    def _take(self, worker: int, kind: str) -> bool:
        for message in self._inbox[worker]:
            if kind in message:
                self._inbox[worker].remove(message)
                return True
        return False

    def _wait_for(self, worker: int, kind: str, deadline_s: float, *, watch_heartbeat: bool = True) -> None:
        while not self._take(worker, kind):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise LoadError(f"load worker {worker} did not answer ({kind}) in time; {self._log_tail()}")
            self.watch(min(left_s, 0.25))
            if watch_heartbeat:
                self.check_heartbeats()

    def _dead(self, worker: int, cause: str | None = None) -> None:
        process = self._processes[worker]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        code = process.returncode
        how = cause or (f"signal {-code}" if code is not None and code < 0 else f"exit status {code}")
        raise LoadError(f"load worker {worker} (pid {process.pid}) died: {how}; {self._log_tail()}")

    def _log_tail(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        text = self._mask(os.pread(self._log.fileno(), 2000, max(0, size - 2000)).decode("utf-8", "replace").strip())
        return f"the end of its log: {text}" if text else "its log is empty"

    def close(self) -> None:
        """End every worker and reap it. Safe to call twice."""
        for sock in self._sockets:
            sock.close()  # At the end of file the worker cancels what is in flight and ends.
        deadline_s = time.monotonic() + WORKER_STOP_TIMEOUT_S
        for process in self._processes:
            try:
                process.wait(max(deadline_s - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._sockets, self._processes = [], []
        self._log.close()


def _changed(message: Any, change: Callable[[str], str]) -> Any:
    """The message with every text in its values changed, and the texts that a value has as keys."""

    def deep(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, dict):
            return {change(key): deep(each) for key, each in value.items()}
        return [deep(each) for each in value] if isinstance(value, list) else value

    return {kind: deep(value) for kind, value in message.items()}
