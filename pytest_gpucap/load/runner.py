"""The load runner for real servers: `LoadRunner` over HTTP. Worker processes carry the requests."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from pytest_gpucap.access import OPEN, Access
from pytest_gpucap.arrays import Ints
from pytest_gpucap.load.adapters import draw_of
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.calibrate import calibrate
from pytest_gpucap.load.connection import answer_form
from pytest_gpucap.load.own_bodies import shared_bodies
from pytest_gpucap.load.prompts import PromptRecipe
from pytest_gpucap.load.protocol import (
    ClosedLoop,
    ErrorText,
    Journal,
    LoadError,
    LoadPhase,
    OpenLoop,
    PhaseSpan,
    Progress,
    SessionColumns,
    Status,
)
from pytest_gpucap.load.self_check import check_phase
from pytest_gpucap.load.session_bodies import shared_sessions
from pytest_gpucap.load.shared_memory import TOKEN_BIN_S, TOKEN_BINS, Count, HistogramKind, PhaseTable, WorkerProgress
from pytest_gpucap.load.spread import Spread
from pytest_gpucap.load.worker_pool import WorkerPool
from pytest_gpucap.requirement import ArrivalKind, Workload
from pytest_gpucap.workloads.extra_body import form_of

PROGRESS_S = 0.25
START_LEAD_S = 0.002
"""From the order to begin until a phase starts, so that the order arrives before the first request is due."""
PHASE_END_TIMEOUT_S = 30.0
REQUESTS_PER_WORKER = 1_500.0
EVENTS_PER_WORKER = 80_000.0
"""Events a second. A worker carries more than twice as many on one core (see the load generator's benchmark); half of
that leaves room for bursts."""
TYPICAL_TPOT_S = 0.01
"""For the events of a closed loop, before anything is known of the server."""
NOTABLE_SHARE = 0.02
"""Of the output tokens asked for: a smaller difference is not worth a remark."""
CORES_PER_WORKER = 4
"""The server's own processes need most of the cores. There is always one worker."""


_Scalar = TypeVar("_Scalar", bound=np.generic)


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds; the workers read the same clock."""
        return time.monotonic()


_COLUMNS = (
    *("due_s", "sent_s", "first_s", "last_s", "end_s", "prompt_tokens", "output_tokens"),
    *("counted_prompt_tokens", "counted_output_tokens", "reasoning_tokens", "answer_s", "status", "hot", "replicas"),
)
"""Of the journal, as a phase's table names them."""
_SESSION_COLUMNS = ("session", "cached", "left")
"""Of the journal, where phases have sessions."""


class _FinishedPhase:
    """A phase that has ended, and the rows that became due in it, in the order of being due."""

    def __init__(self, table: PhaseTable, rows: Ints, adapters: Ints) -> None:
        self.table: PhaseTable | None = table
        self._rows = rows
        self.adapters = adapters
        """Of each row; empty without a mix of adapters."""
        self._columns: dict[str, npt.NDArray[Any]] = {}

    def column(self, name: str) -> npt.NDArray[Any]:
        """One of `_COLUMNS`, as it is now."""
        if self.table is None:
            return self._columns[name]
        column: npt.NDArray[Any] = getattr(self.table, name)[self._rows]
        return column

    def let_go(self) -> None:
        """Keep only the rows, once all their requests have ended: a table holds a descriptor and megabytes."""
        if self.table is not None and not (self.column("status") == Status.IN_FLIGHT).any():
            names = _COLUMNS + _SESSION_COLUMNS if self.table.session.size else _COLUMNS
            self._columns = {name: self.column(name) for name in names}
            self.table = None


class HttpLoadRunner:
    """Drives one OpenAI-compatible server over HTTP, or the replicas of a fleet; see `LoadRunner`.

    Args:
        base_url: the server, with or without ``/v1``.
        model: the name it serves the model under.
        api_key: sent as a bearer token; None for none.
        workload: API, prompts and sampling of every request. Lengths come with the phases; those of prompts from a file
            have been counted (`prompt_counts`).
        seed: prompts are made from it.
        workers: processes; None: as many as the first phase's load calls for and this machine's cores allow.
        request_timeout_s: a request without a whole answer after this is counted as `Status.TIMEOUT`.
        nonce: makes the prompts of this run differ from those of an earlier run with the same seed (see
            `PromptRecipe`); None: drawn at random.
        http2: the server speaks HTTP/2 only, and does not negotiate it (needs the ``h2`` package).
        simulated: the server says that it is a simulation; reports must say so too.
        access: what requests need beside URL and key.
        beside: base URLs of further replicas of the same fleet: model, key and access are the same for all.
        spread: of requests over the replicas.

    TLS, proxies (from the environment) and HTTP/2 go through httpx, which costs more CPU and stamps in user space.
    The workers start with the first phase, or earlier with `prepare`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        workload: Workload,
        seed: int,
        workers: int | None = None,
        *,
        request_timeout_s: float = 600.0,
        nonce: int | None = None,
        http2: bool = False,
        simulated: bool = False,
        access: Access = OPEN,
        beside: Sequence[str] = (),
        spread: Spread = Spread.ROUND_ROBIN,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.clock = MonotonicClock()
        self.simulated = simulated
        self.server = ServerAddress.parse(base_url, api_key, http2=http2, access=access)
        others = [ServerAddress.parse(url, api_key, http2=http2, access=access) for url in beside]
        self.replicas, self.spread = (self.server, *others), spread
        if others and (why := next(filter(None, (each.needs_http_library() for each in self.replicas)), None)):
            raise LoadError(f"a fleet whose requests need {why} cannot be measured: give the URL of its load balancer")
        self.nonce = secrets.randbits(40) if nonce is None else nonce
        self.recipe: PromptRecipe | None = None
        self._model, self._workload, self._seed = model, workload, seed
        self._draw = draw_of(workload.adapters, seed)
        self._workers, self._timeout_s = workers, request_timeout_s
        self._pool: WorkerPool | None = None
        self._bins_start_s = 0.0
        self._finished: list[_FinishedPhase] = []
        self._rows_so_far = 0
        self._last_end_s = 0.0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the protocol -------------------------------------------------------------------------------------------------

    def prepare(self, phase: LoadPhase | None = None) -> PromptRecipe | None:
        """Calibrate the prompts and start the workers, if not yet done.

        Returns:
            How prompts are made; None where they are the user's own.

        Raises:
            LoadError: if the server does not answer, or exact prompts cannot be made for it.
        """
        if self._closed:
            raise LoadError("this load runner has been closed")
        if self.recipe is None and self._workload.own_texts is None:
            self.recipe = calibrate(self.server, self._model, self._workload, self._seed, self.nonce)
        if self._pool is None:
            self._start_workers(self._workers if self._workers is not None else workers_for(phase))
        return self.recipe

    def _start_workers(self, workers: int) -> None:
        bodies_fd, bodies = None, None
        if self._workload.prompts is not None:
            bodies_fd, bodies = shared_bodies(self._workload, self._model, self._seed)
        elif self._workload.recorded is not None:
            bodies_fd, bodies = shared_sessions(self._workload, self._model)
        self._bins_start_s = self.clock.now()
        try:
            self._pool = WorkerPool(
                workers,
                {
                    **self._transport(),
                    "ignore_eos": self._workload.ignore_eos,
                    "form": answer_form(self._workload),
                    "recipe": None if self.recipe is None else self.recipe.to_json(),
                    "bodies": bodies,
                    "bins_start_s": self._bins_start_s,
                    "request_timeout_s": self._timeout_s,
                    "secrets": self.server.secrets,
                },
                self.server.masked,
                bodies_fd,
            )
        finally:
            if bodies_fd is not None:
                os.close(bodies_fd)

    def _transport(self) -> dict[str, Any]:
        """How the workers reach the server."""
        api, accept = self._workload.endpoint, answer_form(self._workload).accept
        if self.uses_library is None:
            replicas = [(each.socket_address(), each.request_head(api, accept)) for each in self.replicas]
            return {"replicas": replicas, "spread": self.spread, "library": None}
        library = {
            "url": self.server.url(api),
            "headers": self.server.headers,
            "http2": self.server.http2,
            "ca_file": self.server.access.ca_file,
            "proxy": self.server.proxy,
        }
        return {"replicas": [((int(socket.AF_INET), ()), "")], "spread": self.spread, "library": library}

    @property
    def uses_library(self) -> str | None:
        """Why requests go through an HTTP library, and are stamped in user space; None: they do not."""
        return self.server.needs_http_library()

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`.

        Raises:
            LoadError: if the load cannot be produced: no connection, no exact prompts, no row left, a worker died.
        """
        recipe = self.prepare(phase)
        for finished in self._finished:
            finished.let_go()
        prompts = phase.prompt_tokens
        if recipe is not None:
            if self._workload.arrivals.kind is ArrivalKind.TRACE or self._workload.recorded is not None:
                # Recorded prompts may be shorter than this server's template. They are sent as short as possible.
                prompts = np.maximum(prompts, recipe.least_tokens)
            recipe.check(int(prompts.min(initial=recipe.least_tokens)))
        pool = self._pool
        assert pool is not None  # noqa: S101 - made by prepare
        closed = isinstance(phase, ClosedLoop)
        n = phase.prompt_tokens.size
        turns = phase.turns
        table, fd = PhaseTable.create(n, pool.workers, turns=turns is not None)
        try:
            table.prompt_tokens[:], table.output_tokens[:] = prompts, phase.output_tokens
            if isinstance(phase, ClosedLoop):
                table.hot[: phase.hot] = 1
            start_s = max(self._last_end_s, self.clock.now() + START_LEAD_S)
            end_s = start_s + phase.duration_s
            if isinstance(phase, OpenLoop):
                table.due_s[:] = start_s + phase.due_s
            if turns is not None:
                table.session[:], table.after[:], table.think_s[:] = turns.session, turns.after, turns.think_s
                table.cached[:], table.left[:] = turns.cached, turns.left
                table.due_s[turns.after >= 0] = np.nan
            pool.tell(
                {
                    "do": "begin",
                    "rows": n,
                    "turns": turns is not None,
                    "start_s": start_s,
                    "end_s": end_s,
                    "shares": _shares(phase, pool.workers),
                    "first_prompt": phase.first_prompt,
                },
                fd,
            )
        finally:
            os.close(fd)
        end_s, stopped = self._await_end(pool, start_s, end_s, should_stop)
        due = np.flatnonzero((table.due_s < end_s) | (table.tried > 0))
        rows = due[np.argsort(table.due_s[due], kind="stable")]
        # A worker hears of an early end a moment after it was decided. What it sent until then belongs to the phase.
        self._last_end_s = end_s = max(end_s, float(table.due_s[rows].max(initial=end_s)))
        drawn = np.zeros(0, np.int64) if self._draw is None else self._draw.of_all(phase.first_prompt, n)[rows]
        self._finished.append(_FinishedPhase(table, rows, drawn))
        first_row, self._rows_so_far = self._rows_so_far, self._rows_so_far + rows.size
        check = check_phase(
            phase, table, start_s=start_s, end_s=end_s, due=table.due_s[rows], exact=not self._estimates
        )
        if closed and table.counts[:, Count.OUT_OF_ROWS].any():
            raise LoadError(
                f"the closed loop ran out of requests: {n} rows did not last {phase.duration_s:g} s; "
                f"the server is faster than the rate the phase was made for"
            )
        gaps = table.histogram(HistogramKind.GAPS)
        taken = int(rows.max(initial=-1)) + 1 if turns is None else None
        return PhaseSpan(phase, start_s, end_s, first_row, self._rows_so_far, stopped, check, gaps, taken)

    @property
    def _estimates(self) -> bool:
        """Whether not every prompt's tokens are known before it is sent."""
        of_file = self._workload.prompts or self._workload.recorded
        return of_file is not None and of_file.estimated > 0

    def _await_end(
        self,
        pool: WorkerPool,
        start_s: float,
        end_s: float,
        should_stop: Callable[[Progress], bool] | None,
    ) -> tuple[float, bool]:
        """Wait for the phase's end, asking `should_stop` now and then; returns (its end, whether it was stopped)."""
        stopped = False
        next_ask_s = start_s + PROGRESS_S
        while not pool.heard("ended"):
            now_s = self.clock.now()
            if not stopped and should_stop is not None and now_s >= next_ask_s and now_s < end_s:
                next_ask_s = now_s + PROGRESS_S
                counts = pool.run_table.progress.sum(axis=0)
                progress = Progress(
                    int(counts[WorkerProgress.IN_FLIGHT]),
                    int(counts[WorkerProgress.COMPLETED]),
                    int(counts[WorkerProgress.FAILED]),
                )
                if should_stop(progress):
                    stopped = True
                    end_s = min(end_s, self.clock.now())
                    pool.tell({"do": "end_early", "end_s": end_s})
            if now_s > end_s + PHASE_END_TIMEOUT_S:
                raise LoadError(f"the load workers did not end a phase within {PHASE_END_TIMEOUT_S:g} s of its end")
            pool.watch(min(PROGRESS_S, max(next_ask_s - now_s, 0.001)) if should_stop is not None else PROGRESS_S)
            pool.check_heartbeats()
        return end_s, stopped

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """See `LoadRunner.settle`; nothing more is sent until the next phase."""
        pool = self._pool
        if pool is None or self._closed:
            return True
        deadline_s = self.clock.now() + timeout_s
        while not cancel and pool.run_table.progress[:, WorkerProgress.UNSENT].any() and self.clock.now() < deadline_s:
            pool.watch(0.02)
        pool.tell({"do": "settle", "cancel": cancel})
        pool.collect("settled", PHASE_END_TIMEOUT_S)
        while pool.run_table.progress[:, WorkerProgress.IN_FLIGHT].any():
            left_s = deadline_s - self.clock.now()
            if left_s <= 0:
                return False
            pool.watch(min(0.02, left_s))
            pool.check_heartbeats()
        # This flushes the last gaps and token times.
        pool.tell({"do": "settle", "cancel": False})
        pool.collect("settled", PHASE_END_TIMEOUT_S)
        return True

    def journal(self) -> Journal:
        """See `LoadRunner.journal`."""

        def column(name: str, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
            parts = [finished.column(name) for finished in self._finished]
            return np.concatenate([np.empty(0, dtype), *parts])

        pool = self._pool
        used = int((self.clock.now() - self._bins_start_s) / TOKEN_BIN_S) + 1 if pool is not None else 0
        tokens = (
            pool.run_table.tokens[:, : min(used, TOKEN_BINS)].sum(axis=0) if pool is not None else np.empty(0, np.int64)
        )
        asked = column("prompt_tokens", np.int32)
        if self._estimates:
            counted = column("counted_prompt_tokens", np.int32)
            asked = np.where(counted > 0, counted, asked)
        return Journal(
            due_s=column("due_s", np.float64),
            sent_s=column("sent_s", np.float64),
            first_s=column("first_s", np.float64),
            last_s=column("last_s", np.float64),
            end_s=column("end_s", np.float64),
            prompt_tokens=asked,
            output_tokens=column("output_tokens", np.int32),
            counted_prompt_tokens=column("counted_prompt_tokens", np.int32),
            counted_output_tokens=column("counted_output_tokens", np.int32),
            status=column("status", np.uint8),
            hot=column("hot", np.uint8).astype(np.bool_),
            bin_s=TOKEN_BIN_S,
            bins_start_s=self._bins_start_s,
            tokens=tokens,
            sessions=self._session_columns(),
            replica=None if len(self.replicas) == 1 else column("replicas", np.uint16).astype(np.int64),
            reasoning_tokens=column("reasoning_tokens", np.int32),
            answer_s=column("answer_s", np.float64),
            adapter=None
            if self._draw is None
            else np.concatenate([np.empty(0, np.int64), *(finished.adapters for finished in self._finished)]),
        )

    def _session_columns(self) -> SessionColumns | None:
        if self._workload.sessions is None:
            return None
        columns = [[each.column(name) for each in self._finished] for name in _SESSION_COLUMNS]
        session, cached, left = columns
        return SessionColumns(
            np.concatenate([np.empty(0, np.int64), *session]),
            np.concatenate([np.empty(0, np.int32), *cached]),
            np.concatenate([np.empty(0, np.int32), *left]),
        )

    def error_texts(self) -> list[ErrorText]:
        """See `LoadRunner.error_texts`; only the first few different texts of each worker are kept."""
        counts: dict[tuple[Status, int, str], int] = {}
        for error in (each for errors in (self._pool.errors if self._pool is not None else ()) for each in errors):
            key = error.status, error.code, error.text
            counts[key] = counts.get(key, 0) + error.count
        return [ErrorText(*key, count) for key, count in counts.items()]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is odd about the tokens of prompts and answers, a sentence each, and does no harm to the measurement."""
        found = []
        if self.recipe is not None and self.recipe.cached_apart:
            found.append(
                "usage.prompt_tokens leaves cached tokens out; the server tells them beside, and they were added"
            )
        if self.recipe is not None and self.recipe.by_usage:
            found.append("/tokenize counts other prompt tokens than usage.prompt_tokens; prompts were made by usage")
        if self._estimates:
            found.append(
                "not every prompt was counted before it was sent (/tokenize): its tokens were estimated, and then "
                "taken from the usage of its answer"
            )
        form = form_of(self._workload.extra_body)
        if form and self._workload.ignore_eos:
            found.append(
                f"{form} ends an answer, and ignore_eos=True has a server go on in free text up to output_tokens: "
                "leave ignore_eos out"
            )
        journal = self.journal()
        told = (journal.status == Status.OK) & (journal.counted_output_tokens > 0)
        if told.any():
            asked, counted = (
                float(tokens[told].mean()) for tokens in (journal.output_tokens, journal.counted_output_tokens)
            )
            if abs(counted - asked) > NOTABLE_SHARE * asked:
                why = f": {form} ends an answer by itself" if form and counted < asked else ""
                found.append(f"{asked:.4g} output tokens were asked for on average, and {counted:.4g} came{why}")
        return tuple(found)

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return self._pool.pids if self._pool is not None else ()

    def close(self) -> None:
        """See `LoadRunner.close`."""
        pool = self._pool
        if pool is None or self._closed:
            self._closed = True
            return
        self._closed = True
        with contextlib.suppress(LoadError):
            pool.tell({"do": "settle", "cancel": True})
            pool.collect("settled", PHASE_END_TIMEOUT_S)
        pool.close()


def workers_for(phase: LoadPhase | None, cores: int | None = None) -> int:
    """Worker processes for a phase: as many as its load calls for and the cores (None: this process's) allow."""
    if cores is None:
        cores = len(os.sched_getaffinity(0))
    if phase is None or phase.output_tokens.size == 0:
        return 1
    mean_output = float(phase.output_tokens.mean())
    if isinstance(phase, OpenLoop):
        requests = phase.rate_rps
        events = requests * mean_output
    else:
        events = phase.concurrency / TYPICAL_TPOT_S
        requests = events / mean_output
    wanted = int(np.ceil(max(events / EVENTS_PER_WORKER, requests / REQUESTS_PER_WORKER, 1.0)))
    return max(1, min(wanted, cores // CORES_PER_WORKER))


def _shares(phase: LoadPhase, workers: int) -> list[int]:
    """Requests that each worker keeps in flight; 0 in an open loop."""
    if isinstance(phase, OpenLoop):
        return [0] * workers
    each, more = divmod(phase.concurrency, workers)
    return [each + (worker < more) for worker in range(workers)]
