"""Base against head: two servers that stand on the same devices, held in alternation while the other one idles.

Both are held at the same number of requests in flight, where the head's limits bind, and are sent the same requests.
Blocks go base, head, head, base, base, head, head, ...; each begins with a hot start on an empty server and counts from
when it is steady. What a pair of blocks differs by is the servers' difference, whatever the machine does over minutes.
When the rates are decided, an open loop brings both the very same arrivals, for their latencies at an equal rate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import numpy as np
from scipy.stats import trim_mean

from pytest_gpucap.decisions.paired import (
    LEAST_PAIRS,
    MOST_PAIRS,
    PaceDifference,
    Pair,
    pace_of,
    pairs_to_settle,
    ratio_of,
)
from pytest_gpucap.decisions.regression import decide
from pytest_gpucap.estimate.step_time import SpeedError, bins_of
from pytest_gpucap.load.protocol import Floats, LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.estimate import critical_concurrency, estimate, fitted, typical_step_s
from pytest_gpucap.measure.run import MeasuringRun, OutOfTime, Window, no_load
from pytest_gpucap.measure.settings import Observer, Settings, SilentObserver
from pytest_gpucap.measure.traffic import traffic_for
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase, WindowId
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.plausibility import impossible

BLOCK_S = 5.0
"""Counted seconds of a block: short against the drift, long against what stopping and starting costs."""
LEAD_S = 1.5
"""Not counted at the start of a block: the prefill of all its requests at once, or longer where that took longer."""
MOST_LEAD_S = 15.0
LEAD_MARGIN = 1.3
BINS = 12
"""A block's throughput is the trimmed mean of so many bins, where they are long enough: a stop of the engine (0.3 s) in
one block of a pair would be a difference of 6%."""
TRIMMED = 0.15
LEAST_STEPS = 8
"""Engine steps in a bin from which its edges, which cut steps in two, do not matter."""
MOST_ELASTICITY = 4.0
EQUAL_RATE_SHARE = 0.8
"""Of the lower of both sustainable rates: busy, and far enough from either's limit for latencies to settle."""
EQUAL_RATE_REQUESTS = 150
"""So many stand behind the latencies of either server, where that takes no longer than `EQUAL_RATE_S` allows."""
EQUAL_RATE_LEAST_REQUESTS = 20
EQUAL_RATE_S = (12.0, 24.0)
EQUAL_RATE_MOST_LEAD_S = 30.0
EQUAL_RATE_PHASES = 2
"""Without a pause between them; each is cut into windows, whose scatter the interval of a latency comes from."""


@dataclass(frozen=True, slots=True)
class PairedServer:
    """One of the two servers: the runner that drives it, what is known of it, and its physical limits if they are."""

    runner: LoadRunner
    settings: Settings
    roofline: Roofline | None = None


