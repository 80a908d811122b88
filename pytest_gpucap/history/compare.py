"""A result against a baseline: is there one that may be compared, and what became of the sustainable rate?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.decisions import regression
from pytest_gpucap.decisions.regression import ComparedRate
from pytest_gpucap.history import latencies
from pytest_gpucap.history.baseline import MEDIAN_RUNS, Baseline
from pytest_gpucap.history.comparable import changed, differences
from pytest_gpucap.history.store import Run
from pytest_gpucap.report.formatting import percent, shown
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.record import Record, plain

NOT_COMPARABLE: Final = "NOT COMPARABLE"
MAX_REGRESSION: Final = 0.05
"""A loss below it is lost in the noise of two single runs; histories find smaller ones."""
PRECISE: Final = 2 * regression.START_SD
"""Standard error of ln(rate) beyond which a measurement adds more noise than what no measurement removes."""


def of_test(run: Run, record: Record) -> list[Record]:
    """The results of a run that belong to a result's test, those of its kind first.

    The node id finds them, or else the name: that finds tests that moved to another file, if it is theirs alone.
    """
    found = [each for each in run.results if each["test"] == record["test"]]
    if not found:
        named = [each for each in run.results if each["name"] == record["name"]]
        found = named if len({each["test"] for each in named}) == 1 else []
    return sorted(found, key=lambda each: each["kind"] != record["kind"])


def precise(record: Record) -> bool:
    """Whether a result's rate is known well enough to compare: a check far from its requirement only knows that."""
    rate = _rate_or_none(record)
    return rate is not None and max(regression.own_errors(rate)) <= PRECISE


def _sharpest(records: Sequence[Record]) -> Record | None:
    """The result with the smallest error; all of one test measured the same thing."""
    rated = [(max(regression.own_errors(rate)), each) for each in records if (rate := _rate_or_none(each)) is not None]
    return min(rated, key=lambda pair: pair[0])[1] if rated else None


def compare(
    record: Record,
    baseline: Baseline,
    max_regression: float,
    again: Callable[[str], Record] | None = None,
    sharper: Record | None = None,
    *,
    fresh: bool = True,
    variants: bool = False,
) -> dict[str, Any]:
    """The ``comparison`` of a result.

    Args:
        record: of this session.
        baseline: what it is compared with.
        max_regression: the share of the rate that may be lost.
        again: measures once more, to confirm a REGRESSED; told why in a few words. None: there is no need.
        sharper: another result of the same test and server, whose rate is known better.
        fresh: `again` starts the server afresh; not so where it is not ours.
        variants: how the model is served may differ; see `of_variants`.
    """
    found = _candidates(record, baseline, variants=variants)
    if isinstance(found, _Nothing):
        return _comparison(
            baseline, found.run, NOT_COMPARABLE, max_regression, differs=found.differs, reason=found.reason
        )
    runs, records, alike = found
    rates = [_rate(each) for each in records]
    base = regression.median_of(rates) if len(rates) > 1 else ComparedRate(rates[0])
    measured = _sharpest([record, *([] if sharper is None else [sharper])]) or record
    head_rate = _rate_or_none(measured)
    about = {
        "base_rate": plain(base.rate),
        "changed": changed(records[0], record, variants=variants),
        "latencies": latencies.compared(alike, record, max_regression),
    }
    label = f"the median of {len(runs)} runs in {baseline.name}" if len(runs) > 1 else None
    if head_rate is None:
        reason = "this run found no sustainable rate"
        return _comparison(
            baseline, runs[0], RegressionDecision.INCONCLUSIVE, max_regression, reason=reason, label=label, **about
        )
    heads = [head_rate]
    decision = _decided(base, heads, max_regression)
    confirmed: bool | None = None
    if decision is RegressionDecision.REGRESSED and again is not None:
        second_rate = _rate_or_none(again(f"{_loss(base, heads)} against {baseline.name}"))
        if second_rate is not None:
            heads.append(second_rate)
            confirmed = regression.confirmed(base, head_rate, second_rate, max_regression)
            decision = RegressionDecision.REGRESSED if confirmed else _unconfirmed(base, heads, max_regression)
            about["second_rate"] = plain(second_rate)
    head = _head(base, heads)
    more = None
    if decision is RegressionDecision.INCONCLUSIVE:
        runs_more = regression.runs_to_settle(base, head, max_regression)
        more = None if runs_more is None else runs_more * sum(filter(None, measured["spent_s"].values()))
    return _comparison(
        baseline,
        runs[0],
        decision,
        max_regression,
        ratio=plain(regression.ratio_of(base, head)),
        head_rate=plain(head.rate),
        more_gpu_s=plain(more),
        confirmed=confirmed,
        reason=_reason(decision, base, heads, max_regression, confirmed, more, fresh=fresh),
        label=label,
        **about,
    )


