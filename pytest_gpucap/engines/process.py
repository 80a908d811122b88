"""A server's processes: started in their own session, and ended without exception.

The server is the child of a small watchdog process (`watchdog.py`), not of pytest. The watchdog has its own session, so
neither the terminal's Ctrl-C nor a signal to pytest's process group reaches the server before we end it. Pytest holds
the watchdog's control pipe. When pytest ends, in whatever way, the kernel closes that pipe, and the watchdog ends
everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import psutil

from pytest_gpucap.engines.errors import ServerStopError

SERVER_ID_VARIABLE = "GPUCAP_SERVER_ID"
"""Environment variable that marks every process of one server, so that the last sweep finds them."""

_WATCHDOG = Path(__file__).with_name("watchdog.py")
_KILL_PATIENCE_S = 90.0
"""The watchdog repeats SIGKILL for 60 s, and then ends by itself."""
_KEEP: Final = b"w"
"""Order to the watchdog; see `watchdog.KEEP`."""
_KEEP_PATIENCE_S: Final = 30.0
_OUTLIVED: ContextVar[tuple[int, ...]] = ContextVar("_OUTLIVED", default=())


@contextlib.contextmanager
def held_until_gone(descriptors: Sequence[int]) -> Iterator[None]:
    """Servers that are started in this context keep these files open until all their processes have ended.

    So a lock on such a file outlives this process if they do.
    """
    token = _OUTLIVED.set(tuple(descriptors))
    try:
        yield
    finally:
        _OUTLIVED.reset(token)


class Watched(Protocol):
    """A watchdog as its owner sees it, whether it is a child or not: a part of `subprocess.Popen`."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """The exit code, as far as `poll` or `wait` saw it."""
        ...

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: if it does not come in time.
        """
        ...


