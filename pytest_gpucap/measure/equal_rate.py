"""Both servers of a comparison under an open loop with the very same arrivals, for their latencies at an equal rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.alternation import LEAD_MARGIN, LEAST_LEAD_S, Alternation
from pytest_gpucap.measure.run import CalledOff, OutOfTime, Window, overload_at
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.windows import Phase, WindowId

SHARE = 0.8
"""The rate is this share of the lower of both sustainable rates: the servers are busy, and far enough from their limits
for latencies to settle."""
REQUESTS = 150
"""Requests that each server's latencies come from, if `LONGEST_S` suffices for them. A p95 then rests on 7 requests
beyond it."""
LEAST_REQUESTS = 20
"""With fewer than these, a percentile would say nothing, and no open loop is run."""
SHORTEST_S = 12.0
"""Counted seconds per server at least: two phases in three windows of 2 s each."""
LONGEST_S = 24.0
"""Counted seconds per server at most. The comparison is decided by now, and these latencies fail nothing."""
MOST_LEAD_S = 30.0
"""Discarded at most before the latencies count; a request that takes longer would cost more than it tells."""
PHASES = 2
"""Phases without a pause between them. Each is cut into windows, whose scatter gives the latencies' intervals."""


@dataclass(frozen=True, slots=True)
class EqualRate:
    """Open loops that brought both servers the very same requests.

    Attributes:
        base, head: their windows, those of one window with the same arrivals; empty where there is a problem.
        problem: why they tell nothing of latencies, or were not run.
    """

    base: tuple[Sample, ...] = ()
    head: tuple[Sample, ...] = ()
    problem: str = ""


class _Loop(NamedTuple):
    """Requests a second, and the seconds on each server that count, and that are discarded before."""

    rate_rps: float
    counted_s: float
    lead_s: float


def run_equal_rate(alternation: Alternation, rates: Sequence[float]) -> EqualRate:
    """Drive both servers in turn with the same arrivals, at a rate below all of `rates`.

    Nothing is sent without rates, where too few requests would come, and where time is short: that is the problem then.
    """
    planned = _planned(alternation, rates)
    if isinstance(planned, str):
        return EqualRate(problem=planned)
    rate, counted_s, lead_s = planned
    overload = overload_at(alternation.concurrency)
    shown: dict[str, tuple[Sample, ...]] = {}
    for name, run in alternation.runs.items():
        windows: list[Window] = []
        try:
            for number in range(1, PHASES + 1):
                which, discard_s = WindowId(Phase.EQUAL_RATE, number), lead_s if number == 1 else 0.0
                windows.append(run.open_loop(which, rate, counted_s / PHASES, overload=overload, discard_s=discard_s))
        except CalledOff:
            pass  # the alternation names the failures as a problem
        except OutOfTime:  # what is waited for takes as long as it takes
            return EqualRate(problem=f"{name}: the time limit left no room for an open loop at {rate:.3g} req/s")
        alternation.empty(name)
        if problems := alternation.problems():
            return EqualRate(problem=problems[0].text)
        if any(window.span.stopped for window in windows):
            return EqualRate(problem=f"{name}: more than {overload} requests piled up at {rate:.3g} req/s")
        shown[name] = tuple(sample for window in windows for sample in window.samples)
    return EqualRate(shown["base"], shown["head"])


def _planned(alternation: Alternation, rates: Sequence[float]) -> _Loop | str:
    """The open loop that fits; why none does, where none does."""
    if not rates:
        return "the sustainable rate of neither is known, so no rate is known that both keep"
    rate = SHARE * min(rates)
    if rate * LONGEST_S < LEAST_REQUESTS:
        at = f"{rate:.3g} req/s ({SHARE:.0%} of the lower sustainable rate)"
        return f"at {at} fewer than {LEAST_REQUESTS} requests would come in {LONGEST_S:.0f} s"
    counted_s = min(LONGEST_S, max(SHORTEST_S, REQUESTS / rate))
    # Until the requests of the first moments are gone, fewer than usual are in flight.
    lead_s = min(MOST_LEAD_S, max(LEAST_LEAD_S, LEAD_MARGIN * alternation.residence_s()))
    needed_s = 2 * (lead_s + counted_s + c.SETTLE_S)
    if alternation.left_s < needed_s:
        left_s = max(0.0, alternation.left_s)
        return f"open loops on both take {needed_s:.0f} s, and the time limit left {left_s:.0f} s"
    return _Loop(rate, counted_s, lead_s)