@dataclass(frozen=True, slots=True)
class _Nothing:
    """No comparable result, and why."""

    run: Run | None
    reason: str
    differs: list[str]


def _candidates(
    record: Record, baseline: Baseline, *, variants: bool
) -> tuple[list[Run], list[Record], Record] | _Nothing:
    """The newest runs with a comparable result of the test (one, unless the median counts).

    With the sharpest result of each run, and the newest run's result of the same kind, for its latencies.
    """
    runs: list[Run] = []
    records: list[Record] = []
    alike: Record | None = None
    nearest: _Nothing | None = None
    for run in baseline.runs:
        bases = of_test(run, record)
        if not bases:
            continue
        differs = differences(bases[0], record, variants=variants)
        sharpest = _sharpest(bases)
        if differs:
            nearest = nearest or _Nothing(run, "no comparable baseline", differs)
        elif sharpest is None:
            nearest = nearest or _Nothing(run, f"{run.name} found no sustainable rate for this test", [])
        else:
            runs.append(run)
            records.append(sharpest)
            alike = alike or bases[0]
            if len(runs) == (MEDIAN_RUNS if baseline.median else 1):
                break
    if alike is not None:
        return runs, records, alike
    if nearest is not None:
        return nearest
    newest = baseline.runs[0] if baseline.runs else None
    return _Nothing(newest, baseline.missing or f"{baseline.name} has no result of this test", [])


def _rate_or_none(record: Record) -> Interval | None:
    found = record["sustainable_rate"]
    if found is None or not found["value"]:
        return None
    low, high = found["low"], found["high"]
    # An open end is written as null.
    return Interval(found["value"], low or 0.0, math.inf if high is None else high, found["confidence"])


def _rate(record: Record) -> Interval:
    rate = _rate_or_none(record)
    assert rate is not None  # noqa: S101 - candidates have one
    return rate


def _head(base: ComparedRate, heads: Sequence[Interval]) -> ComparedRate:
    # As the runs of the baseline repeat, so does the head.
    mean = regression.mean_of(heads)
    return ComparedRate(mean.rate, mean.starts, base.repeat)


def _decided(base: ComparedRate, heads: Sequence[Interval], max_regression: float) -> RegressionDecision:
    return regression.decide(regression.ratio_of(base, _head(base, heads)), max_regression)


def _unconfirmed(base: ComparedRate, heads: Sequence[Interval], max_regression: float) -> RegressionDecision:
    """What both measurements together say where the second did not confirm the first: never REGRESSED."""
    together = _decided(base, heads, max_regression)
    return RegressionDecision.INCONCLUSIVE if together is RegressionDecision.REGRESSED else together


def _loss(base: ComparedRate, heads: Sequence[Interval]) -> str:
    return percent(_head(base, heads).rate.value / base.rate.value - 1, signed=True)


