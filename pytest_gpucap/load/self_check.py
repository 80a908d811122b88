"""The load generator's check of itself: was it, and not the server, the limit of a phase?

Where possible, limits are relative to what is measured: 20 ms of lateness spoil a TTFT of 30 ms, and do not matter to
one of 4 s. Figures without a limit are reported as well.
"""

from __future__ import annotations

import numpy as np

from pytest_gpucap.arrays import Floats, Ints
from pytest_gpucap.load.protocol import LoadPhase, OpenLoop, SelfCheck, Status
from pytest_gpucap.load.shared_memory import Count, HistogramKind, PhaseTable
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource

LATENESS_FLOOR_S = 0.010
"""A p99 send lateness below this is never a problem. A process that shares its core, as beside a server on the CPU, now
and then waits for a few scheduler slices of 3 to 4 ms, and is no bottleneck because of that."""
LATENESS_SHARE = 0.10
"""Limit of the p99 send lateness, as a share of the p95 TTFT. Latencies count from when a request was due, so they
include the lateness. An overloaded client causes most of what it measures; a tenth for one request in a hundred hardly
moves a percentile."""
LEAST_LATE = 3
"""The p99 of few requests is their maximum, and one or two late requests do not show a saturated client."""
CPU_LIMIT = 0.9
"""Of one core. A worker above it has no room for a burst."""
RATE_SHARE = 0.02
"""Share of the requests that became due in a phase that may still wait to be sent at its end."""

STOPPED_S = 2.0
"""A worker whose event loop was late by more than this was suspended. On a machine whose every core is taken it may be
late by half a second."""
STOPPED_SHARE = 0.02
"""Share of a closed loop's time for which workers may so have stood still. For that long, no new request replaced an
answered one, so throughput is lower by about as much. In an open loop the lateness of requests shows it."""
UNVERIFIED_SHARE = 0.05
"""Share of the whole answers whose length may be unknown. More of them move the load that was asked for by percents."""