@dataclass(frozen=True, slots=True)
class _About:
    concurrency: int
    simulated: bool
    spent_s: float
    alternated_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EqualRate:
    """Open loops that brought both servers the very same requests.

    Attributes:
        base, head: their windows, those of one window with the same arrivals; empty where there is a problem.
        problem: why they tell nothing of latencies.
    """

    base: tuple[Sample, ...] = ()
    head: tuple[Sample, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Paired:
    """What the alternation showed.

    Attributes:
        about: `concurrency` held in flight, whether the servers were `simulated`, seconds `spent_s` on both together,
            and those of them that the alternation took.
        change: the decision by itself; INCONCLUSIVE also where time ended, or where it cannot be trusted.
        ratio: of the sustainable rates, head over base; None where too few pairs were measured.
        pace: ratio of what both deliver at that concurrency, with the interval of the pairs alone; None with `ratio`.
        elasticity: that turned `pace` into `ratio`.
        head_rate: the head's sustainable rate; None where unknown.
        base_rate: `head_rate` over `ratio`.
        pairs: behind it.
        more_pairs: that would settle an INCONCLUSIVE; None where it is settled or nothing would.
        equal_rate: both under an open loop; None where it was not asked for, no rate is known, so few
            requests would tell nothing, or time was short.
        problems: why it cannot be trusted; empty when it can.
    """

    about: _About
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
        """Seconds that `more_pairs` would take, at what a pair has taken so far, the warm-up counted in."""
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
        head_rate: the head's sustainable rate, where a check has just measured it; the blocks give another, and the
            sharper is reported.
        observer: follows it.
        most_pairs: even.
        latencies_after: decisions after which an equal rate shows latencies as well; not one that is asked for again.
    """
    watching = observer or SilentObserver()
    alternation = _Alternation(
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
                equal_rate = alternation.equal_rate([rate.value for rate in (base_rate, head_rate) if rate is not None])
            sides = (("base", base, base_rate), ("head", head, head_rate))
            problems = tuple(
                Problem(ProblemSource.MEASUREMENT, ProblemKind.IMPOSSIBLE, f"{name}: {reason}")
                for name, side, rate in sides
                if (reason := _impossible(side, rate, alternation.samples(name))) is not None
            )
        for name in ("base", "head"):
            alternation.empty(name)
    except LoadError as error:
        problems = (*alternation.problems(), no_load(error))
    simulated = base.runner.simulated or head.runner.simulated
    about = _About(alternation.concurrency, simulated, clock.now() - began_s, decided_s - began_s)
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


def _impossible(side: PairedServer, rate: Interval | None, samples: Sequence[Sample]) -> str | None:
    """Why physics rules out what a server was seen to do, or its rate; None where it does not, or is not known."""
    return None if side.roofline is None else impossible(samples, side.roofline, {"sustainable rate": rate})


@dataclass(frozen=True, slots=True)
class _Decided:
    """What the pairs say."""

    pairs: tuple[Pair, ...]
    pace: PaceDifference
    elasticity: float
    ratio: Interval
    change: RegressionDecision


def _alternated(alternation: _Alternation, max_regression: float, most_pairs: int) -> _Decided | None:
    """Pairs until they decide, or there is no room for more; None where there are too few of them."""
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
            ratio = ratio_of(pace, elasticity)
            change = decide(ratio, max_regression)
            found = _Decided(tuple(pairs), pace, elasticity, ratio, change)
            if change is not RegressionDecision.INCONCLUSIVE:
                break
    except OutOfTime:
        pass
    return found


def concurrency_of(requirement: Requirement, base: PairedServer, head: PairedServer, head_rate: Interval | None) -> int:
    """Requests to hold in flight on both: where limits bind, at the higher of the head's rate and the design rate.

    The design rate counts because a head that has lost most of its capacity binds at few in flight, where the base
    would not show what it can do; and of the two servers' own limits the wider, for the same reason.
    """
    rates = [float(requirement.design_rate), *([head_rate.value] if head_rate is not None else [])]
    return max(critical_concurrency(requirement, side.settings, rate) for side in (base, head) for rate in rates)


@dataclass(frozen=True, slots=True)
class _Block:
    """One block in bins, shape (n,): tokens generated and prompt tokens prefilled, a second."""

    tokens: Floats
    prompts: Floats
    fine: bool
    """Bins are long enough for their edges not to matter."""

    def work(self, decode_s: float, prefill_s: float) -> float:
        """Engine seconds a second, at so many for a generated and a prompt token; a stop of the engine left out."""
        done = self.tokens * decode_s + self.prompts * prefill_s
        return float(trim_mean(done, TRIMMED) if self.fine else done.mean())


class _Alternation:
    """The blocks so far."""

    def __init__(self, base: MeasuringRun, head: MeasuringRun, concurrency: int) -> None:
        self.concurrency = concurrency
        self.head_rate: Interval | None = None
        self._sessions = {"base": base, "head": head}
        self._windows: dict[str, list[Window]] = {"base": [], "head": []}
        self._blocks: dict[str, list[_Block]] = {"base": [], "head": []}
        self._lead_s = LEAD_S

    def warm_up(self) -> None:
        """Load on both before anything counts, and a hold at fewer in flight, which gives the curve its slope."""
        low = max(1, round(c.LOW_SHARE * self.concurrency))
        for name, session in self._sessions.items():
            window = session.hold(WindowId(Phase.WARM_UP, server=name), low, c.LOW_HOLD_S, discard_s=c.WARM_UP_S)
            self._windows[name].append(window)
            self._lead_s = max(self._lead_s, min(MOST_LEAD_S, LEAD_MARGIN * _prefill_s(session, window) / c.LOW_SHARE))
            self.empty(name)

    def pair(self) -> None:
        """One block of each, in the order that is next."""
        number = len(self._blocks["base"]) + 1
        for name in ("base", "head") if number % 2 else ("head", "base"):
            session = self._sessions[name]
            which = WindowId(Phase.ALTERNATION, number, server=name)
            window = session.hold(which, self.concurrency, BLOCK_S, discard_s=self._lead_s)
            block = _block(session, window)
            if not block.tokens.any():
                text = f"the server generated no token with {self.concurrency} requests in flight"
                session.problems.append(Problem(ProblemSource.SERVER, ProblemKind.NO_TOKENS, text))
                return
            self._windows[name].append(window)
            self._blocks[name].append(block)
            self.empty(name)

    def pairs(self) -> list[Pair]:
        """Every pair with both its blocks, in the order measured; an even number, so that orders are balanced.

        What a block delivered is counted in engine seconds of the base: a window that happens to hold the prefill of
        more prompts generates fewer tokens, and is no slower for that.
        """
        decode_s, prefill_s = 1.0, 0.0
        with suppress(SpeedError):
            speed = fitted(self._sessions["base"].journal, self._windows["base"])
            running = max(1.0, speed.most)
            decode_s, prefill_s = float(speed.at(np.array([running]))[0]) / running, speed.prefill_s
        delivered = {
            name: [math.log(block.work(decode_s, prefill_s)) for block in blocks]
            for name, blocks in self._blocks.items()
        }
        pairs = [
            Pair(base, head, base_first=number % 2 == 0)
            for number, (base, head) in enumerate(zip(delivered["base"], delivered["head"], strict=False))
        ]
        return pairs[: len(pairs) // 2 * 2]

    def elasticity(self) -> float:
        """Relative loss of rate for a relative loss of pace: the mean of what both servers' curves say."""
        found = []
        for name, session in self._sessions.items():
            requirement = session.requirement
            traffic, guess = traffic_for(requirement.workload), float(requirement.design_rate)
            try:
                known = estimate(
                    session.journal, self._windows[name], traffic, requirement, session.settings, guess, extremes=False
                )
            except SpeedError:
                continue
            found.append(min(MOST_ELASTICITY, 1.0 + 1.0 / known.slope) if known.slope > 0 else 1.0)
            if name == "head":
                self.head_rate = known.rate
        return sum(found) / len(found) if found else 1.0

    def equal_rate(self, rates: Sequence[float]) -> EqualRate | None:
        """Both in turn under the same arrivals, at a rate below all of `rates`.

        None without any, where so few requests would tell nothing, and where time is short.
        """
        least_s, most_s = EQUAL_RATE_S
        rate = EQUAL_RATE_SHARE * min(rates, default=0.0)
        if rate * most_s < EQUAL_RATE_LEAST_REQUESTS:
            return None
        counted_s = min(most_s, max(least_s, EQUAL_RATE_REQUESTS / rate))
        # Until the requests of the first moments are gone, fewer than usual are in flight.
        lead_s = min(EQUAL_RATE_MOST_LEAD_S, max(LEAD_S, LEAD_MARGIN * self._residence_s()))
        needed_s = 2 * (lead_s + counted_s + c.SETTLE_S)
        if min(session.left_s for session in self._sessions.values()) < needed_s:
            return None
        overload = int(c.OVERLOAD * self.concurrency) + c.OVERLOAD_MARGIN
        shown: dict[str, tuple[Sample, ...]] = {}
        for name, session in self._sessions.items():
            windows = []
            for number in range(1, EQUAL_RATE_PHASES + 1):
                discard_s = lead_s if number == 1 else 0.0
                which, phase_s = WindowId(Phase.EQUAL_RATE, number), counted_s / EQUAL_RATE_PHASES
                windows.append(session.open_loop(which, rate, phase_s, overload=overload, discard_s=discard_s))
            self.empty(name)
            if problems := self.problems():
                return EqualRate(problem=problems[0].text)
            if any(window.span.stopped for window in windows):
                return EqualRate(problem=f"{name}: more than {overload} requests piled up at {rate:.3g} req/s")
            shown[name] = tuple(sample for window in windows for sample in window.samples)
        return EqualRate(shown["base"], shown["head"])

    def _residence_s(self) -> float:
        """How long a request stays in the slower server's blocks, by Little's law."""
        mean_output = self._sessions["base"].requirement.workload.output_tokens.mean
        slowest = min(block.tokens.mean() for blocks in self._blocks.values() for block in blocks)
        return float(self.concurrency * mean_output / slowest)

    def samples(self, name: str) -> list[Sample]:
        """Every window of a server."""
        return self._sessions[name].samples

    def empty(self, name: str) -> None:
        """Nothing of this server's in flight while the other one is measured."""
        session = self._sessions[name]
        session.runner.settle(c.SETTLE_S, cancel=True)
        session.journal = session.runner.journal()

    def problems(self) -> tuple[Problem, ...]:
        """Why either server's blocks cannot be trusted."""
        found = []
        for name, session in self._sessions.items():
            found += [msgspec.structs.replace(each, text=f"{name}: {each.text}") for each in session.problems]
            failed, ended = session.errors()
            if failed > max(1.0, float(session.requirement.slo.max_error_rate) * ended):
                text = f"{name}: {failed} of {ended} requests failed"
                found.append(Problem(ProblemSource.SERVER, ProblemKind.FAILED_REQUESTS, text))
        return tuple(found)


def _block(session: MeasuringRun, window: Window) -> _Block:
    seconds = window.end_s - window.start_s
    bins = bins_of(session.journal, window.start_s, window.end_s, seconds / BINS)
    fine = seconds / BINS >= LEAST_STEPS * typical_step_s(session.journal, [window])
    return _Block(bins.tokens / bins.width_s, bins.prompt_tokens / bins.width_s, fine)


def _prefill_s(session: MeasuringRun, window: Window) -> float:
    """How long it took until all requests of a hot start had their first token."""
    journal = session.journal
    rows = slice(window.span.first_row, window.span.end_row)
    waited = (journal.first_s - journal.due_s)[rows][journal.hot[rows]]
    waited = waited[~np.isnan(waited)]
    return float(waited.max()) if waited.size else 0.0


def _sharper(one: Interval | None, other: Interval | None) -> Interval | None:
    """The one with the narrower interval: a check far above its requirement does not know the rate well."""
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
    if found.equal_rate is not None and found.equal_rate.problem:
        text += f"; latencies could not be compared: {found.equal_rate.problem}"
    return text


def _signed(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def windows_of(found: Sequence[Pair]) -> list[dict[str, float | bool]]:
    """The pairs as plain values: engine seconds of the base a second, of either server, and which block came first."""
    return [{"base": math.exp(p.base), "head": math.exp(p.head), "base_first": p.base_first} for p in found]
