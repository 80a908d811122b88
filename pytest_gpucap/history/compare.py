"""A result against a baseline: is there one that may be compared, and what became of the sustainable rate?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from pytest_gpucap.decisions import regression
from pytest_gpucap.decisions.regression import ComparedRate
from pytest_gpucap.history.comparable import changed, differences
from pytest_gpucap.history.latencies import compare_latencies, side_by_side
from pytest_gpucap.history.points import NEVER_MIXED, compare_points
from pytest_gpucap.history.store import MEDIAN_RUNS, Baseline, Run
from pytest_gpucap.report.formatting import percent, shown
from pytest_gpucap.results.comparison import ComparedBaseline, Comparison, LatencyComparison, RegressionDecision
from pytest_gpucap.results.encoding import normalised
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.result import Result, ResultKind

PRECISE: Final = 2 * regression.START_SD
"""A rate whose ln has a larger standard error than this adds more noise than server starts do."""


def is_precise(result: Result) -> bool:
    """Whether a result's rate is known well enough to compare; that of a check far from its requirement is not.

    Of several starts each counts for itself: measuring again would not make starts differ less.
    """
    rates = [start.sustainable_rate for start in result.starts] or [_rate(result)]
    return all(rate is not None and max(regression.own_errors(rate)) <= PRECISE for rate in rates)


def compare_result(
    result: Result,
    baseline: Baseline,
    max_regression: float,
    again: Callable[[str], Result] | None = None,
    sharper: Result | None = None,
    *,
    fresh: bool = True,
    variants: bool = False,
    any_hits: bool = False,
) -> Comparison:
    """The comparison of a result with a baseline.

    Args:
        result: of this session.
        baseline: what it is compared with.
        max_regression: the share of the rate that may be lost.
        again: measures once more, to confirm a REGRESSED; it is told why in a few words. None: nothing is confirmed.
        sharper: another result of the same test and server, whose rate is known better.
        fresh: `again` starts the server afresh; False where the server is not ours to start.
        variants: how the model is served may differ; see `compare_variants`.
        any_hits: prefix hit rates may differ; see `comparable.differences`.
    """
    if result.imported is not None:
        return normalised(_compared_points(result, baseline, max_regression, variants=variants))
    found = _candidates(result, baseline, variants=variants, any_hits=any_hits)
    if isinstance(found, _NothingComparable):
        return normalised(
            Comparison(
                baseline=_named(baseline, found.run),
                decision=RegressionDecision.NOT_COMPARABLE,
                max_regression=max_regression,
                differs=found.differs,
                changed=() if found.alike is None else tuple(changed(found.alike, result, variants=variants)),
                reason=found.reason,
                latencies=()
                if found.alike is None
                else _latencies(found.alike, result, max_regression, variants=variants),
            )
        )
    base = found.rate()
    comparison = Comparison(
        baseline=_named(baseline, found.runs[0], median_of=len(found.runs)),
        decision=RegressionDecision.INCONCLUSIVE,
        base_rate=base.rate,
        max_regression=max_regression,
        changed=tuple(changed(found.sharpest[0], result, variants=variants)),
        reason="this run found no sustainable rate",
        latencies=_latencies(found.alike, result, max_regression, variants=variants),
    )
    measured = _sharpest([result, *([] if sharper is None else [sharper])])
    first = None if measured is None else _rate(measured)
    if measured is None or first is None:
        return normalised(comparison)
    heads = _Heads(base, (first,), max_regression, spread_known=bool(measured.starts))
    decision = heads.decision
    confirmed: bool | None = None
    if decision is RegressionDecision.REGRESSED and again is not None:
        second = _rate(again(f"{heads.loss} against {baseline.name}"))
        if second is not None:
            heads = replace(heads, rates=(first, second))
            confirmed = regression.confirmed(base, first, second, max_regression, spread_known=heads.spread_known)
            decision = RegressionDecision.REGRESSED if confirmed else heads.unconfirmed
    more_s = None
    if decision is RegressionDecision.INCONCLUSIVE:
        runs = regression.runs_to_settle(base, heads.mean, max_regression)
        more_s = None if runs is None else runs * measured.total_spent_s
    return normalised(
        msgspec.structs.replace(
            comparison,
            decision=decision,
            ratio=regression.ratio_of(base, heads.mean),
            head_rate=heads.mean.rate,
            second_rate=None if confirmed is None else heads.rates[-1],
            more_gpu_s=more_s,
            confirmed=confirmed,
            reason=heads.reason(decision, confirmed, more_s, fresh=fresh),
        )
    )


def _latencies(base: Result, head: Result, max_regression: float, *, variants: bool) -> tuple[LatencyComparison, ...]:
    """Percentiles of both at an equal load: those with a limit; of variants also the usual ones side by side."""
    limits = tuple(base.slo.percentiles)
    if not variants:
        return compare_latencies(limits, base.samples, head.samples, max_regression)
    rate = base.design_rate_rps
    return compare_latencies(
        side_by_side(limits),
        base.samples,
        head.samples,
        max_regression,
        design_rate_rps=rate if rate is not None and rate == head.design_rate_rps else None,
    )


def _compared_points(result: Result, baseline: Baseline, max_regression: float, *, variants: bool) -> Comparison:
    """The comparison of a point of another tool with the newest point of the same load that may be compared."""
    differs: tuple[str, ...] = ()
    for run in baseline.runs:
        for base in _of_test(run, result):
            differing = differences(base, result, variants=variants)
            if not differing:
                found = compare_points(base, result, _named(baseline, run), max_regression)
                return msgspec.structs.replace(found, changed=tuple(changed(base, result, variants=variants)))
            differs = differs or tuple(differing)
    newest = baseline.runs[0] if baseline.runs else None
    reason = baseline.missing or f"{baseline.name} has no point of {result.name}"
    if newest is not None and not any(each.imported is not None for run in baseline.runs for each in run.results):
        reason = f"{baseline.name} holds no imported points: {NEVER_MIXED}"
    return Comparison(
        baseline=_named(baseline, newest),
        decision=RegressionDecision.NOT_COMPARABLE,
        max_regression=max_regression,
        differs=differs,
        reason="no comparable baseline" if differs else reason,
    )


def compare_runs(head: Run, base: Baseline, max_regression: float, *, any_hits: bool = False) -> list[Result]:
    """Every test of a run with its comparison, in their order: its first result, and the rate of its sharpest."""
    tests: dict[str, list[Result]] = {}
    for result in head.results:
        if result.kind is not ResultKind.SAMPLE:  # one window concludes nothing
            tests.setdefault(result.test, []).append(result)
    return [
        _with_comparison(
            first, compare_result(first, base, max_regression, sharper=_sharpest(others), any_hits=any_hits)
        )
        for first, *others in tests.values()
    ]


def compare_variants(base: tuple[Run, str], head: tuple[Run, str], max_regression: float) -> list[Result]:
    """One test against another that serves the model differently: quantised, say, or with prefix caching.

    Server arguments, model, the way weights are held and the layout (GPUs per replica, replicas measured together) may
    differ and are listed as changed. Everything else must be equal, as between runs of one test. Layouts whose replicas
    have other numbers of GPUs are compared in requests per GPU.

    Args:
        base: a run, and the test in it to compare with, by its name or node id.
        head: a run, which may be the same, and the test in it to look at.
        max_regression: the share of the rate that may be lost.

    Returns:
        The head's first result, with its comparison.

    Raises:
        LookupError: one line, for a test that its run does not have, or a name that several tests have.
    """
    theirs, (first, *others) = _results_named(*base), _results_named(*head)
    by_gpu = len({result.requirement.gpus_per_replica for result in (*theirs, first, *others)}) > 1
    if by_gpu:
        theirs, (first, *others) = [_per_gpu(each) for each in theirs], [_per_gpu(each) for each in (first, *others)]
    ours = tuple(msgspec.structs.replace(each, test=first.test) for each in theirs)
    run = replace(base[0], content=msgspec.structs.replace(base[0].content, results=ours))
    baseline = Baseline(run.name, (run,))
    comparison = compare_result(first, baseline, max_regression, sharper=_sharpest(others), variants=True)
    if by_gpu:
        comparison = msgspec.structs.replace(comparison, reason=f"{PER_GPU}: {comparison.reason}")
    return [_with_comparison(first, comparison)]


PER_GPU: Final = "requests a second of each GPU"
"""The unit of rates where layouts are compared."""


def _per_gpu(result: Result) -> Result:
    """The result with the rates of one GPU."""
    gpus, rate, at_least = result.requirement.gpus_per_replica, result.sustainable_rate, result.at_least_rps
    if rate is not None:
        rate = Interval(rate.value / gpus, rate.low / gpus, rate.high / gpus, rate.confidence)
    return msgspec.structs.replace(
        result, sustainable_rate=rate, at_least_rps=None if at_least is None else at_least / gpus
    )


def _with_comparison(result: Result, comparison: Comparison) -> Result:
    return msgspec.structs.replace(result, comparison=comparison)


def _results_named(run: Run, name: str) -> list[Result]:
    results = [result for result in run.results if result.kind is not ResultKind.SAMPLE]
    found = [result for result in results if name in {result.test, result.name}]
    tests = sorted({result.test for result in found})
    if len(tests) > 1:
        raise LookupError(f"{run.path}: several tests have the name {name!r}; give one of {', '.join(tests)}")
    if not found:
        names = sorted({result.name for result in results})
        raise LookupError(f"{run.path} has no test {name!r}; it has {', '.join(names) or 'none'}")
    return found


# The baseline's side


@dataclass(frozen=True, slots=True)
class _Comparable:
    """Comparable results of the test.

    Attributes:
        runs: newest first; one, unless the median counts.
        sharpest: of each run, its result with the smallest error.
        alike: the newest run's result of the same kind, for its latencies.
    """

    runs: list[Run]
    sharpest: list[Result]
    alike: Result

    def rate(self) -> ComparedRate:
        """The baseline's rate."""
        rates = [rate for result in self.sharpest if (rate := _rate(result)) is not None]
        return regression.median_of(rates) if len(rates) > 1 else _compared(self.sharpest[0], rates[0])