class OwnedProcess:
    """A main process with everything it starts.

    Args:
        command: what to run; the first entry is an absolute path or found on PATH.
        env: the whole environment of the process.
        log_path: where its standard output and error go, appended; made for its owner alone.
        grace_s: seconds between SIGTERM and SIGKILL when it is ended.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], log_path: Path, grace_s: float = 15.0
    ) -> None:
        self._begin(uuid.uuid4().hex, grace_s)
        control_read, self._control = os.pipe()
        self._status, status_write = os.pipe()
        os.set_blocking(self._status, False)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        kept = (control_read, status_write, *_OUTLIVED.get())
        arguments = [",".join(map(str, kept)), str(self._owner), str(grace_s), str(log_path), *command]
        try:
            with _own(log_path) as log:
                self._watchdog: Watched = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_WATCHDOG), *arguments],
                    env={**env, SERVER_ID_VARIABLE: self._token},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=kept,
                    start_new_session=True,
                )
        except BaseException:
            # The watchdog may have started nevertheless. Closing the control pipe ends it.
            os.close(self._control)
            os.close(self._status)
            raise
        finally:
            os.close(control_read)
            os.close(status_write)

    def _begin(self, token: str, grace_s: float) -> None:
        """What is known before there is a watchdog."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._grace_s = grace_s
        self._token = token
        self._pid: int | None = None
        self._exit_code: int | None = None
        self._kept: str | None = None
        self._stubborn: list[int] = []
        self._news = b""

    @property
    def token(self) -> str:
        """The value of `SERVER_ID_VARIABLE` in its processes."""
        return self._token

    @property
    def grace_s(self) -> float:
        """Seconds between SIGTERM and SIGKILL when it is ended."""
        return self._grace_s

    @property
    def watchdog_pid(self) -> int:
        """The watchdog's id."""
        return self._watchdog.pid

    def keep(self, asked: Mapping[str, object]) -> str:
        """Leave everything to the watchdog, which keeps it for a while.

        Args:
            asked: see `watchdog.Watchdog.keep`.

        Returns:
            Why it does not, in a few words. Empty if it does; then nothing is left here to be ended.
        """
        with self._lock:
            if self._control < 0 or os.getpid() != self._owner:
                return "it has ended"
            self._kept = None
            self._order(_KEEP + json.dumps(asked).encode() + b"\n")
            deadline = time.monotonic() + _KEEP_PATIENCE_S
            while self._kept is None and self.poll() is None and time.monotonic() < deadline:
                self.wait_news(0.2)
            if self._kept:
                return self._kept
            if self._kept is None:
                return "it has ended" if self.poll() is not None else "its watchdog does not answer"
            os.close(self._control)
            os.close(self._status)
            self._control = self._status = -1
            if isinstance(self._watchdog, subprocess.Popen):
                forget(self._watchdog)
            return ""

    @property
    def pid(self) -> int | None:
        """The main process's id; None until it has started."""
        self._read_news()
        return self._pid

    def poll(self) -> int | None:
        """The main process's exit code, negative for the signal that ended it; None while it runs."""
        self._read_news()
        if self._exit_code is None and self._watchdog.poll() is not None:
            self._read_news()
            if self._exit_code is None:
                self._exit_code = self._unreported_exit()
        return self._exit_code

    def pids(self) -> set[int]:
        """The main process and all its living descendants, in any session."""
        try:
            below = psutil.Process(self._watchdog.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return set()
        return {process.pid for process in below if alive(process)}

    def close(self) -> None:
        """End everything; returns when all processes are reaped. Safe to call twice. In a fork it does nothing.

        Raises:
            ServerStopError: if a process outlived SIGKILL.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._control < 0:
                return
            try:
                self._order(b"t")
                if not self._wait(self._grace_s + 10.0):
                    self._order(b"k")
                    self._wait(_KILL_PATIENCE_S)
            except BaseException:
                # A second Ctrl-C ends the grace period. All processes are still ended.
                self._order(b"k")
                self._wait(_KILL_PATIENCE_S)
                raise
            finally:
                self._read_news()
                self._release()
            self._sweep()

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            while order:
                order = order[os.write(self._control, order) :]

    def _wait(self, timeout_s: float) -> bool:
        try:
            self._watchdog.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _release(self) -> None:
        os.close(self._control)
        os.close(self._status)
        self._control = self._status = -1
        if self._exit_code is None:
            self._exit_code = self._unreported_exit()

    def _unreported_exit(self) -> int:
        """The exit code if the watchdog reports none: it was killed with the main process, or did not start it."""
        return (self._watchdog.returncode or 0) if self._pid is None else -signal.SIGKILL

    def _sweep(self) -> None:
        """Find processes that the watchdog did not end, by their environment, and kill them."""
        deadline = time.monotonic() + 10.0
        while survivors := marked(self._token):
            for process in survivors:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if time.monotonic() > deadline:
                pids = sorted({process.pid for process in survivors} | set(self._stubborn))
                raise ServerStopError(f"processes {pids} of the server outlived SIGKILL; look at their state with ps")
            psutil.wait_procs(survivors, timeout=0.5)

    def _read_news(self) -> None:
        if self._status < 0:
            return
        while chunk := self._read_some():
            self._news += chunk
        *lines, self._news = self._news.split(b"\n")
        for line in lines:
            news = json.loads(line)
            self._pid = news.get("started", self._pid)
            self._exit_code = news.get("exited", self._exit_code)
            self._kept = news.get("kept", self._kept)
            self._stubborn = news.get("ended", self._stubborn)

    def _read_some(self) -> bytes:
        """What the watchdog has written, a part at a time; empty if there is nothing now."""
        try:
            return os.read(self._status, 4096)
        except BlockingIOError:
            return b""

    def wait_news(self, timeout_s: float) -> None:
        """Sleep until the watchdog reports something, such as the end of the main process, or `timeout_s` is over."""
        if self._status < 0:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._status, selectors.EVENT_READ)
            selector.select(max(0.0, timeout_s))


def forget(process: subprocess.Popen[bytes]) -> None:
    """Leave a child to itself: Python then does not warn that it outlives us."""
    process.returncode = 0


def _own(path: Path) -> BinaryIO:
    """Open a file that, if it is new, no other user can read: until its server ends, a log may show secrets."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def marked(token: str) -> list[psutil.Process]:
    """Living processes whose environment carries this server's token."""
    found = []
    for process in psutil.process_iter():
        try:
            if alive(process) and process.environ().get(SERVER_ID_VARIABLE) == token:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process lives. A zombie does not, nor does another process that has its number now."""
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
