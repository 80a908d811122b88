"""Start a server's processes, and end all of them when their owner asks for it or ends.

It runs as a script with ``python -I -S``; the plugin never imports it. It is the parent of the server and a
*subreaper*: when a descendant's own parent dies, the kernel makes this process its parent, whatever session or process
group it moved to. So when no children are left, no process of the server is left.

It ends the server when

- the owner asks for it (a byte on the control pipe),
- the owner closes the control pipe; the kernel closes it after SIGKILL, ``os._exit`` or a crash,
- the owner's process ends while a fork of it still holds the pipe (pidfd of the owner),
- the server's main process ends; then its descendants are ended too.

With the order `KEEP` it lets go of its owner and keeps the server for so long. Then it ends the server when

- the time is over, by a clock that runs on while the machine is suspended,
- somebody of the same user asks for it at its socket,
- its sentinel ends (`sentinel.py`), which would end the server's processes if this one were killed.

At the socket a process of the same user may also take the server over: it gets what its last owner said of it and the
descriptors of the leases, and is the owner from then on.

Usage: ``watchdog.py CONTROL_FD,STATUS_FD,FD... OWNER_PID GRACE_S LOG_PATH COMMAND...``. Further descriptors are files
that it keeps open until the server has ended, such as a lease's lock. It writes JSON Lines to STATUS_FD:
``{"started": pid}``, ``{"exited": code}`` (negative: the signal), ``{"kept": why not}`` (empty: it does),
``{"ended": [pids that could not be ended]}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ABANDONED_GRACE_S = 5.0
"""Longest grace when the owner is gone: the next run may be waiting for this GPU memory."""
ORPHAN_GRACE_S = 2.0
"""Grace of the server's descendants between SIGTERM and SIGKILL."""
MASK_S = 60.0
"""Longest that masking a log may take, a start of Python included."""
KILL_S = 60.0
"""SIGKILL is repeated for this long; a process in uninterruptible sleep may need it."""

KILL = b"k"
"""On the control pipe: end everything without grace. Any other byte, or the pipe's end: with grace."""
KEEP = b"w"
"""On the control pipe, before one line of JSON: see `Watchdog.keep`."""
TAKE, END = b"take", b"end"
"""On the socket of a kept server, with a line break: hand it over, or end it."""
LOOK_S = 30.0
"""How often the clock is looked at: a sleep does not count the time that the machine is suspended."""
ASKED_S = 2.0
"""Longest wait for somebody at the socket to say what he wants."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def prctl(option: int, value: int) -> None:
    """Set one attribute of this process (prctl(2)).

    Raises:
        OSError: if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def parents() -> dict[int, int]:
    """The parent's pid of every visible process, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The name in parentheses may itself hold spaces and parentheses: the fields start after the last one.
            stat = (entry / "stat").read_text(errors="replace")
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants() -> list[int]:
    """All living or unreaped descendants of this process, parents before children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def now_s() -> float:
    """Seconds since the machine began, those in which it was suspended too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def short(path: str) -> Iterator[str]:
    """A short name of a socket: the kernel takes no more than 107 bytes."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # noqa: PTH120 - a text
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"  # noqa: PTH119 - see above
    finally:
        os.close(folder)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    import socket
    import struct

    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, user, _ = struct.unpack("3i", told)
    return pid, user


