"""One verdict and one rate from several starts of a server.

A single measurement cannot see by how much the next start of the same server would differ. Several can. All is on
logarithms: the pooled rate is the geometric mean of the starts' rates, the rate of the mean start.

Its error has two parts. What is the same error in every start (of the queue model, of an extrapolation) does not
average out. What differs from start to start does. The scatter of the starts shows the second part; for so few starts
it is laid over what is expected beforehand, a scaled inverse chi-squared prior, and the quantile is Student's t.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Final

import msgspec

from pytest_gpucap.decisions.regression import START_SD, mean_of, own_errors
from pytest_gpucap.decisions.students_t import t_quantile
from pytest_gpucap.decisions.verdict import rps, separated, verdict_of
from pytest_gpucap.requirement import MOST_STARTS
from pytest_gpucap.results.failures import FailedRequests, Failure
from pytest_gpucap.results.measured import Interval, MeasuredStart, Measurement, MoreTime, Outcome, Verdict
from pytest_gpucap.results.windows import Phase

SHARED: Final = 0.5
"""Share of the variance of a start's own error that all starts have in common. On the simulated servers the scatter of
repeated checks was 60 to 80% of what their intervals say (0.27 times where throughput has a peak), so half of the
variance is no more than what is left."""
PRIOR_FREEDOM: Final = 1.0
"""Degrees of freedom that the expected spread counts for: as much as two starts would show. With twice as many, the
interval of two starts that differ by 3% covered 85%, instead of 88%; with half as many, two starts that differ by
`START_SD` decided less."""
NOT_FAR: Final = 0.95
"""Confidence of a decision, one-sided. There is one look at the evidence, after the last start."""


@dataclass(frozen=True, slots=True)
class PooledRate:
    """The rate of the mean start.

    Attributes:
        rate: with its 95% interval, in which the spread of the starts is contained.
        down, up: standard errors of ln(rate).
        freedom: degrees of freedom behind them.
        starts: how many there are.
        spread: standard deviation of ln(rate) from start to start as seen, the starts' own errors included; None for
            one start.
    """

    rate: Interval
    down: float
    up: float
    freedom: tuple[float, float]
    starts: int
    spread: float | None

    def bounds(self, confidence: float) -> tuple[float, float]:
        """The rates that a one-sided interval of this confidence reaches down and up to."""
        down, up = (
            t_quantile(confidence, freedom) * error
            for error, freedom in zip((self.down, self.up), self.freedom, strict=True)
        )
        return self.rate.value * math.exp(-down), self.rate.value * math.exp(up)


def pooled(rates: Sequence[Interval], expected: int | None = None) -> PooledRate:
    """The rate of the mean start, from one rate for each start.

    Args:
        rates: of the starts.
        expected: the number of starts that the error is to be of, if the scatter stays as it is.
    """
    count = len(rates)
    mean = mean_of(rates).rate
    down, up = (error * math.sqrt(count) for error in own_errors(mean))  # of one start
    spread = stdev([math.log(rate.value) for rate in rates]) if count > 1 else None
    least = min(down, up)
    prior = START_SD**2 + ((1 - SHARED) * least**2 if math.isfinite(least) else 0.0)
    seen = count - 1
    between = (PRIOR_FREEDOM * prior + seen * (spread or 0.0) ** 2) / (PRIOR_FREEDOM + seen)
    starts = expected or count
    errors, freedoms = [], []
    for own in (down, up):
        fixed = own**2 if not math.isfinite(own) else SHARED * own**2 + (1 - SHARED) * (own**2 - least**2) / starts
        moving = between / starts
        errors.append(math.sqrt(fixed + moving))
        # Welch and Satterthwaite: the shared part is taken as known.
        freedoms.append((PRIOR_FREEDOM + starts - 1) * ((fixed + moving) / moving) ** 2)
    found = PooledRate(mean, errors[0], errors[1], (freedoms[0], freedoms[1]), starts, spread)
    low, high = found.bounds(0.975)
    return replace(found, rate=Interval(mean.value, low, high))


def decided(found: PooledRate, design_rps: float) -> Outcome:
    """PASS if the rate lies above the design rate, FAIL if below, at 95% on one side; else INCONCLUSIVE."""
    least, greatest = found.bounds(NOT_FAR)
    return separated(least, greatest, design_rps, 0.0, 0.0)


def pooled_measurement(starts: Sequence[Measurement], planned: int | None = None) -> Measurement:
    """What all starts together sustain. Without a rate of every start there is none.

    Args:
        starts: the measurements, in their order.
        planned: starts that there are to be; None: these.
    """
    detail = _detailed(starts)
    rates = [each.sustainable_rate for each in starts if each.sustainable_rate is not None]
    problems = tuple(
        msgspec.structs.replace(problem, text=f"{_place(number, planned or len(starts))}: {problem.text}")
        for number, each in enumerate(starts, 1)
        for problem in each.problems
    )
    whole = len(rates) == len(starts) and not problems
    found = pooled(rates) if whole else None
    return replace(
        starts[detail],
        sustainable_rate=None if found is None else found.rate,
        binding=_most_common([each.binding for each in starts]) if whole else starts[detail].binding,
        spent_s=_summed([each.spent_s for each in starts]),
        problems=problems,
        failed_requests=_failed(starts),
        seed=starts[0].seed,
        at_least_rps=_at_least(starts) if not problems else None,
        reason=_lacking(starts, planned or len(starts)),
        starts=tuple(
            MeasuredStart(
                seed=each.seed,
                sustainable_rate=each.sustainable_rate,
                at_least_rps=each.at_least_rps,
                reason=each.reason,
                spent_s=sum(each.spent_s.values()),
                detailed=number == detail,
            )
            for number, each in enumerate(starts)
        ),
        start_spread=None if found is None or _extrapolates(starts) else found.spread,
    )


def pooled_verdict(verdicts: Sequence[Verdict], planned: int, most_violations: float) -> Verdict:
    """One verdict from the checks of several starts.

    The rates decide: the verdicts of single starts do not see that starts differ. Where a start has no rate, or was
    judged without the queue model, only starts that all say the same decide.

    Args:
        verdicts: of the starts that were measured, in their order.
        planned: starts that there are to be; fewer decide nothing.
        most_violations: share of the requests at the design rate that may break a limit in a PASS, as in a check.
    """
    measurement = pooled_measurement([verdict.measurement for verdict in verdicts], planned)
    outcomes = [verdict.outcome for verdict in verdicts]
    starts = [
        msgspec.structs.replace(start, outcome=verdict.outcome, reason=verdict.reason)
        for start, verdict in zip(measurement.starts, verdicts, strict=True)
    ]
    measurement = replace(measurement, starts=tuple(starts))
    design = verdicts[0].design_rate_rps
    if Outcome.INVALID in outcomes:
        broken = outcomes.index(Outcome.INVALID)
        text = f"{_place(broken + 1, planned)}: {verdicts[broken].reason}"
        return verdict_of(Outcome.INVALID, measurement, measurement.problems[0].text if measurement.problems else text)
    if len(verdicts) < planned:
        outcome, why = Outcome.INCONCLUSIVE, f"{len(verdicts)} of {planned} starts were measured"
    elif measurement.sustainable_rate is None or any(_judged_directly(verdict.measurement) for verdict in verdicts):
        same = len(set(outcomes)) == 1
        outcome = outcomes[0] if same else Outcome.INCONCLUSIVE
        first = verdicts[0].reason
        why = (
            f"all {planned} starts say so; the first: {first}"
            if same
            else f"a start was judged without a rate, and {_told(outcomes)}"
        )
    else:
        outcome, why = _by_rates(verdicts, design, most_violations), _told(outcomes)
    if outcome is not Outcome.PASS or set(outcomes) != {Outcome.PASS}:
        # The rate that all starts showed is a bound for a PASS of all of them, and for nothing else.
        measurement = replace(measurement, at_least_rps=None)
    if measurement.sustainable_rate is None:
        measurement = replace(measurement, reason=why)
    verdict = verdict_of(outcome, measurement, _reason(measurement, design, why))
    if outcome is Outcome.INCONCLUSIVE and len(verdicts) == planned:
        return replace(verdict, more_time=_more_starts(verdicts, measurement, design))
    return verdict


def _by_rates(verdicts: Sequence[Verdict], design_rps: float, most_violations: float) -> Outcome:
    rates = [each for verdict in verdicts if (each := verdict.measurement.sustainable_rate) is not None]
    outcome = decided(pooled(rates), design_rps)
    if outcome is Outcome.PASS and fmean(_violations(verdict) for verdict in verdicts) > most_violations:
        return Outcome.INCONCLUSIVE  # nothing passes on the queue model alone
    return outcome


def _violations(verdict: Verdict) -> float:
    """Share of the requests of the last open loop at the design rate that broke the tightest limit."""
    loops = [each for each in verdict.measurement.samples if each.window.phase is Phase.DESIGN_RATE and each.attainment]
    last = [each for each in loops if each.window.whole == loops[-1].window.whole]
    shares = []
    for name in last[-1].attainment if last else ():
        known = [
            (each.requests, 1 - kept) for each in last if math.isfinite(kept := each.attainment.get(name, math.nan))
        ]
        if total := sum(count for count, _ in known):
            shares.append(sum(count * share for count, share in known) / total)
    return max(shares, default=0.0)


def _judged_directly(measurement: Measurement) -> bool:
    return any(sample.window.phase is Phase.DIRECT for sample in measurement.samples)


def _reason(measurement: Measurement, design_rps: float, why: str) -> str:
    """One sentence on the verdict."""
    rate, count = measurement.sustainable_rate, len(measurement.starts)
    if measurement.at_least_rps is not None:
        least = measurement.at_least_rps
        return (
            f"one replica sustains at least {rps(least)} req/s in every one of {count} starts, "
            f"{least / design_rps:.3g} times the design rate of {rps(design_rps)} req/s; more was not measured"
        )
    if rate is None:
        return why
    sign = "above" if rate.value >= design_rps else "below"
    bound = f", bound by {measurement.binding}" if measurement.binding else ""
    over = "over 1 start" if count == 1 else f"over {count} starts"
    return (
        f"one replica sustains {rps(rate.value)} req/s {over} (95% interval {rps(rate.low)} to {rps(rate.high)}"
        f"{bound}), {sign} the design rate of {rps(design_rps)} req/s; {why}"
    )


def _more_starts(verdicts: Sequence[Verdict], measurement: Measurement, design_rps: float) -> MoreTime:
    """How many further starts would decide if the rates stay as they are."""
    count, rate = len(verdicts), measurement.sustainable_rate
    if rate is None:
        return MoreTime(
            None, "no rate was found in every start, so more starts would not decide: allow a longer max time"
        )
    rates = [each for verdict in verdicts if (each := verdict.measurement.sustainable_rate) is not None]
    near = f"{rps(rate.value)} req/s lies within {abs(rate.value / design_rps - 1):.1%} of {rps(design_rps)} req/s"
    for more in range(1, MOST_STARTS - count + 1):
        if decided(pooled(rates, count + more), design_rps) is not Outcome.INCONCLUSIVE:
            seconds = more * sum(measurement.spent_s.values()) / count
            return MoreTime(
                seconds,
                f"about {more} more {'start' if more == 1 else 'starts'} would separate: {near}; give "
                f"--gpucap-repeat={count + more}",
            )
    return MoreTime(
        None,
        f"no more starts would decide: {near}, nearer than {MOST_STARTS} starts could tell; change the budget or the "
        "headroom, or accept INCONCLUSIVE",
    )


def _told(outcomes: Sequence[Outcome]) -> str:
    """``each start alone says PASS``, ``of the starts alone, 2 say PASS and 1 INCONCLUSIVE``."""
    counted = [(outcome, outcomes.count(outcome)) for outcome in dict.fromkeys(outcomes)]
    if len(counted) == 1:
        return f"each start alone says {counted[0][0]}"
    return f"of the starts alone, {' and '.join(f'{count} {outcome}' for outcome, count in counted)}"


def _detailed(starts: Sequence[Measurement]) -> int:
    """The start whose windows stand for all: the first without a rate that can be trusted, or the middle one."""
    for number, each in enumerate(starts):
        if each.problems or each.sustainable_rate is None:
            return number
    values = [(each.sustainable_rate.value, number) for number, each in enumerate(starts) if each.sustainable_rate]
    return sorted(values)[(len(values) - 1) // 2][1]


def _lacking(starts: Sequence[Measurement], planned: int) -> str:
    """Why the starts together are no whole result; empty where they are one."""
    for number, each in enumerate(starts, 1):
        if each.sustainable_rate is None:
            return f"{_place(number, planned)}: {each.reason or 'it has no sustainable rate'}"
    return f"{len(starts)} of {planned} starts were measured" if len(starts) < planned else ""


def _extrapolates(starts: Sequence[Measurement]) -> bool:
    return any(each.at_least_rps is not None for each in starts)


def _at_least(starts: Sequence[Measurement]) -> float | None:
    """The rate that every start showed, where at least one of them is an extrapolation; else None."""
    if not _extrapolates(starts):
        return None
    shown = [
        each.at_least_rps if each.at_least_rps is not None else each.sustainable_rate and each.sustainable_rate.low
        for each in starts
    ]
    known = [rate for rate in shown if rate]
    return min(known) if len(known) == len(starts) else None


def _failed(starts: Sequence[Measurement]) -> FailedRequests | None:
    """The failed requests of all starts."""
    found = [each.failed_requests for each in starts if each.failed_requests is not None]
    if not found:
        return None
    kinds: dict[tuple[object, ...], Failure] = {}
    for failure in (failure for each in found for failure in each.kinds):
        key = failure.kind, failure.http_status
        before = kinds.get(key)
        kinds[key] = failure if before is None else msgspec.structs.replace(before, count=before.count + failure.count)
    most_first = sorted(kinds.values(), key=lambda failure: -failure.count)
    return FailedRequests(sum(each.failed for each in found), sum(each.ended for each in found), tuple(most_first))


def _summed(spent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Server time by phase over all starts."""
    phases = dict.fromkeys(phase for each in spent for phase in each)
    return {phase: sum(each.get(phase, 0.0) for each in spent) for phase in phases}


def _most_common(bindings: Sequence[str | None]) -> str | None:
    return Counter(filter(None, bindings)).most_common(1)[0][0] if any(bindings) else None


def _place(number: int, count: int) -> str:
    return f"start {number} of {count}"
