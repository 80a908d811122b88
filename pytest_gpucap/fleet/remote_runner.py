"""A load generator on another node: ``python -m pytest_gpucap.fleet.remote_runner`` and the runner that talks to it.

The process reads orders from its standard input and writes answers to its standard output, so whatever can start a
process and carry a stream of bytes can carry it: SSH, Ray, Slurm, a socket. It drives the server from its node with an
HTTP load runner of its own. It ends when its stream closes, however the other end went.

A message is four bytes with its length (big-endian), then a msgpack map with its type under ``type``. Every message and
every array is checked against its declared type; nothing is unpickled. Keys and headers come over the stream, never as
arguments. Arrays are the raw bytes of little-endian items. Journals are sent from the first row that may still change.

One thread answers what is asked of the clock, and another tells that the process lives, also while a phase runs.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_gpucap.access import OPEN, Access
from pytest_gpucap.fleet.clock_offset import Exchange
from pytest_gpucap.fleet.split_runner import COLUMNS, TIMES, TimedHttpRunner
from pytest_gpucap.load.protocol import (
    ClosedLoop,
    ErrorText,
    Histogram,
    Journal,
    LoadError,
    LoadPhase,
    OpenLoop,
    PhaseSpan,
    Progress,
    PromptCountError,
    SelfCheck,
    Status,
)
from pytest_gpucap.load.spread import Spread
from pytest_gpucap.masking import Secret
from pytest_gpucap.requirement import Workload
from pytest_gpucap.user_files import MOST_CERTIFICATES, read_text

MOST_BYTES: Final = 2**30
"""Of one message: the journal of ten million requests takes less."""
BEAT_S: Final = 0.5
"""How often the process tells that it lives."""
SILENCE_S: Final = 15.0
"""A part that was silent for so long is stopped, starved, or out of reach."""
END_S: Final = 10.0
"""How long the process may take to end after its stream has closed."""
MOST_SAID: Final = 2000
MODULE: Final = "pytest_gpucap.fleet.remote_runner"

_LENGTH: Final = struct.Struct(">I")
_ITEMS: Final = frozenset({"<f8", "<i4", "<i8", "|u1", "|b1"})


class StreamError(Exception):
    """The stream has closed in the middle of something, or carries what is no message."""


# -- messages ---------------------------------------------------------------------------------------------------------


class Column(msgspec.Struct, frozen=True):
    """An array of one dimension: NumPy's name of its items' type, little-endian, and their bytes."""

    items: str
    data: bytes


def column(array: npt.NDArray[Any]) -> Column:
    """The message of an array.

    Raises:
        ValueError: for items of a type that is never sent.
    """
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if little.dtype.str not in _ITEMS:
        raise ValueError(f"items of type {array.dtype} are not sent")
    return Column(little.dtype.str, little.tobytes())


def array_of(sent: Column) -> npt.NDArray[Any]:
    """The array of a message; a copy.

    Raises:
        StreamError: if the type is none that is sent, or the bytes are no whole number of items.
    """
    if sent.items not in _ITEMS or len(sent.data) % np.dtype(sent.items).itemsize:
        raise StreamError(f"no array: {len(sent.data)} bytes of {sent.items!r}")
    return np.frombuffer(sent.data, sent.items).copy()


class Setup(msgspec.Struct, tag=True, frozen=True):
    """What an `HttpLoadRunner` needs to know; the first order.

    Attributes:
        ca_pem: the certificates to trust, not their file's name, which would be one of another node.
        clock_shift_s: added to the clock: for tests of what clocks that differ do.
    """

    base_url: str
    model: str
    api_key: str | None
    workload: Workload
    seed: int
    nonce: int
    workers: int | None
    request_timeout_s: float
    http2: bool
    simulated: bool
    headers: tuple[tuple[str, str], ...]
    ca_pem: str | None
    clock_shift_s: float
    beside: tuple[str, ...]
    spread: Spread

    def __repr__(self) -> str:
        """Without keys, which a traceback with its locals would show."""
        return f"Setup({self.base_url!r}, {self.model!r})"


class Tick(msgspec.Struct, tag=True, frozen=True):
    """What does your clock show?"""


class Phase(msgspec.Struct, tag=True, frozen=True):
    """The rows of a phase; `due_s` for an open loop, `concurrency` for a closed one. Get ready for it."""

    duration_s: float
    prompt_tokens: Column
    output_tokens: Column
    first_prompt: int
    due_s: Column | None = None
    concurrency: int = 0
    hot: int = 0


class Begin(msgspec.Struct, tag=True, frozen=True):
    """Begin the phase at this time of your clock."""

    start_s: float


class End(msgspec.Struct, tag=True, frozen=True):
    """End the phase at this time of your clock."""

    end_s: float


class Settle(msgspec.Struct, tag=True, frozen=True):
    """See `LoadRunner.settle`; without a limit: None."""

    timeout_s: float | None
    cancel: bool


class Report(msgspec.Struct, tag=True, frozen=True):
    """Tell the journal from this row on."""

    from_row: int


class Tell(msgspec.Struct, tag=True, frozen=True):
    """Tell the texts of failed requests and the remarks."""


Order = Setup | Tick | Phase | Begin | End | Settle | Report | Tell


class Ready(msgspec.Struct, tag=True, frozen=True):
    """The process is set up."""

    pid: int


class Tock(msgspec.Struct, tag=True, frozen=True):
    """What the clock shows."""

    now_s: float


class Beat(msgspec.Struct, tag=True, frozen=True):
    """The process lives."""


class Prepared(msgspec.Struct, tag=True, frozen=True):
    """The phase can begin."""


class Running(msgspec.Struct, tag=True, frozen=True):
    """See `Progress`."""

    in_flight: int
    completed: int
    failed: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """See `PhaseSpan`; of the histogram only the bins that are not empty."""

    start_s: float
    end_s: float
    first_row: int
    end_row: int
    stopped: bool
    check: SelfCheck
    lowest_s: float
    growth: float
    bins: int
    filled: Column
    counts: Column


class Settled(msgspec.Struct, tag=True, frozen=True):
    """Whether nothing is in flight any more."""

    reached: bool


class Rows(msgspec.Struct, tag=True, frozen=True):
    """The journal from a row on, and all its token bins."""

    from_row: int
    columns: dict[str, Column]
    bin_s: float
    bins_start_s: float
    tokens: Column


class Said(msgspec.Struct, tag=True, frozen=True):
    """Texts of failed requests, and remarks."""

    errors: list[ErrorText]
    remarks: list[str]


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The order could not be carried out.

    Attributes:
        text: why.
        prompts: exact prompts cannot be made for the server.
    """

    text: str
    prompts: bool


