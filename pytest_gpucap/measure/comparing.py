"""Base against head: alternate until the ratio of their sustainable rates decides, then look at latencies.

Both servers are held where the head's limits bind. The decision comes first; then an open loop brings both the very
same arrivals, for their latencies at an equal rate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pytest_gpucap.decisions.paired import (
    LEAST_PAIRS,
    MOST_PAIRS,
    PaceDifference,
    Pair,
    pace_of,
    pairs_to_settle,
    ratio_from_pace,
)
from pytest_gpucap.decisions.regression import decide
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure.alternation import Alternation
from pytest_gpucap.measure.equal_rate import EqualRate, run_equal_rate
from pytest_gpucap.measure.estimate import critical_concurrency
from pytest_gpucap.measure.run import CalledOff, MeasuringRun, OutOfTime, no_load
from pytest_gpucap.measure.settings import Observer, Settings, SilentObserver
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.plausibility import impossible


@dataclass(frozen=True, slots=True)
class PairedServer:
    """One of the two servers: the runner that drives it, its settings, and its physical limits where they are known."""

    runner: LoadRunner
    settings: Settings
    roofline: Roofline | None = None


@dataclass(frozen=True, slots=True)
class About:
    """How the alternation was run.

    Attributes:
        concurrency: requests held in flight.
        simulated: a server was simulated.
        spent_s: seconds on both servers together.
        alternated_s: those of them that the alternation took.
    """

    concurrency: int
    simulated: bool
    spent_s: float
    alternated_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Paired:
    """What the alternation showed.

    Attributes:
        about: how it was run.
        change: the decision by itself; INCONCLUSIVE also where time ended, or where it cannot be trusted.
        ratio: of the sustainable rates, head over base; None where too few pairs were measured.
        pace: ratio of what both deliver at that concurrency, with the interval of the pairs alone; None with `ratio`.
        elasticity: the factor that turned ln(pace) into ln(ratio).
        head_rate: the head's sustainable rate; None where unknown.
        base_rate: `head_rate` over `ratio`.
        pairs: behind it.
        more_pairs: further pairs that would settle an INCONCLUSIVE; None where it is settled or no number would.
        equal_rate: both under an open loop, or why there was none; None where it was not asked for, or `ratio` is None.
        problems: why it cannot be trusted; empty when it can.
    """

    about: About
    change: RegressionDecision = RegressionDecision.INCONCLUSIVE
    ratio: Interval | None = None
    pace: Interval | None = None
    elasticity: float = 1.0
    head_rate: Interval | None = None
    base_rate: Interval | None = None
    pairs: tuple[Pair, ...] = ()
    more_pairs: int | None = None
    equal_rate: EqualRate | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def more_s(self) -> float | None:
        """Seconds that `more_pairs` would take if each takes what a pair took so far, warm-up included."""
        return None if self.more_pairs is None else self.more_pairs * self.about.alternated_s / len(self.pairs)


def compare(
    base: PairedServer,
    head: PairedServer,
    requirement: Requirement,
    max_regression: float,
    head_rate: Interval | None = None,
    observer: Observer | None = None,
    *,
    most_pairs: int = MOST_PAIRS,
    latencies_after: Collection[RegressionDecision] = tuple(RegressionDecision),
) -> Paired:
    """Alternate until the ratio decides, `most_pairs` are measured, or the settings' time is over.

    Never raises for what a server or the load does: that ends as a problem.

    Args:
        base: a server that is ready, with nothing in flight; left so.
        head: another, likewise.
        requirement: workload and limits; its design rate says where to hold while `head_rate` is unknown.
        max_regression: share of the rate that may be lost.
        head_rate: the head's sustainable rate, where a check has just measured it. The blocks give another; the one
            with the narrower interval is reported.
        observer: follows it.
        most_pairs: an even number.
        latencies_after: decisions after which latencies are compared at an equal rate. Leave out a decision that will
            be measured again.
    """
    watching = observer or SilentObserver()
    alternation = Alternation(
        MeasuringRun(base.runner, requirement, base.settings, watching),
        MeasuringRun(head.runner, requirement, head.settings, watching),
        concurrency_of(requirement, base, head, head_rate),
    )
    clock = base.runner.clock
    began_s = decided_s = clock.now()
    found: _Decided | None = None
    base_rate: Interval | None = None
    equal_rate: EqualRate | None = None
    problems: tuple[Problem, ...] = ()
    try:
        found = _alternated(alternation, max_regression, most_pairs)
        problems, decided_s = alternation.problems(), clock.now()
        if found is not None and not problems:
            head_rate = _sharper(head_rate, alternation.head_rate)
            base_rate = None if head_rate is None else _over(head_rate, found.ratio)
            if found.change in latencies_after:
                known = [rate.value for rate in (base_rate, head_rate) if rate is not None]
                equal_rate = run_equal_rate(alternation, known)
            servers = (("base", base, base_rate), ("head", head, head_rate))
            problems = tuple(
                Problem(ProblemSource.MEASUREMENT, ProblemKind.IMPOSSIBLE, f"{name}: {reason}")
                for name, server, rate in servers
                if (reason := _impossible(server, rate, alternation.samples(name))) is not None
            )
        for name in ("base", "head"):
            alternation.empty(name)
    except LoadError as error:
        problems = (*alternation.problems(), no_load(error))
    simulated = base.runner.simulated or head.runner.simulated
    about = About(alternation.concurrency, simulated, clock.now() - began_s, decided_s - began_s)
    if found is None or problems:
        return Paired(about, problems=problems, head_rate=head_rate)
    pace, undecided = found.pace, found.change is RegressionDecision.INCONCLUSIVE
    return Paired(
        about,
        found.change,
        found.ratio,
        Interval(*(math.exp(pace.difference + sign * pace.half_width) for sign in (0, -1, 1))),
        found.elasticity,
        head_rate,
        base_rate,
        found.pairs,
        pairs_to_settle(pace, len(found.pairs), found.elasticity, max_regression) if undecided else None,
        equal_rate,
    )


def _impossible(server: PairedServer, rate: Interval | None, samples: Sequence[Sample]) -> str | None:
    """Why physics rules out a server's samples or its rate; None if it does not, or if its limits are not known."""
    return None if server.roofline is None else impossible(samples, server.roofline, {"sustainable rate": rate})


