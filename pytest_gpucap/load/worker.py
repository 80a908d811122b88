"""A worker process: ``python -P -m pytest_gpucap.load.worker``. Only the runner starts it and talks to it.

Messages go over a socket pair on descriptor 0: one JSON object each, together with descriptors of shared memory. The
runner's end closes when the runner ends, however it ends, and the worker ends with it.
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

from pytest_gpucap.jit import spare_linear_algebra
from pytest_gpucap.load.connection import AnswerForm, RequestTemplate
from pytest_gpucap.load.event_loop import EventLoop
from pytest_gpucap.load.own_bodies import OwnBodies
from pytest_gpucap.load.parent_death import end_with_parent
from pytest_gpucap.load.prompts import BodyComposer, PromptRecipe, RequestComposer
from pytest_gpucap.load.shared_memory import PhaseTable, RunTable, read_shared_bytes
from pytest_gpucap.load.spread import Spread

MESSAGE_BYTES = 2**20
MOST_SAID = 2_000
"""Characters of a worker's last words: a datagram must hold them."""
_PR_SET_TIMERSLACK = 29
_TIMERSLACK_NS = 1_000
"""The default of 50 us would make every timed wait 50 us longer."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""The call's number by machine; libc has no function for it before glibc 2.41."""
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""struct sched_attr (sched_setattr(2)): size, policy, flags, nice, priority, runtime, deadline, period."""
_SLICE_NS = 100_000
"""The shortest that Linux grants."""


class WorkerControl:
    """The worker's end of the control socket: carries out the runner's orders."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop: EventLoop | None = None
        self._worker = self._workers = 0

    def serve(self) -> None:
        """Set up from the first message, then run until told to stop or the runner is gone."""
        told, fds = self._receive()
        if told is None:
            return
        message = json.loads(read_shared_bytes(fds[1], told["setup"]))
        self._worker, self._workers = message["worker"], message["workers"]
        run_table = RunTable.attach(fds[0], self._workers)
        os.close(fds[0])
        loop = _event_loop(message, run_table, _composer(message, fds[2:]))
        self._loop = loop
        loop.on_phase_end = lambda: self._send({"ended": True, "errors": _texts(loop)})
        loop.add_handler(self.sock, self._command)
        # Requests hold no reference cycles, so frequent collections find nothing, and each pause makes a request late.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
        self._send({"ready": True})
        try:
            loop.run()
        finally:
            with contextlib.suppress(OSError):
                loop.close()

    def _command(self) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101 - set before the socket is watched
        message, fds = self._receive()
        if message is None or message["do"] == "stop":
            loop.stop()
        elif message["do"] == "begin":
            table = PhaseTable(fds[0], message["rows"], self._workers, turns=message["turns"])
            os.close(fds[0])
            loop.begin(
                table,
                start_s=message["start_s"],
                end_s=message["end_s"],
                concurrency=message["shares"][self._worker],
                first_prompt=message["first_prompt"],
            )
        elif message["do"] == "end_early":
            loop.end_early(message["end_s"])
        elif message["do"] == "settle":
            loop.settle(cancel=message["cancel"])
            self._send({"settled": True, "errors": _texts(loop)})

    def _receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        data, fds, _, _ = socket.recv_fds(self.sock, MESSAGE_BYTES, 4)
        return (json.loads(data) if data else None), fds

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.send(json.dumps(message).encode())


def _texts(loop: EventLoop) -> list[tuple[int, int, str, int]]:
    return [(int(each.status), each.code, each.text, each.count) for each in loop.error_texts]


def _composer(setup: dict[str, Any], fds: list[int]) -> BodyComposer:
    """What makes the bodies: by a recipe, or of prompts or sessions of a file, which are behind the only descriptor."""
    recipe = None if setup["recipe"] is None else PromptRecipe.from_json(setup["recipe"])
    if fds and "block" in setup["bodies"]:
        from pytest_gpucap.load.session_bodies import BlockBodies, SessionBodies

        told = setup["bodies"]
        return SessionBodies.attach(fds[0], told) if recipe is None else BlockBodies.attach(recipe, fds[0], told)
    if fds:
        return OwnBodies.attach(fds[0], setup["bodies"])
    assert recipe is not None  # noqa: S101 - without a file prompts are made
    return RequestComposer(recipe)


def _event_loop(setup: dict[str, Any], run_table: RunTable, composer: BodyComposer) -> EventLoop:
    form = AnswerForm(setup["form"])
    templates = [
        RequestTemplate(
            (socket.AddressFamily(family), tuple(address)), head.encode(), setup["ignore_eos"], replica, form
        )
        for replica, ((family, address), head) in enumerate(setup["replicas"])
    ]
    template, *beside = templates
    common = {name: setup[name] for name in ("bins_start_s", "request_timeout_s", "secrets")}
    if setup["library"] is None:
        spread = Spread(setup["spread"])
        return EventLoop(template, composer, run_table, setup["worker"], **common, beside=beside, spread=spread)
    from pytest_gpucap.load.library_loop import LibraryEventLoop

    return LibraryEventLoop(template, composer, run_table, setup["worker"], **common, **setup["library"])


def _ask_for_short_slices(libc: ctypes.CDLL) -> None:
    """Ask the scheduler for short time slices, so that this process runs sooner after it wakes, for the same CPU time.

    Otherwise a wake-up beside a busy process waits until that process's slice of about 3 ms is over. Linux grants short
    slices to every process since 6.12, and ignores the request before. A scheduling policy that the user chose stays.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    libc.syscall(number, 0, attributes, 0)


def main() -> int:
    """Run one worker; returns the exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_TIMERSLACK, _TIMERSLACK_NS, 0, 0, 0)
    _ask_for_short_slices(libc)
    if "--die-with-parent" in sys.argv:
        end_with_parent()
    # Ctrl-C goes to the whole foreground group; the runner decides what it means for the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    control = WorkerControl(socket.socket(fileno=0))
    try:
        control.serve()
    except BaseException as error:  # noqa: BLE001 - the runner must learn of every failure
        control._send({"died": f"{type(error).__name__}: {error}"[:MOST_SAID]})  # noqa: SLF001 - the same module
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    spare_linear_algebra()
    sys.exit(main())
