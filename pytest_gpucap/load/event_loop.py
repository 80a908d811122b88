"""A worker's event loop: sends requests when they are due, reads what has come, and keeps the worker's own figures.

It is an epoll loop of its own, not uvloop's: uvloop's timers tick in whole milliseconds, which alone would make
requests up to a millisecond late, and each of its callbacks costs a handle and a context. Little is left to do here:
one timer for the next request that is due, one for the ticks, and what the fast reader does not know.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from pytest_gpucap.load.answer import Answer
from pytest_gpucap.load.connection import AnswerForm, Connection, RequestTemplate, is_local_limit
from pytest_gpucap.load.fastpath.reader import DUE, ENDED, NOTHING, READY, FastReader
from pytest_gpucap.load.prompts import BodyComposer
from pytest_gpucap.load.protocol import ERRORS, ErrorText, Status
from pytest_gpucap.load.recorder import Recorder
from pytest_gpucap.load.responses_answer import ResponsesAnswer
from pytest_gpucap.load.server_words import likeness, one_line
from pytest_gpucap.load.session_rows import SessionRows
from pytest_gpucap.load.shared_memory import Count, PhaseTable, RunTable, WorkerProgress
from pytest_gpucap.load.spread import Spread, next_replica
from pytest_gpucap.load.timestamps import RESAMPLE_S, ClockOffset, enable_timestamps
from pytest_gpucap.load.whole_answer import PooledAnswer, WholeAnswer

KEEP_IDLE_S = 3.0
"""Idle connections are closed after this. uvicorn, and so vLLM, closes its own after 5 s, and a request that is sent
while the server closes the connection is lost."""
SEND_BATCH = 64
"""Due requests sent before anything is read again."""
FINE_S = 0.002
"""epoll waits in whole milliseconds. Nearer to a due time than this, select waits instead, in microseconds."""
SELECT_LIMIT = 1_024
"""`select` takes no descriptor from here on. A worker's epoll is among its first."""
SPIN_S = 0.00006
"""This near to a due time nothing waits: waking up takes about 30 us, and not always the same."""
GATHER_S, LEAST_GATHER_S, GATHER_BELOW = 0.00075, 0.0005, 32
"""After a turn that read fewer connections than GATHER_BELOW, the loop sleeps this long.

Otherwise streams that are out of step would wake the process for every single token. That costs several times as much
CPU, and takes it from a server on the same machine. Kernel timestamps keep the sleep out of the latencies; a closed
loop replaces a request 0.4 ms later on average. The sleep never reaches a due time: it takes at most half of what is
left until then, and is skipped where less than twice LEAST_GATHER_S is left."""
FEW_REQUESTS, AT_ONCE = 48, 8
"""Requests are composed ahead in idle moments, AT_ONCE at a time, while fewer than FEW_REQUESTS are ready."""
MOST_AHEAD, MOST_AT_ONCE = 64 * 2**20, 2**19
"""Bytes of requests that are ready, and that are composed at a time, which takes 0.1 ms: audio has 43 kB a second."""
COMPOSE_S = 0.0001
"""An idle moment is longer than this: composing takes about 2 us per request, and more for long prompts."""
MAX_ERROR_TEXTS = 50
"""Different texts of failed requests that are kept; the others are counted by their kind."""
_OUR_WORDS = frozenset({Status.CONNECT, Status.TIMEOUT, Status.SHORT, Status.DROPPED, Status.CANCELLED})
"""Failures of which nothing is kept that the server said."""
NOT_KEPT = "what the server said is not kept, since it may repeat a prompt of the file"
FAILURE_PAUSE_S = 0.1
"""A closed loop waits this long before it replaces a failed request. Otherwise it would flood a server that refuses
everything."""


_ANSWERS: Final[Mapping[AnswerForm, type[Answer]]] = {
    AnswerForm.STREAM: Answer,
    AnswerForm.RESPONSES: ResponsesAnswer,
    AnswerForm.WHOLE: WholeAnswer,
    AnswerForm.POOLED: PooledAnswer,
}