@dataclass(frozen=True, slots=True)
class _Decided:
    """What the pairs say."""

    pairs: tuple[Pair, ...]
    pace: PaceDifference
    elasticity: float
    ratio: Interval
    change: RegressionDecision


def _alternated(alternation: Alternation, max_regression: float, most_pairs: int) -> _Decided | None:
    """Measure pairs until they decide or time ends; None where there are too few."""
    found: _Decided | None = None
    try:
        alternation.warm_up()
        for number in range(2, most_pairs + 1, 2):
            for _ in range(2):
                if alternation.problems():
                    return None
                alternation.pair()
            if alternation.problems():
                return None
            if number < LEAST_PAIRS:
                continue
            pairs, elasticity = alternation.pairs(), alternation.elasticity()
            pace = pace_of(pairs)
            ratio = ratio_from_pace(pace, elasticity)
            change = decide(ratio, max_regression)
            found = _Decided(tuple(pairs), pace, elasticity, ratio, change)
            if change is not RegressionDecision.INCONCLUSIVE:
                break
    except (OutOfTime, CalledOff):
        pass
    return found


def concurrency_of(requirement: Requirement, base: PairedServer, head: PairedServer, head_rate: Interval | None) -> int:
    """Requests to hold in flight on both: where limits bind, at the higher of the head's rate and the design rate.

    Where a head has lost most of its capacity, its limits bind with few requests in flight, where the base would not
    show what it can do. So the design rate counts too, and of the servers' own limits the wider one.
    """
    rates = [float(requirement.driven_rate), *([head_rate.value] if head_rate is not None else [])]
    return max(critical_concurrency(requirement, server.settings, rate) for server in (base, head) for rate in rates)


def _sharper(one: Interval | None, other: Interval | None) -> Interval | None:
    """The rate with the narrower interval: a check far above its requirement knows the rate badly."""
    known = [rate for rate in (one, other) if rate is not None and rate.low > 0]
    return min(known, key=lambda rate: rate.high / rate.low, default=None)


def _over(rate: Interval, ratio: Interval) -> Interval:
    """Rate / ratio with the interval of independent relative errors."""
    value = rate.value / ratio.value
    down = math.hypot(math.log(rate.value / rate.low) if rate.low > 0 else math.inf, math.log(ratio.high / ratio.value))
    up = math.hypot(math.log(rate.high / rate.value), math.log(ratio.value / ratio.low))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def describe(found: Paired, max_regression: float) -> str:
    """One sentence on what the alternation showed, and why it ended."""
    if found.problems:
        return f"base and head could not be compared: {found.problems[0].text}"
    if found.ratio is None or found.pace is None:
        return f"only {len(found.pairs)} pairs of blocks fitted the time"
    counted = f"{len(found.pairs)} pairs of blocks in alternation with {found.about.concurrency} in flight"
    change = f"the head's pace is {_signed(found.pace.value)} ({_signed(found.pace.low)} to {_signed(found.pace.high)})"
    text = f"{counted}: {change}, which makes {_signed(found.ratio.value)} of sustainable rate"
    if found.change is RegressionDecision.INCONCLUSIVE and found.more_pairs is None:
        text += f"; too near the {max_regression:.1%} allowed for more pairs to settle it"
    elif found.change is RegressionDecision.INCONCLUSIVE:
        text += f"; {found.more_pairs} pairs more would settle it"
    return text


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def windows_of(found: Sequence[Pair]) -> list[dict[str, float | bool]]:
    """The pairs as plain values: what each server delivered per second in engine seconds of the base, and the order."""
    return [{"base": math.exp(p.base), "head": math.exp(p.head), "base_first": p.base_first} for p in found]
