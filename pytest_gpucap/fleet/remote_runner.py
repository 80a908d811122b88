"""The runner that talks to a load generator on another node (`remote_host`), and takes its journals home."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from pytest_gpucap.access import OPEN, Access
from pytest_gpucap.fleet.clock_offset import Exchange
from pytest_gpucap.fleet.joined_parts import COLUMNS
from pytest_gpucap.fleet.remote_host import END_S
from pytest_gpucap.fleet.remote_messages import (
    ANSWERS,
    Answer,
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
    ByteStream,
    Channel,
    PipeStream,
)
from pytest_gpucap.load.protocol import (
    ErrorText,
    Histogram,
    Journal,
    LoadError,
    LoadPhase,
    OpenLoop,
    PhaseSpan,
    Progress,
    PromptCountError,
    Status,
)
from pytest_gpucap.load.spread import Spread
from pytest_gpucap.load.worker_pool import WORKER_START_TIMEOUT_S
from pytest_gpucap.requirement import Workload
from pytest_gpucap.user_files import MOST_CERTIFICATES, read_text

SILENCE_S: Final = 15.0
"""A part that was silent for so long is stopped, starved, or out of reach."""
MOST_SAID: Final = 2000
"""Characters of the end of its log in a message."""
M = TypeVar("M")
MODULE: Final = "pytest_gpucap.fleet.remote_host"


_Answers = queue.SimpleQueue[Answer | StreamError | None]


class RemoteRunner:
    """A `TimedRunner` whose load generator runs elsewhere, behind a stream of bytes. Times are on its own clock.

    Args:
        stream: to a process that runs this module; closed by `close`.
        base_url, model, api_key, workload, seed: see `HttpLoadRunner`. The URL is one that the other node can reach.
        nonce: the same for all parts of a split load: prompts share what the workload says only then.
        workers: see `HttpLoadRunner`; None: as many as the other node's cores allow.
        request_timeout_s, http2, simulated, access, beside, spread: see `HttpLoadRunner`.
        silence_s: see `SILENCE_S`.
        clock_shift_s: see `Setup`.

    Raises:
        LoadError: if the other side does not answer.
        ValueError: if the CA file of `access` cannot be read here.
    """

    def __init__(
        self,
        stream: ByteStream,
        base_url: str,
        model: str,
        api_key: str | None,
        workload: Workload,
        seed: int,
        *,
        nonce: int,
        workers: int | None = None,
        request_timeout_s: float = 600.0,
        http2: bool = False,
        simulated: bool = False,
        access: Access = OPEN,
        beside: Sequence[str] = (),
        spread: Spread = Spread.ROUND_ROBIN,
        silence_s: float | None = None,
        clock_shift_s: float = 0.0,
    ) -> None:
        self.simulated = simulated
        self.ended = False
        """The other side is gone or silent: nothing can be asked of it any more."""
        self.clock = self
        self.pid = 0
        self._channel = Channel(stream)
        self._masked = functools.partial(access.masked, api_key=api_key)
        silence_s = SILENCE_S if silence_s is None else silence_s
        # The first sign of life comes once Python has started and imported what it needs.
        self._silence_s = max(silence_s, WORKER_START_TIMEOUT_S)
        self._answers: _Answers = queue.SimpleQueue()
        self._tocks: _Answers = queue.SimpleQueue()
        """What the clock showed; apart from the others, because it is asked for while a phase runs."""
        self._start_s = -math.inf
        self._ready_for: LoadPhase | None = None
        self._kept: dict[str, npt.NDArray[Any]] = {}
        self._bins: tuple[float, float, npt.NDArray[Any]] = (0.1, 0.0, np.empty(0, np.int64))
        self._said = Said([], [])
        self._closed = False
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        bare = replace(workload, questions=None, arrivals=replace(workload.arrivals, trace=None))
        setup = Setup(
            base_url,
            model,
            _plain(api_key),
            bare,
            seed,
            nonce,
            workers,
            request_timeout_s,
            http2,
            simulated,
            tuple((name, _plain(value) or "") for name, value in access.headers),
            None if access.ca_file is None else read_text(access.ca_file, MOST_CERTIFICATES),
            clock_shift_s,
            tuple(beside),
            spread,
        )
        try:
            self._send(setup)
            self.pid = self._await(Ready).pid
            self._silence_s = silence_s
        except BaseException:
            self._channel.close()
            raise

    # -- the protocol -------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds on the other side's clock, late by the way back of the answer."""
        return self.exchange().told_s

    def exchange(self) -> Exchange:
        """One exchange of timestamps with the other side; one thread may do this while another runs a phase.

        Raises:
            LoadError: if it does not answer.
        """
        sent_s = time.monotonic()
        self._send(Tick())
        told_s = self._await(Tock, answers=self._tocks).now_s
        return Exchange(sent_s, told_s, time.monotonic())

    def prepare(self, phase: LoadPhase | None = None) -> None:
        """See `TimedRunner.prepare`."""
        if phase is None:
            return
        common: dict[str, Any] = {
            "duration_s": phase.duration_s,
            "prompt_tokens": column(phase.prompt_tokens),
            "output_tokens": column(phase.output_tokens),
            "first_prompt": phase.first_prompt,
        }
        if isinstance(phase, OpenLoop):
            self._send(Phase(**common, due_s=column(phase.due_s)))
        else:
            self._send(Phase(**common, concurrency=phase.concurrency, hot=phase.hot))
        self._await(Prepared)
        self._ready_for = phase

    def start_at(self, start_s: float) -> None:
        """See `TimedRunner.start_at`."""
        self._start_s = start_s

    def end_at(self, end_s: float) -> None:
        """See `TimedRunner.end_at`."""
        self._send(End(end_s))

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`.

        Raises:
            LoadError: if the load cannot be produced, or the other side is gone or silent.
        """
        if self._ready_for is not phase:
            self.prepare(phase)
        self._ready_for = None
        self._send(Begin(self._start_s))

        def follow(running: Running) -> None:
            progress = Progress(running.in_flight, running.completed, running.failed)
            if should_stop is not None and should_stop(progress):
                self.end_at(-math.inf)  # at once

        ended = self._await(Ended, follow)
        counts = np.zeros(ended.bins, np.int64)
        counts[array_of(ended.filled)] = array_of(ended.counts)
        gaps = Histogram(ended.lowest_s, ended.growth, counts)
        return PhaseSpan(
            phase, ended.start_s, ended.end_s, ended.first_row, ended.end_row, ended.stopped, ended.check, gaps
        )

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """See `LoadRunner.settle`."""
        self._send(Settle(None if math.isinf(timeout_s) else timeout_s, cancel))
        return self._await(Settled).reached

    def journal(self) -> Journal:
        """See `LoadRunner.journal`; of a closed runner, what was last known."""
        if not self._closed:
            status = self._kept.get("status", np.empty(0, np.uint8))
            open_rows = np.flatnonzero(status == Status.IN_FLIGHT)
            self._send(Report(int(open_rows[0]) if open_rows.size else status.size))
            told = self._await(Rows)
            fresh = {name: array_of(each) for name, each in told.columns.items()}
            if set(COLUMNS) - set(fresh) or len({each.size for each in fresh.values()}) > 1:
                raise self._lost("the columns of its journal do not fit each other")
            self._kept = {
                name: np.concatenate([self._kept[name][: told.from_row], each]) if self._kept else each
                for name, each in fresh.items()
            }
            self._bins = told.bin_s, told.bins_start_s, array_of(told.tokens)
        kept: dict[str, Any] = {name: each.copy() for name, each in self._kept.items()}
        bin_s, bins_start_s, tokens = self._bins
        return Journal(**kept, bin_s=bin_s, bins_start_s=bins_start_s, tokens=tokens.copy())

    def error_texts(self) -> Sequence[ErrorText]:
        """See `LoadRunner.error_texts`."""
        self._ask_what_is_said()
        return self._said.errors

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `HttpLoadRunner.remarks`."""
        self._ask_what_is_said()
        return tuple(self._said.remarks)

    def _ask_what_is_said(self) -> None:
        """Ask; if nobody is there any more, it stays what it was."""
        with contextlib.suppress(LoadError):
            self._send(Tell())
            self._said = self._await(Said)

    def close(self) -> None:
        """See `LoadRunner.close`; the process on the other side ends by itself."""
        self._closed = True
        self._channel.close()

    # -- messages -----------------------------------------------------------------------------------------------------

    def why(self) -> str:
        """What is known of why the other side has ended; empty for nothing."""
        return ""

    def _listen(self) -> None:
        try:
            while (answer := self._channel.receive(ANSWERS)) is not None:
                (self._tocks if isinstance(answer, Tock) else self._answers).put(answer)
        except StreamError as error:
            self._answers.put(error)
        for answers in (self._answers, self._tocks):
            answers.put(None)

    def _send(self, order: Order) -> None:
        if self._closed or self.ended:
            raise LoadError("it has ended")
        try:
            self._channel.send(order)
        except StreamError:
            raise self._lost("it has ended") from None

    def _await(
        self, kind: type[M], follow: Callable[[Running], None] = lambda _: None, answers: _Answers | None = None
    ) -> M:
        """The next answer of a kind.

        Raises:
            LoadError: if the order failed, or the other side is gone or silent.
        """
        while True:
            try:
                answer = (answers or self._answers).get(
                    timeout=None if math.isinf(self._silence_s) else self._silence_s
                )
            except queue.Empty:
                raise self._lost(
                    f"it has been silent for {self._silence_s:.3g} s: stopped, starved of CPU, or out of reach"
                ) from None
            if answer is None:
                raise self._lost("it has ended")
            if isinstance(answer, StreamError):
                raise self._lost(str(answer))
            if isinstance(answer, Failed):
                raise (PromptCountError if answer.prompts else LoadError)(answer.text)
            if isinstance(answer, kind):
                return answer
            if isinstance(answer, Running):
                follow(answer)
            elif not isinstance(answer, Beat):
                raise self._lost(f"it answered {type(answer).__name__} instead of {kind.__name__}")

    def _lost(self, text: str) -> LoadError:
        """Give the other side up; the error that says so."""
        self.ended = True
        self._channel.close()
        why = self.why()
        return LoadError(f"{text}; {why}" if why else text)


class ProcessRunner(RemoteRunner):
    """A `RemoteRunner` with a process that this machine starts: the load generator itself, or what reaches its node.

    Args:
        command: of a process whose standard input and output reach ``python -m pytest_gpucap.fleet.remote_host``,
            such as ``["ssh", "node7", "python", "-m", "pytest_gpucap.fleet.remote_host"]``; None: one of this
            machine.
        environment: of the process; None: ours.
        arguments: the others of `RemoteRunner`.

    Raises:
        LoadError: as `RemoteRunner`, or if the command cannot be run.
    """

    def __init__(
        self, command: Sequence[str] | None, *arguments: Any, environment: Mapping[str, str] | None = None, **named: Any
    ) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile(prefix="gpucap-part-")  # noqa: SIM115 - closed in `close`
        words = [sys.executable, "-P", "-m", MODULE] if command is None else [*command]
        if command is None and environment is None:
            home = str(Path(__file__).parents[2])
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), home])),
            }
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, bufsize=0
            )
        except OSError as error:
            self._log.close()
            raise LoadError(f"{words[0]} cannot be run: {error.strerror}") from None
        assert self.process.stdin is not None  # noqa: S101 - asked for
        assert self.process.stdout is not None  # noqa: S101 - asked for
        self._pipes = PipeStream(os.dup(self.process.stdout.fileno()), os.dup(self.process.stdin.fileno()))
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            super().__init__(self._pipes, *arguments, **named)
        except BaseException:
            self.close()
            raise

    def why(self) -> str:
        """See `RemoteRunner.why`: how the process ended, and the end of its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.returncode
        how = "it runs" if code is None else f"signal {-code}" if code < 0 else f"exit status {code}"
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), MOST_SAID, max(0, size - MOST_SAID)).decode("utf-8", "replace").strip()
        said = self._masked(text)
        return f"its process: {how}; " + (f"the end of its log: {said}" if said else "its log is empty")

    def close(self) -> None:
        """See `RemoteRunner.close`; waits for the process, and kills it if it does not end."""
        if self._log.closed:
            return
        self._closed = True
        self._pipes.close()
        try:
            self.process.wait(0.0 if getattr(self, "ended", False) else END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        reader = getattr(self, "_reader", None)
        if reader is not None and reader.is_alive():
            reader.join(END_S)
        if reader is None or not reader.is_alive():
            self._pipes.close_reader()
        self._log.close()


def _plain(text: str | None) -> str | None:
    """A text, also of a secret: that of a message, not that of a log."""
    return None if text is None else str.__str__(text)
