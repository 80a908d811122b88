"""A worker process: ``python -P -m pytest_gpucap.load.worker``; started and spoken to by the runner only.

Control goes over a socket pair on descriptor 0: one JSON object a line, and the descriptors of shared memory along with
it. The runner's end closes when the runner dies, however it dies, and the worker ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from typing import Any

from pytest_gpucap.load.connection import RequestHead
from pytest_gpucap.load.event_loop import EventLoop
from pytest_gpucap.load.prompts import Composer, Recipe
from pytest_gpucap.load.shared_memory import PhaseTable, WorkerBoard

MESSAGE_BYTES = 2**20
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_TIMERSLACK_NS = 1_000
"""The default of 50 us would make every timed wait that much longer."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The call's number by machine; libc has no function for it before glibc 2.41."""
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""struct sched_attr (sched_setattr(2)): size, policy, flags, nice, priority, runtime, deadline, period."""
_SLICE_NS = 100_000
"""The shortest that Linux grants."""


class Control:
    """The worker's end of the control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._engine: EventLoop | None = None
        self._worker = self._workers = 0

    def serve(self) -> None:
        """Set up from the first message, then run until told to stop or the runner is gone."""
        message, fds = self._receive()
        if message is None:
            return
        self._worker, self._workers = message["worker"], message["workers"]
        board = WorkerBoard.attach(fds[0], self._workers)
        os.close(fds[0])
        engine = _engine(message, board)
        self._engine = engine
        engine.on_phase_end = lambda: self._send({"ended": True, "errors": engine.errors})
        engine.attend(self.sock, self._command)
        # Collections of the young would find nothing: requests hold no cycles. A pause here is a late request.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
        self._send({"ready": True})
        try:
            engine.run()
        finally:
            with contextlib.suppress(OSError):
                engine.close()

    def _command(self) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101 - set before the socket is attended to
        message, fds = self._receive()
        if message is None or message["do"] == "stop":
            engine.stop()
        elif message["do"] == "begin":
            table = PhaseTable(fds[0], message["rows"], self._workers)
            os.close(fds[0])
            engine.begin(
                table,
                start_s=message["start_s"],
                end_s=message["end_s"],
                share=message["shares"][self._worker],
                first_prompt=message["first_prompt"],
            )
        elif message["do"] == "cut":
            engine.cut(message["end_s"])
        elif message["do"] == "settle":
            engine.settle(cancel=message["cancel"])
            self._send({"settled": True, "errors": engine.errors})

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.sock, MESSAGE_BYTES, 4)
        return (json.loads(data) if data else None), fds

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.send(json.dumps(message).encode())


def _engine(setup: dict[str, Any], board: WorkerBoard) -> EventLoop:
    composer = Composer(Recipe.from_json(setup["recipe"]))
    family, address = setup["address"]
    target = RequestHead((socket.AddressFamily(family), tuple(address)), setup["head"].encode(), setup["ignore_eos"])
    common = {"bins_start_s": setup["bins_start_s"], "request_timeout_s": setup["request_timeout_s"]}
    if setup["library"] is None:
        return EventLoop(target, composer, board, setup["worker"], **common)
    from pytest_gpucap.load.library_loop import LibraryEventLoop

    return LibraryEventLoop(target, composer, board, setup["worker"], **common, **setup["library"])


def _ask_for_short_slices(libc: ctypes.CDLL) -> None:
    """Have the scheduler run this process in short slices, and so sooner after it wakes, for no more CPU altogether.

    Beside a busy process a wake-up otherwise waits until that one's slice of some 3 ms is over. Linux grants it to
    anybody since 6.12 and ignores it before; whoever has chosen another scheduling policy keeps it.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    libc.syscall(number, 0, attributes, 0)


def main() -> int:
    """Run one worker; the exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_TIMERSLACK, _TIMERSLACK_NS, 0, 0, 0)
    _ask_for_short_slices(libc)
    if "--die-with-parent" in sys.argv:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Ctrl-C goes to the whole foreground group; the runner decides what it means for the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    control = Control(socket.socket(fileno=0))
    try:
        control.serve()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the runner must learn of it
        control._send({"died": f"{type(error).__name__}: {error}"})  # noqa: SLF001 - the same module
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