class WorkerRows:
    """This worker's part of a phase's rows: every row whose number modulo the number of workers is the worker's."""

    __slots__ = ("_first_prompt", "_step", "next_row", "table")

    def __init__(self, table: PhaseTable, worker: int, first_prompt: int) -> None:
        self.table, self.next_row, self._step = table, worker, table.workers
        self._first_prompt = first_prompt

    @property
    def left(self) -> bool:
        """There is another row."""
        return self.next_row < self.table.rows

    @property
    def due_s(self) -> float:
        """When the next row of an open loop is due; infinite when there is none."""
        due_s: float = self.table.due[self.next_row] if self.next_row < self.table.rows else math.inf
        return due_s

    def number(self, row: int) -> int:
        """The prompt number of a row."""
        return self._first_prompt + row

    def left_after(self, row: int) -> int:  # noqa: ARG002 - the same for every one
        """No request belongs to another."""
        return 0

    def upcoming(self, ahead: int) -> int | None:
        """This worker's row that comes `ahead` rows after its next one; None where there is none."""
        row = self.next_row + ahead * self._step
        return row if row < self.table.rows else None

    def take(self) -> int:
        """Take the next row."""
        row = self.next_row
        self.next_row += self._step
        self.table.taken[row] = 1
        return row


class RequestCarrier(Protocol):
    """What carries one request: a connection, or a request of an HTTP library."""

    template: RequestTemplate

    @property
    def answer(self) -> Answer | None:
        """The request's answer so far."""
        ...

    def abandon(self, status: Status, error: str) -> None:
        """Give the request up and report it as ended."""
        ...