class Watchdog:
    """One server and everything it starts."""

    def __init__(self, control: int, status: int, owner: int, grace_s: float) -> None:
        self.control = control
        self.status = status
        self.grace_s = grace_s
        self.main = 0
        self.main_running = False
        self.killed = False
        self.ordered = False
        self.leases: list[int] = []
        self.kept: dict[str, Any] = {}
        self.until_s: float | None = None
        self.listener: socket.socket | None = None
        self.sentinel_fd = -1
        self.asking: list[socket.socket] = []
        self.poll = select.poll()
        self.wake_read, self.wake_write = os.pipe()
        for fd in (self.wake_read, self.wake_write):
            os.set_blocking(fd, False)
        self.poll.register(control, select.POLLIN)
        self.poll.register(self.wake_read, select.POLLIN)
        try:
            self.owner_fd = os.pidfd_open(owner)
        except ProcessLookupError:
            self.owner_fd = -1
        if self.owner_fd < 0 or os.getppid() != owner:
            self.order(ABANDONED_GRACE_S)
        else:
            self.poll.register(self.owner_fd, select.POLLIN)

    def order(self, grace_s: float) -> None:
        """Start to end everything, with at most this grace."""
        self.grace_s = min(self.grace_s, grace_s)
        self.ordered = True

    def report(self, **news: object) -> None:
        """Tell the owner, if it still exists."""
        with contextlib.suppress(OSError):
            os.write(self.status, json.dumps(news).encode() + b"\n")

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """On SIGTERM, end everything. The owner handles the terminal's signals."""
        if number == signal.SIGTERM:
            self.order(self.grace_s)

    def start(self, log_path: str, command: list[str]) -> None:
        """Start the server's main process in its own session. It writes to the log."""
        # Handlers, not SIG_IGN: an ignored signal stays ignored after exec, but the server needs these signals.
        for number in SIGNALS:
            signal.signal(number, self.on_signal)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        watchdog = os.getpid()
        # Blocked during the fork: our handlers would catch a SIGTERM that reaches the child before its exec.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.main = os.fork()
        if self.main == 0:
            self.become_server(watchdog, log_path, command)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self.main_running = True
        self.report(started=self.main)

    @staticmethod
    def become_server(watchdog: int, log_path: str, command: list[str]) -> None:
        """Become the server, in the forked child. Does not return."""
        try:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.setsid()
            # If this watchdog itself is killed, at least the main process ends with it.
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != watchdog:
                os._exit(1)
            null = os.open(os.devnull, os.O_RDONLY)
            log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for fd, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(fd, target)
            os.execvp(command[0], command)  # noqa: S606  (no shell is the point)
        except BaseException as error:  # noqa: BLE001  (a fork must never continue in the parent's code)
            os.write(2, f"cannot start {command[0]}: {error}\n".encode())
            os._exit(127)

    def reap(self) -> bool:
        """Reap every process that has ended; True when none is left."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.main:
                self.main_running = False
                self.report(exited=os.waitstatus_to_exitcode(wait_status))

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until a child ends, a command arrives, or the time is over."""
        for fd, _ in self.poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000):
            if fd == self.wake_read:
                with contextlib.suppress(BlockingIOError):
                    while os.read(self.wake_read, 4096):
                        pass
            elif fd in (self.owner_fd, self.sentinel_fd):
                self.poll.unregister(fd)
                self.order(ABANDONED_GRACE_S)
            elif self.listener is not None and fd == self.listener.fileno():
                self.answer(self.listener)
            elif fd == self.control:
                self.obey()

    def obey(self) -> None:
        """Do what the owner orders; its end is an order too."""
        try:
            order = os.read(self.control, 1)
        except ConnectionError:
            order = b""
        if not order:
            self.poll.unregister(self.control)
            self.order(ABANDONED_GRACE_S)
        elif order == KEEP:
            line = b""
            while not line.endswith(b"\n"):
                if not (more := os.read(self.control, 1 << 16)):
                    return self.order(ABANDONED_GRACE_S)
                line += more
            self.keep(json.loads(line))
        else:
            self.killed = self.killed or order == KILL
            self.order(self.grace_s)
        return None

    def keep(self, asked: dict[str, Any]) -> None:
        """Let go of the owner and keep the server.

        Args:
            asked: ``seconds`` to keep it for; ``sentinel``: its pid; ``socket`` and ``note``: paths; ``told``: what the
                note tells everybody; ``record``: what the next owner gets, secrets included.
        """
        import socket

        listener = socket.socket(socket.AF_UNIX)
        try:
            if self.sentinel_fd < 0:
                self.sentinel_fd = os.pidfd_open(asked["sentinel"])
            mask = os.umask(0o177)
            try:
                with short(asked["socket"]) as name:
                    listener.bind(name)
            finally:
                os.umask(mask)
            listener.listen()
            self.kept, self.until_s = asked, now_s() + asked["seconds"]
            self.note(until_s=self.until_s)
        except OSError as error:
            self.until_s = None
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(asked["socket"])  # noqa: PTH108 - a text
            self.report(kept=error.strerror or str(error))
            return
        self.listener = listener
        self.poll.register(listener, select.POLLIN)
        self.poll.register(self.sentinel_fd, select.POLLIN)
        self.poll.unregister(self.control)
        if self.owner_fd >= 0:
            self.poll.unregister(self.owner_fd)
            os.close(self.owner_fd)
        self.report(kept="")
        for fd in {self.control, self.status}:
            os.close(fd)
        self.control = self.status = self.owner_fd = -1

    def note(self, **more: object) -> None:
        """Write the note, whole at every moment, which everybody may read."""
        path = self.kept["note"]
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(fd, "w") as file:
            os.fchmod(fd, 0o644)
            json.dump({**self.kept["told"], **more}, file)
        os.replace(f"{path}.new", path)  # noqa: PTH105 - a text

    def answer(self, listener: socket.socket) -> None:
        """Somebody is at the socket."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        try:
            connection.settimeout(ASKED_S)
            peer, user = peer_of(connection)
            asked = b"" if user != os.getuid() else connection.recv(64).strip()
            if asked == END:
                self.asking.append(connection)  # its end tells when all has ended
                self.order(self.grace_s)
                return
            if asked == TAKE:
                self.hand_over(connection, peer)
                return
        except OSError:
            pass
        connection.close()

    def hand_over(self, connection: socket.socket, peer: int) -> None:
        """Make somebody the owner."""
        import socket

        owner_fd = os.pidfd_open(peer)
        try:
            socket.send_fds(connection, [b"+"], self.leases)
            connection.sendall(json.dumps(self.kept["record"]).encode() + b"\n")
        except OSError:
            os.close(owner_fd)
            raise
        with contextlib.suppress(OSError):
            self.note(used_by=peer)  # before others can notice that nobody listens
        self.stop_listening()
        connection.settimeout(None)
        self.control = self.status = connection.detach()
        self.owner_fd, self.until_s = owner_fd, None
        self.poll.register(self.control, select.POLLIN)
        self.poll.register(self.owner_fd, select.POLLIN)
        self.report(started=self.main)

    def stop_listening(self) -> None:
        """Nobody can ask any more."""
        if self.listener is not None:
            self.poll.unregister(self.listener)
            self.listener.close()
            self.listener = None
            with contextlib.suppress(OSError):
                os.unlink(self.kept["socket"])  # noqa: PTH108 - a text

    def left_s(self) -> float | None:
        """How long to sleep at most; None: until something happens. Once the time is over, ending is ordered."""
        if self.until_s is None:
            return None
        left = self.until_s - now_s()
        if left <= 0:
            self.order(self.grace_s)
        return min(left, LOOK_S)

    def run(self) -> None:
        """Wait until there is a reason to end, then end everything."""
        while True:
            empty = self.reap()
            left_s = self.left_s()
            if empty or self.ordered or not self.main_running:
                break
            self.wait(left_s)
        self.end()

    def end(self) -> None:
        """Send SIGTERM to the main process, then to its descendants, then SIGKILL to all."""
        self.until_s = None
        self.stop_listening()
        if self.kept:
            with contextlib.suppress(OSError):
                os.unlink(self.kept["note"])  # noqa: PTH108 - a text
        empty = self.reap()
        if self.main_running:
            self.send(self.main, signal.SIGTERM)
            empty = self.wait_until_empty(self.grace_s, main_only=True)
        if not empty and not self.main_running:
            for pid in descendants():
                self.send(pid, signal.SIGTERM)
            empty = self.wait_until_empty(min(ORPHAN_GRACE_S, self.grace_s))
        deadline = time.monotonic() + KILL_S
        while not empty and time.monotonic() < deadline:
            # A process may fork while descendants are listed: repeat until nothing is left.
            for pid in descendants():
                self.send(pid, signal.SIGKILL)
            self.wait(0.05)
            empty = self.reap()
        self.mask_log()
        self.report(ended=[] if empty else descendants())

    def mask_log(self) -> None:
        """Mask the secrets in the log of a server that nobody owns: an owner does so itself."""
        if not self.kept or self.owner_fd >= 0:
            return
        import subprocess

        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                self.kept["mask"]["command"],
                input=self.kept["mask"]["input"].encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=MASK_S,
                check=False,
                cwd="/",
            )

    def wait_until_empty(self, timeout_s: float, *, main_only: bool = False) -> bool:
        """Wait until all processes (or only the main one) have ended, or the time or the grace is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            empty = self.reap()
            late = time.monotonic() >= min(deadline, deadline - timeout_s + self.grace_s)
            if empty or late or self.killed or (main_only and not self.main_running):
                return empty
            self.wait(min(0.2, deadline - time.monotonic()))

    @staticmethod
    def send(pid: int, number: int) -> None:
        """Send a signal to a process that may have ended already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main(arguments: list[str]) -> None:
    """Run with these command line arguments."""
    kept, owner, grace_s, log_path, *command = arguments
    control, status, *others = map(int, kept.split(","))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for fd in (control, status, *others):
        os.set_inheritable(fd, False)
    watchdog = Watchdog(control, status, int(owner), float(grace_s))
    watchdog.leases = others
    if not watchdog.ordered:
        watchdog.start(log_path, command)
        watchdog.run()


if __name__ == "__main__":
    main(sys.argv[1:])