def check_phase(
    phase: LoadPhase, table: PhaseTable, *, start_s: float, end_s: float, due: Floats, exact: bool = True
) -> SelfCheck:
    """Judge one phase.

    Args:
        phase: as it was ordered.
        table: of its rows.
        start_s: when it began.
        end_s: when it ended.
        due: times of the rows that became due in it (journal order does not matter).
        exact: the tokens of every prompt were known before it was sent.
    """
    counts = table.counts.sum(axis=0)
    sent = int(counts[Count.SENT])
    seconds = max(end_s - start_s, 1e-9)
    wall = np.maximum(table.counts[:, Count.WALL_NS], 1)
    shares = tuple(float(share) for share in table.counts[:, Count.CPU_NS] / wall)
    events = int(counts[Count.EVENTS])
    lateness = table.histogram(HistogramKind.LATENESS)
    lag = table.histogram(HistogramKind.LAG)
    kernel = lag.total
    lateness_p99, lag_p99 = lateness.quantile_s(0.99), lag.quantile_s(0.99)
    is_open = isinstance(phase, OpenLoop)
    intended = due.size / seconds if is_open else float("nan")
    with np.errstate(invalid="ignore"):
        ttft = table.first_s - table.due_s
    ttft = ttft[np.isfinite(ttft)]
    problems: list[Problem] = []

    def own(kind: ProblemKind, text: str) -> None:
        problems.append(Problem(ProblemSource.LOAD_GENERATOR, kind, f"the load generator{text}"))

    limit_s = max(LATENESS_FLOOR_S, LATENESS_SHARE * float(np.quantile(ttft, 0.95)) if ttft.size else 0.0)
    late = lateness.share_above(limit_s) * lateness.total
    if is_open and lateness_p99 > limit_s and late >= LEAST_LATE:
        own(
            ProblemKind.LATE,
            f"{_BOTTLENECK}: send lateness p99 {_ms(lateness_p99)} (limit {_ms(limit_s)}); {_ADVICE}",
        )
    loop = table.histogram(HistogramKind.LOOP)
    stopped_s = loop.sum_above_s(STOPPED_S) / len(table.counts)
    if not is_open and stopped_s > STOPPED_SHARE * seconds:
        text = f" did not run for {stopped_s:.2g} s of {seconds:.2g} s"
        own(ProblemKind.SUSPENDED, f"{text}: its processes, or the machine, were suspended")
    user = int(counts[Count.USER_STAMPS])
    busiest = max(shares, default=0.0)
    if busiest > CPU_LIMIT:
        own(
            ProblemKind.CPU,
            f"{_BOTTLENECK}: a worker used {busiest:.0%} of a core (limit {CPU_LIMIT:.0%}); {_ADVICE}",
        )
    dropped = int(np.count_nonzero(table.status == Status.DROPPED))
    if dropped:
        own(
            ProblemKind.DROPPED,
            f" could not send {dropped} requests that were due: no socket, port or time was left; "
            "raise the limit on open files (ulimit -n) or lower the rate",
        )
    behind = due.size - sent - dropped
    if is_open and behind > max(RATE_SHARE * due.size, LEAST_LATE):
        own(ProblemKind.BEHIND, f"{_BOTTLENECK}: {sent} of {due.size} due requests were sent; {_ADVICE}")
    if counts[Count.CLOCK_STEPS]:
        text = (
            "the system clock was set during the phase, which spoils kernel timestamps; "
            "stop what sets it (a one-off time synchronisation) and run again"
        )
        problems.append(Problem(ProblemSource.HOST, ProblemKind.CLOCK_SET, text))
    if exact and counts[Count.WRONG_PROMPT]:
        problems.append(Problem(ProblemSource.SERVER, ProblemKind.PROMPT_TOKENS, _wrong_prompts(counts)))
    unverified, answers = int(counts[Count.UNVERIFIED]), int(counts[Count.ANSWERS])
    if unverified > max(UNVERIFIED_SHARE * answers, LEAST_LATE):
        text = (
            f"the lengths of {unverified} of {answers} answers cannot be verified: they came without a usage, in fewer "
            "events than tokens were asked for; let the server send one (stream_options.include_usage), or one token "
            "in each event"
        )
        problems.append(Problem(ProblemSource.SERVER, ProblemKind.LENGTHS, text))
    return SelfCheck(
        send_lateness_p99_s=lateness_p99,
        timestamp_lag_p99_s=lag_p99,
        loop_lag_p99_s=loop.quantile_s(0.99),
        worker_cpu_share=shares,
        open_sockets=int(counts[Count.OPEN_SOCKETS]),
        intended_rps=intended,
        achieved_rps=sent / seconds,
        timestamps="kernel" if kernel >= user else "user",
        shared_packet_share=counts[Count.SHARED_EVENTS] / events if events else float("nan"),
        problems=tuple(problems),
    )


def _wrong_prompts(counts: Ints) -> str:
    """What is said of prompts that the server counted otherwise than was asked for."""
    wrong, told = int(counts[Count.WRONG_PROMPT]), int(counts[Count.PROMPTS])
    asked, counted = (counts[count] / wrong for count in (Count.WRONG_ASKED, Count.WRONG_COUNTED))
    if not counted:
        return f"the server reported no prompt tokens in {wrong} of {told} answers"
    if wrong < told:
        cause = "does a load balancer mix servers with unlike tokenizers or chat templates?"
    elif counted < asked:
        cause = "does it leave cached tokens out, or does something shorten the prompts?"
    else:
        cause = "does something add to the prompts?"
    return (
        f"the server counted other prompt tokens than were asked for in {wrong} of {told} answers: {asked:.4g} asked, "
        f"{counted:.4g} counted on average; {cause}"
    )


_BOTTLENECK = ", not the GPU, was the bottleneck"
_ADVICE = "give it a core of its own (taskset), more workers, or a machine beside the server's"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