@dataclass(frozen=True, slots=True)
class _NothingComparable:
    """No rate may be compared, and why.

    Attributes:
        run: the nearest one.
        differs: what forbids a comparison.
        alike: a result that lacks a rate alone: latencies may be compared.
    """

    run: Run | None
    reason: str
    differs: tuple[str, ...] = ()
    alike: Result | None = None


def _candidates(
    result: Result, baseline: Baseline, *, variants: bool, any_hits: bool
) -> _Comparable | _NothingComparable:
    """The newest runs with a comparable result of the test."""
    runs: list[Run] = []
    sharpest: list[Result] = []
    alike: Result | None = None
    nearest: _NothingComparable | None = None
    for run in baseline.runs:
        bases = _of_test(run, result)
        if not bases:
            continue
        differs = differences(bases[0], result, variants=variants, any_hits=any_hits)
        best = _sharpest(bases)
        if differs:
            nearest = nearest or _NothingComparable(run, "no comparable baseline", tuple(differs))
        elif best is None:
            whose = f"{bases[0].name} has" if variants else f"{run.name} found"
            reason = f"{whose} no sustainable rate{'' if variants else ' for this test'}"
            nearest = nearest or _NothingComparable(run, reason, alike=bases[0])
        else:
            runs.append(run)
            sharpest.append(best)
            alike = alike or bases[0]
            if len(runs) == (MEDIAN_RUNS if baseline.median else 1):
                break
    if alike is not None:
        return _Comparable(runs, sharpest, alike)
    if nearest is not None:
        return nearest
    newest = baseline.runs[0] if baseline.runs else None
    reason = baseline.missing or f"{baseline.name} has no result of this test"
    if any(each.imported is not None for run in baseline.runs for each in run.results):
        reason = f"{reason}; it holds points of another tool: {NEVER_MIXED}"
    return _NothingComparable(newest, reason)


