"""A load generator on another node: ``python -m pytest_gpucap.fleet.remote_host``.

The process reads orders from its standard input and writes answers to its standard output. It drives the server from
its node with an HTTP load runner of its own. It ends when its stream closes, however the other end went. Journals are
sent from the first row that may still change. One thread answers what is asked of the clock, and another tells that the
process lives, also while a phase runs.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from pytest_gpucap.access import Access
from pytest_gpucap.fleet.joined_parts import COLUMNS, OPTIONAL, SHIFTED
from pytest_gpucap.fleet.remote_messages import (
    ORDERS,
    Beat,
    Begin,
    End,
    Ended,
    Failed,
    Order,
    Phase,
    Prepared,
    Ready,
    Report,
    Rows,
    Running,
    Said,
    Settle,
    Settled,
    Setup,
    StreamError,
    Tell,
    Tick,
    Tock,
    array_of,
    column,
)
from pytest_gpucap.fleet.remote_stream import (
    Channel,
    PipeStream,
)
from pytest_gpucap.fleet.timed_runner import TimedHttpRunner
from pytest_gpucap.load.protocol import (
    ClosedLoop,
    Journal,
    LoadError,
    LoadPhase,
    OpenLoop,
    PhaseSpan,
    Progress,
    PromptCountError,
)
from pytest_gpucap.masking import Secret

END_S: Final = 10.0
"""How long the process may take to end after its stream has closed."""
BEAT_S: Final = 0.5
"""How often the process tells that it lives."""
MOST_SAID: Final = 2000


class Host:
    """The other node's end: carries out orders with an HTTP load runner.

    Args:
        channel: to the one who gives the orders.
        on_end: called in another thread when the stream has closed; the process should end soon after.
    """

    def __init__(self, channel: Channel, on_end: Callable[[], None] = lambda: None) -> None:
        self._channel, self._on_end = channel, on_end
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._runner: TimedHttpRunner | None = None
        self._shift_s = 0.0
        self._gone = threading.Event()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def serve(self) -> None:
        """Carry out orders until the stream closes."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        phase: LoadPhase | None = None
        try:
            while (order := self._orders.get()) is not None:
                try:
                    phase = self._carry_out(order, phase)
                except LoadError as error:
                    self._channel.send(Failed(str(error), isinstance(error, PromptCountError)))
        except StreamError:
            pass  # the other side is gone, and nobody waits for an answer
        finally:
            self._gone.set()
            if self._runner is not None:
                self._runner.close()
            if self._folder is not None:
                self._folder.cleanup()
            self._channel.close()

    def _listen(self) -> None:
        """Read orders. What is asked of the clock is answered at once, and the end of a phase is noted at once."""
        try:
            while (order := self._channel.receive(ORDERS)) is not None:
                if isinstance(order, Tick):
                    self._channel.send(Tock(time.monotonic() + self._shift_s))
                elif isinstance(order, End):
                    if self._runner is not None:
                        self._runner.end_at(order.end_s - self._shift_s)
                else:
                    if isinstance(order, Setup):
                        self._shift_s = order.clock_shift_s
                    self._orders.put(order)
        except StreamError as error:
            print(f"gpucap: {error}", file=sys.stderr)  # noqa: T201 - the log of this process
        finally:
            self._gone.set()
            self._orders.put(None)
            self._on_end()

    def _beat(self) -> None:
        with contextlib.suppress(StreamError):
            while not self._gone.wait(BEAT_S):
                self._channel.send(Beat())

    def _carry_out(self, order: Order, phase: LoadPhase | None) -> LoadPhase | None:
        """Carry out one order; the phase that is ready to begin."""
        if isinstance(order, Setup):
            self._set_up(order)
            self._channel.send(Ready(os.getpid()))
            return None
        runner = self._runner
        if runner is None:
            raise StreamError("the first order must be the setup")
        match order:
            case Phase():
                phase = _phase(order)
                runner.prepare(phase)
                self._channel.send(Prepared())
                return phase
            case Begin(start_s):
                if phase is None:
                    raise StreamError("no phase is ready")
                runner.start_at(start_s - self._shift_s)
                self._channel.send(self._told(runner.run(phase, self._progress)))
            case Settle(timeout_s, cancel):
                self._channel.send(Settled(runner.settle(math.inf if timeout_s is None else timeout_s, cancel=cancel)))
            case Report(from_row):
                self._channel.send(self._rows(runner.journal(), from_row))
            case Tell():
                self._channel.send(Said(runner.error_texts(), list(runner.remarks)))
        return None

    def _set_up(self, setup: Setup) -> None:
        ca_file = None
        if setup.ca_pem is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="gpucap-")
            ca_file = str(Path(self._folder.name) / "ca.pem")
            Path(ca_file).write_text(setup.ca_pem)
        self._runner = TimedHttpRunner(
            setup.base_url,
            setup.model,
            None if setup.api_key is None else Secret(setup.api_key),
            setup.workload,
            setup.seed,
            setup.workers,
            request_timeout_s=setup.request_timeout_s,
            nonce=setup.nonce,
            http2=setup.http2,
            simulated=setup.simulated,
            access=Access(tuple((name, Secret(value)) for name, value in setup.headers), ca_file),
            beside=setup.beside,
            spread=setup.spread,
        )

    def _progress(self, progress: Progress) -> bool:
        """Tell how the phase goes; true if nobody is there to be told."""
        if self._gone.is_set():
            return True
        self._channel.send(Running(progress.in_flight, progress.completed, progress.failed))
        return False

    def _told(self, span: PhaseSpan) -> Ended:
        filled = np.flatnonzero(span.gaps.counts)
        return Ended(
            span.start_s + self._shift_s,
            span.end_s + self._shift_s,
            span.first_row,
            span.end_row,
            span.stopped,
            span.check,
            span.gaps.lowest_s,
            span.gaps.growth,
            span.gaps.counts.size,
            column(filled),
            column(span.gaps.counts[filled]),
        )

    def _rows(self, journal: Journal, from_row: int) -> Rows:
        names = [*COLUMNS, *(name for name in OPTIONAL if getattr(journal, name) is not None)]
        columns = {name: column(getattr(journal, name)[from_row:]) for name in names}
        columns |= {
            name: column(getattr(journal, name)[from_row:] + self._shift_s) for name in names if name in SHIFTED
        }
        return Rows(from_row, columns, journal.bin_s, journal.bins_start_s + self._shift_s, column(journal.tokens))


def _phase(order: Phase) -> LoadPhase:
    prompts, outputs = array_of(order.prompt_tokens), array_of(order.output_tokens)
    due_s = None if order.due_s is None else array_of(order.due_s)
    rows = {each.size for each in (prompts, outputs, due_s) if each is not None}
    if len(rows) > 1 or {prompts.dtype.str, outputs.dtype.str} != {"<i4"}:
        raise StreamError("the columns of a phase do not fit each other")
    if due_s is not None:
        return OpenLoop(order.duration_s, due_s, prompts, outputs, order.first_prompt)
    return ClosedLoop(order.duration_s, order.concurrency, prompts, outputs, order.hot, order.first_prompt)


def main() -> int:
    """Serve on standard input and output; returns the exit status."""
    # Ctrl-C goes to the whole foreground group; the other end decides what it means for the load.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader, writer = os.dup(0), os.dup(1)
    # What a library prints must not get between the messages.
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)

    def on_end() -> None:
        """The runner may be in the middle of a call that takes minutes; its workers end with this process."""
        timer = threading.Timer(END_S, os._exit, (1,))
        timer.daemon = True
        timer.start()

    Host(Channel(PipeStream(reader, writer)), on_end).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