Answer = Ready | Tock | Beat | Prepared | Running | Ended | Settled | Rows | Said | Failed


def _to_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):  # a figure of NumPy where a plain one is declared
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} is not sent")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} is not read")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_to_text)
_ORDERS: Final = msgspec.msgpack.Decoder(Order, dec_hook=_from_text)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer, dec_hook=_from_text)

M = TypeVar("M")


def encoded(message: Order | Answer) -> bytes:
    """The bytes of a message, without its length."""
    return _ENCODER.encode(message)


class ByteStream(Protocol):
    """Bytes in both directions."""

    def read(self, size: int) -> bytes:
        """The next bytes, at least one and at most `size`; none at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Send all of the bytes."""
        ...

    def close(self) -> None:
        """Close it; the other side sees its end. Safe to call twice."""
        ...


class PipeStream:
    """The descriptors of two pipes as a `ByteStream`; it closes them.

    Args:
        reader, writer: descriptors.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._closed = threading.Event()

    def read(self, size: int) -> bytes:
        """See `ByteStream.read`."""
        return os.read(self._reader, min(size, 2**20))

    def write(self, data: bytes) -> None:
        """See `ByteStream.write`."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._writer, left) :]

    def close(self) -> None:
        """See `ByteStream.close`. What another thread still reads goes on until the other side has closed its end."""
        if not self._closed.is_set():
            self._closed.set()
            os.close(self._writer)

    def close_reader(self) -> None:
        """Close the other descriptor too, when no thread reads it any more."""
        os.close(self._reader)


class SocketStream:
    """A connected socket as a `ByteStream`; it closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, size: int) -> bytes:
        """See `ByteStream.read`."""
        return self._sock.recv(min(size, 2**20))

    def write(self, data: bytes) -> None:
        """See `ByteStream.write`."""
        self._sock.sendall(data)

    def close(self) -> None:
        """See `ByteStream.close`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Channel:
    """Messages over a stream. Any thread may send; one receives."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._sending = threading.Lock()

    def send(self, message: Order | Answer) -> None:
        """Send one message.

        Raises:
            StreamError: if the stream is closed.
        """
        data = encoded(message)
        if len(data) > MOST_BYTES:
            raise StreamError(f"a message of {len(data)} bytes is too long")
        try:
            with self._sending:
                self._stream.write(_LENGTH.pack(len(data)) + data)
        except (OSError, ValueError) as error:
            raise StreamError(f"the stream is closed: {error}") from error

    def receive(self, decoder: msgspec.msgpack.Decoder[M]) -> M | None:
        """The next message; None at the end of the stream.

        Raises:
            StreamError: if the stream ends in a message, or carries another thing.
        """
        head = self._exactly(_LENGTH.size)
        if head is None:
            return None
        (size,) = _LENGTH.unpack(head)
        if size > MOST_BYTES:
            raise StreamError(f"a message of {size} bytes is too long")
        body = self._exactly(size)
        if body is None:
            raise StreamError("the stream ended in the middle of a message")
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:  # a ValidationError too
            raise StreamError(f"no message: {error}") from error

    def _exactly(self, size: int) -> bytes | None:
        """So many bytes; None if the stream ends before the first."""
        found = bytearray()
        while len(found) < size:
            try:
                more = self._stream.read(size - len(found))
            except (OSError, ValueError):
                more = b""
            if not more:
                if found:
                    raise StreamError("the stream ended in the middle of a message")
                return None
            found += more
        return bytes(found)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


# -- the process on the other node ------------------------------------------------------------------------------------


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
            while (order := self._channel.receive(_ORDERS)) is not None:
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
        names = [*COLUMNS, *(["replica"] if journal.replica is not None else [])]
        columns = {name: column(getattr(journal, name)[from_row:]) for name in names}
        columns |= {name: column(getattr(journal, name)[from_row:] + self._shift_s) for name in TIMES}
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


# -- our end ----------------------------------------------------------------------------------------------------------


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
        self._silence_s = SILENCE_S if silence_s is None else silence_s
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
            while (answer := self._channel.receive(_ANSWERS)) is not None:
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
        command: of a process whose standard input and output reach ``python -m pytest_gpucap.fleet.remote_runner``,
            such as ``["ssh", "node7", "python", "-m", "pytest_gpucap.fleet.remote_runner"]``; None: one of this
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


if __name__ == "__main__":
    sys.exit(main())