def _of_test(run: Run, result: Result) -> list[Result]:
    """The results of a run that belong to a result's test, those of its kind first.

    They are found by node id. Where there is none, a name finds a test that moved to another file, if no other test has
    that name.
    """
    found = [each for each in run.results if each.test == result.test]
    if not found:
        named = [each for each in run.results if each.name == result.name]
        found = named if len({each.test for each in named}) == 1 else []
    return sorted(found, key=lambda each: each.kind is not result.kind)


def _sharpest(results: Sequence[Result]) -> Result | None:
    """The result with the smallest error; all of one test measured the same thing."""
    rated = [(max(regression.own_errors(rate)), result) for result in results if (rate := _rate(result)) is not None]
    return min(rated, key=lambda pair: pair[0])[1] if rated else None


def _rate(result: Result) -> Interval | None:
    """The sustainable rate, if one was found; an open low end is 0."""
    rate = result.sustainable_rate
    if rate is None or not rate.value > 0:
        return None
    return msgspec.structs.replace(rate, low=max(rate.low, 0.0))


def _compared(result: Result, rate: Interval) -> ComparedRate:
    """One result's rate. That of several starts contains their spread already."""
    return ComparedRate(rate, math.inf) if result.starts else ComparedRate(rate)


def _named(baseline: Baseline, run: Run | None, median_of: int = 1) -> ComparedBaseline:
    if run is None:
        return ComparedBaseline(baseline.name)
    return ComparedBaseline(
        name=run.name if median_of == 1 else f"the median of {median_of} runs in {baseline.name}",
        path=_portable(run.path),
        started=run.started.isoformat(timespec="seconds"),
        plugin_version=run.content.plugin_version,
    )


