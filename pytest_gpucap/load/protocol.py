"""The small protocol between the measuring procedure and whatever carries its requests.

The procedure (`measure/`) is written against `Clock` and `LoadRunner` alone. The HTTP client implements them in real
time, the simulator in virtual time; so the code whose error rates are known is the code that runs.

Every time is a float of seconds on the runner's own clock. Every per-request figure is a column of `Journal`, one row a
request in the order of being due, because a million rows of Python objects would not fit the memory they may take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.results.problems import Problem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


class Clock(Protocol):
    """A monotonic clock in seconds: the machine's own, or a simulation's."""

    def now(self) -> float:
        """Seconds since a fixed but arbitrary start."""
        ...


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests sent when they are due, whatever the server does.

    Attributes:
        duration_s: how long the phase lasts; requests still in flight at its end go on into the next phase.
        due_s: shape (n,), increasing; seconds from the start of the phase.
        prompt_tokens: shape (n,), tokens of each prompt as the server counts them.
        output_tokens: shape (n,), tokens that each request asks for.
        first_prompt: number of the phase's first prompt. Prompts are made from (seed, number), so phases of one
            measurement must not overlap in [first_prompt, first_prompt + n).
    """

    duration_s: float
    due_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    first_prompt: int = 0

    @property
    def rate_rps(self) -> float:
        """Intended rate: requests due in the phase over its duration."""
        return self.due_s.size / self.duration_s


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of requests kept in flight: one that ends is replaced at once by the next.

    Requests already in flight from the phase before count towards `concurrency`, so a phase tops up or waits to fall.
    The first `hot` rows may start mid-life (a longer prompt, fewer tokens to go), which brings a server to its steady
    state in seconds; their latencies describe no whole request and are left out of percentiles.

    Attributes:
        duration_s: how long the phase lasts.
        concurrency: requests kept in flight.
        prompt_tokens, output_tokens: shape (n,), the rows in sending order; n must outlast the phase. A runner that
            sends the last row before the end raises `LoadError`.
        hot: how many rows at the start are mid-life.
        first_prompt: see `OpenLoop`.
    """

    duration_s: float
    concurrency: int
    prompt_tokens: Ints
    output_tokens: Ints
    hot: int = 0
    first_prompt: int = 0


Phase = OpenLoop | ClosedLoop


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    IN_FLIGHT = 1
    CANCELLED = 2
    """Ended by us: the measurement was over or called off."""
    HTTP_4XX = 3
    HTTP_5XX = 4
    REDIRECT = 5
    CONNECT = 6
    """The connection could not be made, or was refused."""
    RESET = 7
    """The server closed the connection before the answer was whole."""
    TIMEOUT = 8
    PROTOCOL = 9
    """Not the HTTP or the event stream that was asked for."""
    SHORT = 10
    """Whole, but with fewer tokens than asked for under ``ignore_eos``."""
    STREAM_ERROR = 11
    """An error object inside the event stream."""
    DROPPED = 12
    """Due, but never sent: the load generator could not (its own limit; always counted against the client)."""


ERRORS = frozenset(Status) - {Status.OK, Status.IN_FLIGHT, Status.CANCELLED}


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in bins whose edges grow by a constant factor; percentiles are right to ``growth - 1`` in relative terms.

    Bin 0 holds everything up to `lowest_s`; bin i > 0 holds (lowest_s * growth**(i-1), lowest_s * growth**i].
    """

    lowest_s: float
    growth: float
    counts: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile_s(self, quantile: float) -> float:
        """The quantile (nearest rank), its bin's values taken as spread evenly over the bin; NaN of nothing."""
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
        """Share of the values above the limit, to the nearest bin edge; NaN of nothing."""
        total = self.total
        if total == 0:
            return float("nan")
        edges = self.lowest_s * self.growth ** np.arange(self.counts.size)
        return float(self.counts[edges > limit_s * self.growth**0.5].sum() / total)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """What the load generator found out about itself in one phase. NaN where a figure does not apply.

    `problems` decides: a phase that can be trusted has none.
    """

    send_lateness_p99_s: float = float("nan")
    timestamp_lag_p99_s: float = float("nan")
    """From the kernel's receive timestamp to our reading of the data: what a user-space clock would have added."""
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
    """One phase as it went. Rows [first_row, end_row) of the journal became due in it."""

    phase: Phase
    start_s: float
    end_s: float
    first_row: int
    end_row: int
    stopped: bool
    """`should_stop` ended it before its time."""
    check: SelfCheck
    gaps: Histogram
    """Every inter-token gap that ended in this phase (ITL)."""


@dataclass(frozen=True, slots=True)
class Journal:
    """Everything known of every request so far, one row a request; NaN or 0 where not (yet) known.

    Attributes:
        due_s, sent_s, first_s, last_s, end_s: shape (n,): when it was due, handed to the kernel, when its first and
            last tokens arrived, when the answer was whole or failed.
        prompt_tokens, output_tokens: shape (n,), as asked for.
        counted_prompt_tokens, counted_output_tokens: shape (n,), from the server's usage chunk; 0 where it sent none.
        status: shape (n,), of `Status`.
        hot: shape (n,), true for rows that started mid-life.
        bin_s: width of the token bins.
        bins_start_s: when bin 0 starts.
        tokens: shape (m,), output tokens received in each bin.
    """

    due_s: Floats
    sent_s: Floats
    first_s: Floats
    last_s: Floats
    end_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    counted_prompt_tokens: Ints
    counted_output_tokens: Ints
    status: Bytes
    hot: npt.NDArray[np.bool_]
    bin_s: float
    bins_start_s: float
    tokens: npt.NDArray[np.int64]

    @property
    def ttft_s(self) -> Floats:
        """Time to first token, from being due."""
        return self.first_s - self.due_s

    @property
    def e2e_s(self) -> Floats:
        """From being due to the last token."""
        return self.last_s - self.due_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; NaN where there was no second."""
        after_first = self.counted_output_tokens.astype(np.float64) - 1.0
        after_first[after_first <= 0] = np.nan
        tpot: Floats = (self.last_s - self.first_s) / after_first
        return tpot


@dataclass(frozen=True, slots=True)
class Progress:
    """What a runner knows while a phase runs; handed to `should_stop` a few times a second."""

    elapsed_s: float
    in_flight: int
    completed: int
    failed: int
    """Errors in this phase so far (`ERRORS`)."""


class LoadError(GpuCapError):
    """The load cannot be produced at all (no connection at the start, the worker died): no verdict can come of it."""


class LoadRunner(Protocol):
    """Carries requests to one server. One thread uses it; phases run one after the other without a gap in between."""

    @property
    def clock(self) -> Clock:
        """What every time of the journal is on."""
        ...

    @property
    def simulated(self) -> bool:
        """True when no real server answers; every report says so."""
        ...

    def run(self, phase: Phase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """Carry one phase; return when its time is over, leaving its open requests in flight."""
        ...

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """Wait until nothing is in flight (`cancel`: end what is); True when so within the time."""
        ...

    def journal(self) -> Journal:
        """Everything so far, as arrays the caller may keep."""
        ...

    def close(self) -> None:
        """Cancel what is in flight and free everything. Safe to call twice."""
        ...
