"""The small protocol between the measuring procedure and whatever carries its requests.

The procedure (`measure/`) uses `Clock` and `LoadRunner` alone. The HTTP client implements them in real time, the
simulator in virtual time. So the code that runs is the code whose error rates are known from simulations.

Every time is a float of seconds on the runner's own clock. Every per-request figure is a column of `Journal`, with one
row per request in the order of being due. A million rows of Python objects would take too much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from pytest_gpucap.arrays import Bools, Bytes, Floats, Int32s, Ints
from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.results.problems import Problem


class Clock(Protocol):
    """A monotonic clock in seconds: the machine's or a simulation's."""

    def now(self) -> float:
        """Seconds since a fixed but arbitrary start."""
        ...


@dataclass(frozen=True, slots=True)
class Turns:
    """Which rows of a phase are turns of one session; shape (n,) each.

    A row that follows another one is due `think_s` after the end of that one, in a closed loop at once. It is sent
    however that one ended.

    Attributes:
        session: number of the session, which is the number of the prompts of all its turns.
        after: the row that this one follows, which stands before it; -1: none.
        think_s: from the end of that row until this one is due.
        cached: tokens at the start of the prompt that were sent before, so that a prefix cache may have them.
        left: turns of the session after this one.
        count: prompt numbers that the phase uses, from its `first_prompt` on. Sessions that an earlier phase began have
            the number that they had.
        fresh: of sessions from a file: the numbers of those that the phase begins, in their order, `count` of them;
            None: sessions are drawn.
    """

    session: Ints
    after: Ints
    think_s: Floats
    cached: Int32s
    left: Int32s
    count: int
    fresh: Ints | None = None

    def not_begun(self, begun: Ints) -> int:
        """How many of the last of `fresh` have none of these numbers of sessions: they are left for later."""
        if self.fresh is None:
            return 0
        sent = np.flatnonzero(np.isin(self.fresh, begun))
        return self.fresh.size - (int(sent[-1]) + 1 if sent.size else 0)


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests are sent when they are due, whatever the server does. Of sessions, first turns are.

    Attributes:
        duration_s: how long the phase lasts; requests in flight at its end go on into the next phase.
        due_s: shape (n,), increasing; seconds from the start of the phase. Of a turn that follows another one, when it
            is expected to be due: beyond `duration_s` too, where it may become due sooner.
        prompt_tokens: shape (n,), tokens of each prompt as the server counts them.
        output_tokens: shape (n,), tokens that each request asks for.
        first_prompt: number of the phase's first prompt. Prompts are made from (seed, number), so phases of one
            measurement must not overlap in [first_prompt, first_prompt + prompts).
        turns: of sessions; None: no two requests belong together.
    """

    duration_s: float
    due_s: Floats
    prompt_tokens: Int32s
    output_tokens: Int32s
    first_prompt: int = 0
    turns: Turns | None = None

    @property
    def rate_rps(self) -> float:
        """Intended rate: requests due in the phase over its duration."""
        due = self.due_s.size if self.turns is None else int((self.due_s < self.duration_s).sum())
        return due / self.duration_s

    @property
    def prompts(self) -> int:
        """Prompt numbers that it uses."""
        return self.prompt_tokens.size if self.turns is None else self.turns.count


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of requests is kept in flight: the next request replaces one that ends at once.

    Requests in flight from the phase before count towards `concurrency`: a phase sends what is missing, or waits until
    enough have ended. The first `hot` rows may start in mid-life (a longer prompt, fewer tokens to go), which brings a
    server to its steady state in seconds. Their latencies are not those of whole requests, and stay out of percentiles.

    Attributes:
        duration_s: how long the phase lasts.
        concurrency: requests kept in flight.
        prompt_tokens, output_tokens: shape (n,), the rows in sending order. A runner that has sent the last row before
            the phase ends raises `LoadError`.
        hot: how many rows at the start are in mid-life.
        first_prompt, turns: see `OpenLoop`. The next turn of the session that ended replaces it, else a new session.
    """

    duration_s: float
    concurrency: int
    prompt_tokens: Int32s
    output_tokens: Int32s
    hot: int = 0
    first_prompt: int = 0
    turns: Turns | None = None

    @property
    def prompts(self) -> int:
        """Prompt numbers that it uses."""
        return self.prompt_tokens.size if self.turns is None else self.turns.count


LoadPhase = OpenLoop | ClosedLoop


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    IN_FLIGHT = 1
    CANCELLED = 2
    """Ended by us, because the measurement was over or aborted."""
    HTTP_4XX = 3
    HTTP_5XX = 4
    REDIRECT = 5
    CONNECT = 6
    """The connection could not be made, or was refused."""
    RESET = 7
    """The server closed the connection before the answer was whole."""
    TIMEOUT = 8
    PROTOCOL = 9
    """The answer was not HTTP, or not an event stream."""
    SHORT = 10
    """Whole, but with fewer tokens than asked for, under ``ignore_eos``."""
    STREAM_ERROR = 11
    """An error that the server reports inside an answer with HTTP status 200."""
    DROPPED = 12
    """Due, but never sent, because of a limit of the load generator; the self-check counts it."""
    EMPTY = 13
    """Ended well, but without a token."""
    ABORTED = 14
    """The engine gave the answer up: ``finish_reason`` abort, or another that is no end of a whole answer."""
    ENGINE_ERROR = 15
    """``finish_reason`` error."""
    CONTENT_FILTER = 16
    """``finish_reason`` content_filter, or another name of a filter."""


ERRORS = frozenset(Status) - {Status.OK, Status.IN_FLIGHT, Status.CANCELLED}


@dataclass(frozen=True, slots=True)
class ErrorText:
    """What was said about failed requests of one kind, and of how many.

    Attributes:
        status: one of `ERRORS`.
        code: the HTTP status; inside an answer with HTTP status 200, the code of the error object. 0 for none.
        text: the server's words where it said something, else ours; empty for texts beyond those that are kept.
        count: requests.
    """

    status: Status
    code: int
    text: str
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in bins whose edges grow by a constant factor. Percentiles have a relative error of up to ``growth - 1``.

    Bin 0 holds everything up to `lowest_s`; bin i > 0 holds (lowest_s * growth**(i-1), lowest_s * growth**i].
    """

    lowest_s: float
    growth: float
    counts: Ints

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile_s(self, quantile: float) -> float:
        """The quantile by nearest rank, with values spread evenly over their bin; NaN without values."""
        total = self.total
        if total == 0:
            return float("nan")
        rank = max(1, int(np.ceil(quantile * total - 1e-9)))
        up_to = np.cumsum(self.counts)
        at = int(np.searchsorted(up_to, rank))
        if at == 0:
            return self.lowest_s
        within = (rank - 0.5 - int(up_to[at - 1])) / int(self.counts[at])
        return float(self.lowest_s * self.growth ** (at - 1 + within))

    def share_above(self, limit_s: float) -> float:
        """Share of the values above the limit, to the nearest bin edge; NaN without values."""
        total = self.total
        if total == 0:
            return float("nan")
        return float(self.counts[self._above(limit_s)].sum() / total)

    def sum_above_s(self, limit_s: float) -> float:
        """Sum of the values above the limit, each taken at the upper edge of its bin, to the nearest bin edge."""
        above = self._above(limit_s)
        return float((self.counts * self._edges_s())[above].sum())

    def _above(self, limit_s: float) -> Bools:
        """The bins of values above the limit."""
        above: Bools = self._edges_s() > limit_s * self.growth**0.5
        return above

    def _edges_s(self) -> Floats:
        """The upper edge of each bin."""
        return np.asarray(self.lowest_s * self.growth ** np.arange(self.counts.size), np.float64)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What the load generator found out about itself in one phase. NaN where a figure does not apply.

    `problems` decides: a phase that can be trusted has none.
    """

    send_lateness_p99_s: float = float("nan")
    timestamp_lag_p99_s: float = float("nan")
    """From the kernel's receive timestamp to our reading of the data: the error of a user-space timestamp."""
    loop_lag_p99_s: float = float("nan")
    worker_cpu_share: tuple[float, ...] = ()
    open_sockets: int = 0
    intended_rps: float = float("nan")
    achieved_rps: float = float("nan")
    timestamps: str = "virtual"
    """Where receive times came from: ``kernel``, ``user`` or ``virtual``."""
    shared_packet_share: float = float("nan")
    """Share of the events that arrived in one packet with another, and so share its time."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """A phase that has run. Rows [first_row, end_row) of the journal became due in it."""

    phase: LoadPhase
    start_s: float
    end_s: float
    first_row: int
    end_row: int
    stopped: bool
    """`should_stop` ended it before its time."""
    check: SelfCheck
    gaps: Histogram
    """Every inter-token gap that ended in this phase (ITL)."""
    taken: int | None = None
    """No row of the phase from this one on was sent, so their prompts are left for later; None: not known."""


@dataclass(frozen=True, slots=True)
class SessionColumns:
    """What a journal knows of sessions, shape (n,) each: see `Turns`."""

    session: Ints
    cached: Int32s
    left: Int32s


@dataclass(frozen=True, slots=True, eq=False)
class Journal:
    """What is known of all requests so far, one row per request; NaN or 0 where something is not yet known.

    Each is equal to itself alone, as what is derived of it is kept by it.

    Attributes:
        due_s, sent_s, first_s, last_s, end_s: shape (n,): when it was due, when it was handed to the kernel, when its
            first and last tokens arrived, when the answer was whole or failed.
        prompt_tokens, output_tokens: shape (n,), as asked for.
        counted_prompt_tokens, counted_output_tokens: shape (n,), from the server's usage; 0 where it sent none. Without
            a usage, an answer with as many events as tokens were asked for has counted that many output tokens.
        status: shape (n,), of `Status`.
        hot: shape (n,), true for rows that started in mid-life.
        bin_s: width of the token bins.
        bins_start_s: when bin 0 starts.
        tokens: shape (m,), output tokens received in each bin.
        replica: shape (n,), the number of the replica that each request was sent to; None where one server, or one
            router, takes all.
        reasoning_tokens: shape (n,), tokens of the reasoning that an answer began with; 0 where it began with none, and
            1 or more while it is under way. None where nothing is known of any.
        answer_s: shape (n,), when the first token after the reasoning came; NaN for answers without reasoning, and
            where none came. None together with `reasoning_tokens`.
        adapter: shape (n,), the place of each request's adapter in the workload's mix; None without a mix.
        sessions: None where no two requests belong together.
    """

    due_s: Floats
    sent_s: Floats
    first_s: Floats
    last_s: Floats
    end_s: Floats
    prompt_tokens: Int32s
    output_tokens: Int32s
    counted_prompt_tokens: Int32s
    counted_output_tokens: Int32s
    status: Bytes
    hot: Bools
    bin_s: float
    bins_start_s: float
    tokens: Ints
    replica: Ints | None = None
    reasoning_tokens: Int32s | None = None
    answer_s: Floats | None = None
    adapter: Ints | None = None
    sessions: SessionColumns | None = None

    @property
    def cached_tokens(self) -> Int32s:
        """Tokens at the start of each prompt that its session sent before, shape (n,); 0 without sessions."""
        return np.zeros_like(self.prompt_tokens) if self.sessions is None else self.sessions.cached

    @property
    def ttft_s(self) -> Floats:
        """Time to first token, from being due."""
        return self.first_s - self.due_s

    @property
    def reasoned(self) -> Bools:
        """Which answers began with reasoning, shape (n,)."""
        return np.zeros(self.due_s.size, np.bool_) if self.reasoning_tokens is None else self.reasoning_tokens > 0

    @property
    def first_answer_s(self) -> Floats:
        """When the first answer token came, shape (n,): after the reasoning, or the first token where there is none."""
        if self.answer_s is None:
            return self.first_s
        return np.where(self.reasoned, self.answer_s, self.first_s)

    @property
    def ttfat_s(self) -> Floats:
        """Time to first answer token, from being due."""
        return self.first_answer_s - self.due_s

    @property
    def e2e_s(self) -> Floats:
        """End-to-end latency: from being due to the last token."""
        return self.last_s - self.due_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; NaN where there is only one."""
        after_first = self.counted_output_tokens.astype(np.float64) - 1.0
        after_first[after_first <= 0] = np.nan
        tpot: Floats = (self.last_s - self.first_s) / after_first
        return tpot

    @property
    def failed(self) -> Bools:
        """Which requests failed, shape (n,)."""
        return np.isin(self.status, [int(each) for each in ERRORS])


@dataclass(frozen=True, slots=True)
class Progress:
    """What a runner knows while a phase runs; handed to `should_stop` a few times a second."""

    in_flight: int
    completed: int
    failed: int
    """Errors in this phase so far (`ERRORS`)."""


class LoadError(GpuCapError):
    """The load cannot be produced (no connection at the start, a worker died), so no verdict is possible."""


class PromptCountError(LoadError):
    """The server counts prompt tokens in a way that prompts of an exact number cannot be made for."""


class LoadRunner(Protocol):
    """Carries requests to one server. One thread uses it. Phases follow each other without a gap."""

    @property
    def clock(self) -> Clock:
        """The clock of every time in the journal."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether no real server answers; every report says so."""
        ...

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """Run one phase; returns when its time is over, with its open requests still in flight."""
        ...

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """Wait until nothing is in flight, or end it (`cancel`); True if that was reached within the time."""
        ...

    def journal(self) -> Journal:
        """What is known so far, in arrays that the caller may keep."""
        ...

    def error_texts(self) -> Sequence[ErrorText]:
        """What is known of failed requests beyond their status. The journal has the counts that matter."""
        ...

    def close(self) -> None:
        """Cancel what is in flight, and free all resources. Safe to call twice."""
        ...