def _portable(path: Path) -> str:
    """The path relative to this folder. Of a path elsewhere only the name, since results are shared."""
    short = shown(path)
    return path.name if Path(short).is_absolute() else short


# This run's side


@dataclass(frozen=True, slots=True)
class _Heads:
    """One measurement of this run, or that and the second one that was to confirm a REGRESSED, against the baseline."""

    base: ComparedRate
    rates: tuple[Interval, ...]
    max_regression: float
    spread_known: bool = False
    """Each is of several starts, whose spread its interval contains."""

    @property
    def mean(self) -> ComparedRate:
        """Their mean; this run repeats as the runs of the baseline do."""
        return regression.head_of(self.rates, self.base, spread_known=self.spread_known)

    @property
    def decision(self) -> RegressionDecision:
        """The decision on their mean."""
        return regression.decide(regression.ratio_of(self.base, self.mean), self.max_regression)

    @property
    def unconfirmed(self) -> RegressionDecision:
        """The decision where the second did not confirm the first: never REGRESSED."""
        together = self.decision
        return RegressionDecision.INCONCLUSIVE if together is RegressionDecision.REGRESSED else together

    @property
    def loss(self) -> str:
        """``-12.0%``."""
        return percent(self.mean.rate.value / self.base.rate.value - 1, signed=True)

    def reason(self, decision: RegressionDecision, confirmed: bool | None, more_s: float | None, *, fresh: bool) -> str:
        """One sentence on the decision."""
        allowed = percent(self.max_regression)
        second = f"a second measurement {'from a fresh start' if fresh else 'of the same server'}"
        match decision:
            case RegressionDecision.REGRESSED if confirmed:
                return f"more than {allowed} lost; {second} confirms it"
            case RegressionDecision.REGRESSED:
                return f"more than {allowed} lost, in one measurement"
            case RegressionDecision.IMPROVED:
                return "faster, by more than chance"
            case RegressionDecision.SAME:
                return f"a loss of more than {allowed} is ruled out"
        text = f"a loss of more than {allowed} is neither shown nor ruled out"
        if confirmed is False:
            losses = ", then ".join(replace(self, rates=(rate,)).loss for rate in self.rates)
            text = f"{second} does not confirm the loss ({losses})"
        if more_s is None:
            return f"{text}; the baseline must be measured more precisely, or the change is too near the limit"
        return f"{text}; about {more_s:.0f} more GPU seconds would settle it"