def _reason(
    decision: RegressionDecision,
    base: ComparedRate,
    heads: Sequence[Interval],
    max_regression: float,
    confirmed: bool | None,
    more_s: float | None,
    *,
    fresh: bool,
) -> str:
    allowed = percent(max_regression)
    second = f"a second measurement {'from a fresh start' if fresh else 'of the same server'}"
    match decision:
        case RegressionDecision.REGRESSED if confirmed:
            return f"more than {allowed} lost; {second} bears it out"
        case RegressionDecision.REGRESSED:
            return f"more than {allowed} lost, in one measurement"
        case RegressionDecision.IMPROVED:
            return "faster, by more than chance"
        case RegressionDecision.SAME:
            return f"a loss of more than {allowed} is ruled out"
    text = f"a loss of more than {allowed} is neither shown nor ruled out"
    if confirmed is False:
        losses = f"{_loss(base, heads[:1])}, then {_loss(base, heads[1:])}"
        text = f"{second} does not bear the loss out ({losses})"
    if more_s is None:
        return f"{text}; the baseline would have to be measured better, or the change is too near the limit"
    return f"{text}; about {more_s:.0f} more GPU seconds would settle it"


def _comparison(
    baseline: Baseline,
    run: Run | None,
    decision: str,
    max_regression: float,
    *,
    reason: str,
    label: str | None = None,
    **found: Any,
) -> dict[str, Any]:
    return {
        "baseline": {
            "name": label or (run.name if run is not None else baseline.name),
            "path": None if run is None else _portable(run.path),
            "started": None if run is None else run.started.isoformat(timespec="seconds"),
            "plugin_version": None if run is None else run.plugin_version,
        },
        "decision": str(decision),
        "ratio": None,
        "base_rate": None,
        "head_rate": None,
        "second_rate": None,
        "max_regression": plain(max_regression),
        "differs": [],
        "changed": [],
        "more_gpu_s": None,
        "confirmed": None,
        "latencies": [],
        **found,
        "reason": reason,
    }


def _portable(path: Path) -> str:
    """The path as it can be said from here; of one elsewhere only its name, since results are shared."""
    short = shown(path)
    return path.name if Path(short).is_absolute() else short


def against(head: Run, base: Baseline, max_regression: float) -> list[tuple[Record, dict[str, Any]]]:
    """Every test of a run with its comparison, in their order: its first result, and the rate of its sharpest."""
    tests: dict[str, list[Record]] = {}
    for record in head.results:
        if record["kind"] != "sample":  # one window concludes nothing
            tests.setdefault(record["test"], []).append(record)
    return [
        (first, compare(first, base, max_regression, sharper=_sharpest(others))) for first, *others in tests.values()
    ]


def of_variants(
    base: tuple[Run, str], head: tuple[Run, str], max_regression: float
) -> list[tuple[Record, dict[str, Any]]]:
    """One test with another that serves the model differently: quantised, say, or with prefix caching.

    Server arguments, model and the way weights are held may differ and are listed as changed. Everything else must be
    equal, as between runs of one test.

    Args:
        base: a run, and the test in it to compare with, by its name or node id.
        head: a run, which may be the same, and the test in it to look at.
        max_regression: the share of the rate that may be lost.

    Raises:
        LookupError: one line, for a test that its run does not have, or that several have the name of.
    """
    first, *others = _named(*head)
    ours = tuple({**each, "test": first["test"]} for each in _named(*base))
    run = replace(base[0], results=ours)
    compared = compare(first, Baseline(run.name, (run,)), max_regression, sharper=_sharpest(others), variants=True)
    return [(first, compared)]


def _named(run: Run, name: str) -> list[Record]:
    found = [each for each in run.results if name in {each["test"], each["name"]} and each["kind"] != "sample"]
    tests = sorted({each["test"] for each in found})
    if len(tests) > 1:
        raise LookupError(f"{run.path}: several tests have the name {name!r}; give one of {', '.join(tests)}")
    if not found:
        names = sorted({str(each["name"]) for each in run.results if each["kind"] != "sample"})
        raise LookupError(f"{run.path} has no test {name!r}; it has {', '.join(names) or 'none'}")
    return found