class EventLoop:
    """One worker's requests to one server, or to the replicas of a fleet.

    Args:
        template: of requests to the server, or to replica 0.
        composer: makes the bodies.
        run_table: shared with the runner.
        worker: its number.
        bins_start_s: when the token bins begin.
        request_timeout_s: see `HttpLoadRunner`.
        secrets: texts that no message may show.
        beside: the templates of replicas 1, 2, ...
        spread: of requests over the replicas.
    """

    def __init__(
        self,
        template: RequestTemplate,
        composer: BodyComposer,
        run_table: RunTable,
        worker: int,
        *,
        bins_start_s: float,
        request_timeout_s: float,
        secrets: Sequence[str] = (),
        beside: Sequence[RequestTemplate] = (),
        spread: Spread = Spread.ROUND_ROBIN,
    ) -> None:
        self.offset = ClockOffset()
        self.recorder = Recorder(run_table.tokens[worker], bins_start_s, worker)
        self.recorder.cached_apart = composer.cached_apart
        self._errors: dict[tuple[Status, int, str], ErrorText] = {}
        self._secrets = tuple(secrets)
        self._templates, self._spread = (template, *beside), spread
        self._answer = _ANSWERS[template.form]
        self._composer, self._worker = composer, worker
        self._progress = run_table.progress[worker]
        self._timeout_s = request_timeout_s
        self._epoll = select.epoll()
        self._fine = self._epoll.fileno() < SELECT_LIMIT
        self.reader = FastReader(self._epoll.fileno(), self.recorder)
        # Nothing is ready yet: this call compiles the reader, or loads its compiled code from disk.
        self.reader.drain(0, math.inf, self.offset.ns)
        self._handlers: dict[int, Callable[[], None]] = {}
        self._connections: dict[int, Connection] = {}
        self._idle: tuple[deque[Connection], ...] = tuple(deque() for _ in self._templates)
        """By replica."""
        self._outstanding = [0] * len(self._templates)
        """Requests in flight, by replica."""
        self._busy: dict[RequestCarrier, float] = {}
        self._rows: WorkerRows | SessionRows | None = None
        self._requests: deque[bytes] = deque()
        self._next_due_s = math.inf
        self._end_s = math.inf
        self._concurrency = 0
        """Requests to keep in flight; 0 in an open loop."""
        self._filling = False
        """A closed loop is sending its first requests."""
        self._phase_open = False
        self._completed = self._failed = 0
        self._cpu_ns = self._wall_ns = 0
        self._next_tick_s = 0.0
        self._closing = False
        with socket.socket() as probe:
            self._gather_below = GATHER_BELOW if enable_timestamps(probe) else 0
        self.on_phase_end: Callable[[], None] = lambda: None

    # -- the loop -----------------------------------------------------------------------------------------------------

    def add_handler(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        """Call `handler` whenever a socket other than a connection has something to read."""
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def stop(self) -> None:
        """Leave the loop after this turn."""
        self._closing = True

    def run(self) -> None:
        """Run until `stop`."""
        monotonic = time.monotonic
        now_s = monotonic()
        self._next_tick_s = now_s + RESAMPLE_S
        read = 0
        while not self._closing:
            wait_s = min(self._next_due_s, self._next_tick_s) - now_s
            wait_ms = 0
            if 0 < read < self._gather_below and wait_s > 2 * LEAST_GATHER_S:
                time.sleep(min(GATHER_S, wait_s / 2))
            elif (
                wait_s > 0 and self._next_due_s - now_s > SPIN_S and not (wait_s > COMPOSE_S and self._compose_ahead())
            ):
                wait_ms = self._wait(wait_s)
            read = self._turn(wait_ms)
            if (now_s := monotonic()) >= self._next_due_s:
                self._send_due(now_s)
            if now_s >= self._next_tick_s:
                self._tick(now_s)

    def _turn(self, wait_ms: int) -> int:
        """Read what has come, or comes within `wait_ms`; returns how many connections had something."""
        drain, offset_ns = self.reader.drain, self.offset.ns
        while True:
            found, fd, time_s = drain(wait_ms, self._next_due_s, offset_ns)
            if found == NOTHING:
                return fd
            if found == ENDED:
                self._connections[fd].on_whole_answer(time_s)
            elif found == READY:
                connection = self._connections.get(fd)
                handler = connection.on_ready if connection is not None else self._handlers.get(fd)
                if handler is not None:  # None: closed earlier in this very batch
                    handler()
            elif found != DUE:
                self._connections[fd].on_unusual(found, time_s)
            # A burst of events must not hold up a request that is due; events that have come keep their time.
            if (now_s := time.monotonic()) >= self._next_due_s:
                self._send_due(now_s)

    def _wait(self, wait_s: float) -> int:
        """How many milliseconds epoll must wait for events. What epoll is too coarse for is waited here."""
        if self._next_tick_s < self._next_due_s:
            return math.ceil(wait_s * 1e3)
        if wait_s > FINE_S:
            return math.ceil((wait_s - FINE_S / 2) * 1e3)  # Rounded up, so it aims before the due time.
        if not self._fine:
            return math.ceil(wait_s * 1e3)
        select.select((self._epoll,), (), (), wait_s - SPIN_S)
        return 0

    def _tick(self, now_s: float) -> None:
        recorder = self.recorder
        recorder.loop_lags.append(now_s - self._next_tick_s)
        self._next_tick_s = now_s + RESAMPLE_S
        steps = self.offset.steps
        self.offset.resample()
        if self.offset.steps != steps:
            recorder.add(Count.CLOCK_STEPS)
        recorder.flush_if_full()
        for idle in self._idle:
            while idle and now_s - idle[0].idle_since_s > KEEP_IDLE_S:
                idle.popleft().close()
        while self._busy:
            connection, since_s = next(iter(self._busy.items()))
            if now_s - since_s <= self._timeout_s:
                break
            connection.abandon(Status.TIMEOUT, f"no whole answer within {self._timeout_s:g} s")
        self._report_progress(now_s)
        if self._phase_open and now_s >= self._end_s:
            self._end_phase(now_s)

    def _report_progress(self, now_s: float) -> None:
        progress = self._progress
        progress[WorkerProgress.IN_FLIGHT] = len(self._busy)
        progress[WorkerProgress.COMPLETED], progress[WorkerProgress.FAILED] = self._completed, self._failed
        progress[WorkerProgress.UNSENT] = self._unsent(now_s)
        progress[WorkerProgress.HEARTBEAT_NS] = int(now_s * 1e9)

    def _unsent(self, now_s: float) -> int:
        return 1 if self._concurrency == 0 and self._next_due_s <= min(now_s, self._end_s) else 0

    # -- phases -------------------------------------------------------------------------------------------------------

    def begin(self, table: PhaseTable, *, start_s: float, end_s: float, concurrency: int, first_prompt: int) -> None:
        """Begin a phase; `concurrency` requests are kept in flight, or 0 for an open loop."""
        self._drop_unsent()
        self.recorder.begin(table)
        if table.session.size:
            self._rows = SessionRows(table, self._worker, closed=concurrency > 0)
        else:
            self._rows = WorkerRows(table, self._worker, first_prompt)
        self._requests.clear()
        self._end_s, self._concurrency = end_s, concurrency
        self._completed = self._failed = 0
        self._phase_open = True
        self._cpu_ns, self._wall_ns = time.process_time_ns(), time.monotonic_ns()
        self._filling = True
        self._next_due_s = start_s
        if not concurrency:
            self._next_due_s = self._rows.due_s
        self._report_progress(time.monotonic())

    def end_early(self, end_s: float) -> None:
        """End the phase at `end_s`; what became due before is still sent."""
        self._end_s = min(self._end_s, end_s)
        self._next_tick_s = time.monotonic()

    def _end_phase(self, now_s: float) -> None:
        self._phase_open = False
        recorder = self.recorder
        recorder.add(Count.CPU_NS, time.process_time_ns() - self._cpu_ns)
        recorder.add(Count.WALL_NS, time.monotonic_ns() - self._wall_ns)
        self._count_in_flight()
        recorder.keep_highest(Count.OPEN_SOCKETS, sum(map(len, self._idle)) + len(self._busy))
        self._report_progress(now_s)
        recorder.keep_highest(Count.ENDED, 1)
        self.on_phase_end()

    def settle(self, *, cancel: bool) -> None:
        """Send nothing more. With `cancel`, end what is in flight."""
        self._drop_unsent()
        if cancel:
            for connection in list(self._busy):
                connection.abandon(Status.CANCELLED, "cancelled")
        self._count_in_flight()
        self._report_progress(time.monotonic())

    def _count_in_flight(self) -> None:
        """Count everything that has come by now."""
        per_byte = self.recorder.tokens_per_byte
        for carrier in self._busy:
            if carrier.answer is not None:
                carrier.answer.count_expected_tokens(per_byte)
        self.recorder.flush()

    def _drop_unsent(self) -> None:
        """Give up the requests that were due and are not sent by now."""
        rows, self._rows, self._next_due_s = self._rows, None, math.inf
        if rows is None or self._concurrency:
            return
        while rows.left and rows.table.due[rows.next_row] < self._end_s:
            rows.table.state[rows.take()] = Status.DROPPED

    def close(self) -> None:
        """Cancel everything and free it."""
        self.settle(cancel=True)
        for connection in [each for idle in self._idle for each in idle]:
            connection.close()
        self._epoll.close()

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send_due(self, now_s: float) -> None:
        rows = self._rows
        if rows is None:
            self._next_due_s = math.inf
        elif self._concurrency:
            self._next_due_s = math.inf
            failed = self._failed
            while self._phase_open and len(self._busy) < self._concurrency and now_s < self._end_s:
                if not self._send_next(now_s) or self._failed > failed:
                    break
            self._filling = False
        else:
            for _ in range(SEND_BATCH):
                due_s = self._next_due_s
                if due_s > now_s or due_s >= self._end_s:
                    break
                self._send_next(due_s)
                self._next_due_s = rows.due_s
                now_s = time.monotonic()
            if self._next_due_s >= self._end_s:
                self._next_due_s = math.inf

    def _send_next(self, due_s: float) -> bool:
        """Send the next row; False when there is none."""
        rows = self._rows
        if rows is None or not rows.left:
            if rows is not None and self._concurrency:
                self.recorder.add(Count.OUT_OF_ROWS)
            return False
        body = self._requests.popleft() if self._requests else self._compose(rows, rows.next_row)
        row = rows.take()
        rows.table.replica[row] = replica = next_replica(self._spread, rows.number(row), self._outstanding)
        template = self._templates[replica]
        if self._concurrency:
            rows.table.due[row] = due_s
        recorder = self.recorder
        recorder.add(Count.SENT)
        sent_s = self._send(self._answer(rows.table, row, recorder), template.request(body), template)
        # A closed loop sends its first requests at once: none of them is late.
        if not (self._concurrency and self._filling):
            recorder.lateness.append(sent_s - due_s)
        return True

    def _send(self, answer: Answer, request: bytes, template: RequestTemplate, *, fresh: bool = False) -> float:
        """Send a request, or begin to; returns when that was."""
        idle = self._idle[template.replica]
        try:
            connection = idle.pop() if idle and not fresh else Connection(template, self)
        except OSError as error:
            status = Status.DROPPED if is_local_limit(error) else Status.CONNECT
            answer.fail(status, f"no connection: {error.strerror or error}")
            now_s = time.monotonic()
            self._count(answer, now_s)
            if self._concurrency:
                self._refill_after_failure()
            return now_s
        # Before the call: a server on this machine may have answered by the time it returns.
        self._begun(connection, now_s := time.monotonic())
        connection.send(answer, request, now_s)
        return now_s

    def _begun(self, carrier: RequestCarrier, now_s: float) -> None:
        self._busy[carrier] = now_s
        self._outstanding[carrier.template.replica] += 1

    def _over(self, carrier: RequestCarrier) -> None:
        if self._busy.pop(carrier, None) is not None:
            self._outstanding[carrier.template.replica] -= 1

    def _refill_after_failure(self) -> None:
        self._next_due_s = min(self._next_due_s, time.monotonic() + FAILURE_PAUSE_S)

    def _compose(self, rows: WorkerRows | SessionRows, row: int) -> bytes:
        table = rows.table
        return self._composer.body(rows.number(row), table.prompt[row], table.output[row], rows.left_after(row))

    def _compose_ahead(self) -> bool:
        """Compose some requests while there is nothing else to do; False when there are enough."""
        rows, requests = self._rows, self._requests
        before = len(requests)
        if rows is None or before >= FEW_REQUESTS or (before and before * len(requests[-1]) >= MOST_AHEAD):
            return False
        composed = 0
        while (
            len(requests) < before + AT_ONCE
            and composed < MOST_AT_ONCE
            and (row := rows.upcoming(len(requests))) is not None
        ):
            requests.append(self._compose(rows, row))
            composed += len(requests[-1])
        return len(requests) > before

    # -- what connections report --------------------------------------------------------------------------------------

    def watch(self, connection: Connection, events: int, *, known: bool) -> None:
        """See `ConnectionOwner`."""
        if known:
            self._epoll.modify(connection.fd, events)
        else:
            self._connections[connection.fd] = connection
            self._epoll.register(connection.fd, events)
            self.recorder.keep_highest(Count.OPEN_SOCKETS, len(self._connections))

    def forget(self, connection: Connection) -> None:
        """See `ConnectionOwner`."""
        if self._connections.pop(connection.fd, None) is not None:
            self._epoll.unregister(connection.fd)
        self._over(connection)
        idle = self._idle[connection.template.replica]
        if connection.idle_since_s and connection in idle:
            idle.remove(connection)

    def resend(self, answer: Answer, request: bytes) -> None:
        """See `ConnectionOwner`."""
        self.recorder.add(Count.RESENT)
        self._send(answer, request, self._templates[answer.table.replica[answer.row]], fresh=True)

    def ended(self, connection: RequestCarrier, answer: Answer, end_s: float, *, reusable: bool) -> None:
        """See `ConnectionOwner`."""
        self._over(connection)
        if reusable and isinstance(connection, Connection):
            self._idle[connection.template.replica].append(connection)
        self._count(answer, end_s)
        if (
            not self._concurrency
            or not self._phase_open
            or len(self._busy) >= self._concurrency
            or end_s >= self._end_s
        ):
            return
        if answer.status is None or answer.status is Status.SHORT:
            self._send_next(end_s)
        elif self._rows is not None and self._rows.left:
            self._refill_after_failure()

    def _count(self, answer: Answer, end_s: float) -> None:
        status = answer.finish(end_s, ignore_eos=self._templates[0].ignore_eos)
        if status is Status.OK:
            self._completed += 1
        elif status in ERRORS:
            self._failed += 1
            quotes = self._composer.personal and status not in _OUR_WORDS
            self._keep_text(status, answer.code, NOT_KEPT if quotes else one_line(answer.error, self._secrets))

        self._follow(answer, end_s)

    def _follow(self, answer: Answer, end_s: float) -> None:
        """The next turn of the session that a request is of is due some time after its end."""
        rows = self._rows
        if isinstance(rows, SessionRows) and self._phase_open and answer.table is rows.table:
            rows.ended(answer.row, end_s)
            if not self._concurrency:
                self._next_due_s = rows.due_s if rows.due_s < self._end_s else math.inf

    def _keep_text(self, status: Status, code: int, text: str) -> None:
        """Count what was said of a failed request, together with texts that differ in numbers only."""
        alike = status, code, likeness(text)
        if alike not in self._errors and len(self._errors) >= MAX_ERROR_TEXTS:
            text, alike = "", (status, 0, "")
            code = 0
        known = self._errors.get(alike)
        self._errors[alike] = ErrorText(status, code, known.text if known else text, known.count + 1 if known else 1)

    @property
    def error_texts(self) -> list[ErrorText]:
        """What was said of failed requests."""
        return list(self._errors.values())
