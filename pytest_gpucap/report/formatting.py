"""The sentences that every report shares: the arithmetic of a verdict, a duration, a rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final

from pytest_gpucap.requirement import Metric, RequirementError, goodput_percent, limited_percentile
from pytest_gpucap.results.measured import Interval, Outcome, SecondaryResult
from pytest_gpucap.results.points import point_rate
from pytest_gpucap.results.result import Result
from pytest_gpucap.sizing import gpus_required
from pytest_gpucap.user_files import shown_path

Row = tuple[str, str]
"""A name and what stands beside it. A name is empty where a row goes on with the one before it."""
NOT_MEASURED = "no GPU and no server was measured"
"""What every report says of simulated results."""
_MINUTES_FROM_S = 600


def known(value: float | None) -> float | None:
    """The figure; None if it is unknown, which a result holds as NaN or as an infinite end of an interval."""
    return value if value is not None and math.isfinite(value) else None


def rate(rps: float | None) -> str:
    """A rate with three significant figures: ``52.1 req/s``."""
    found = known(rps)
    return "?" if found is None else f"{significant(found)} req/s"


def interval(found: Interval | None) -> str:
    """``52.1 (50.9-53.4)``; empty where there is no estimate."""
    if found is None or known(found.value) is None:
        return ""
    low, high = ("?" if known(end) is None else significant(end) for end in (found.low, found.high))
    return f"{significant(found.value)} ({low}-{high})"


def percent_interval(found: Interval, *, signed: bool = True) -> str:
    """``-12.1% (-14.0% to -10.0%)``; signed for a share that is a gain or a loss."""
    value, low, high = (percent(end, signed=signed) for end in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def significant(value: float, figures: int = 3) -> str:
    """A number with `figures` significant figures and no exponent: 52.1, 0.88, 1230."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{figures}g}")
    if abs(rounded) >= 10 ** (figures - 1):
        return f"{rounded:.0f}"
    return f"{rounded:.{figures + 3}f}".rstrip("0").rstrip(".")


def seconds(value: float | None) -> str:
    """A duration as people say it: ``412 ms``, ``3.21 s``, ``95 s``, ``12 min``."""
    if value is None or not math.isfinite(value):
        return "?"
    if value < 1:
        return f"{significant(value * 1000)} ms"
    if value < _MINUTES_FROM_S:
        return f"{significant(value)} s"
    return f"{value / 60:.0f} min"


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share as per cent: ``+4.2%``."""
    share = known(value)
    return "?" if share is None else f"{share * 100:{'+' if signed else ''}.1f}%"


def limit_name(keyword: str) -> str:
    """``ttft_p95`` as ``p95 TTFT``, ``goodput_95`` as ``95% goodput``; another name, such as ``backlog``, as it is."""
    if (asked := goodput_percent(keyword)) is not None:
        return f"{float(asked):.12g}% goodput"
    limited = limited_percentile(keyword)
    return keyword if limited is None else percentile_name(limited.metric, float(limited.percent))


def limit_texts(limits: Mapping[str, float], goodput: float | None, thresholds: Mapping[Metric, float]) -> list[str]:
    """``p95 E2E 20 s``, ``95% goodput (TTFT 500 ms, TPOT 50 ms)``: each limit with what it allows."""
    found = [f"{limit_name(name)} {seconds(limit)}" for name, limit in limits.items()]
    if goodput is not None:
        found.append(f"{share_name(goodput)} goodput ({thresholds_text(thresholds)})")
    return found


def share_name(share: float) -> str:
    """A share as it was declared: ``95%``, ``99.9%``."""
    return f"{share * 100:.12g}%"


def thresholds_text(thresholds: Mapping[Metric, float]) -> str:
    """``TTFT 500 ms, TPOT 50 ms``."""
    return ", ".join(f"{metric.upper()} {seconds(limit)}" for metric, limit in thresholds.items())


def percentile_name(metric: str, percent: float) -> str:
    """``p95 TTFT``."""
    return f"p{percent:.12g} {metric.upper()}"


def shown_bound(result: Result) -> float | None:
    """The rate that was shown, where more was not measured; None where the sustainable rate is an estimate."""
    return known(result.at_least_rps)


def sustained(result: Result) -> str:
    """``52.1 (50.9-53.4)``, ``at least 6`` where more was not measured, ``52.1 (a point)``; empty for no rate."""
    bound = shown_bound(result)
    if (point := point_rate(result)) is not None:
        return f"{significant(point)} (a point)"
    return interval(result.sustainable_rate) if bound is None else f"at least {significant(bound)}"


def reported_rate(result: Result) -> Interval:
    """The sustainable rate as figures for machines. NaN where it is not known; only a low end, where it is a bound."""
    bound = shown_bound(result)
    if bound is not None:
        return Interval(math.nan, bound, math.nan)
    return result.sustainable_rate or Interval(math.nan, math.nan, math.nan)


def reported_slack(result: Result) -> float | None:
    """Sustainable rate over design rate, minus one; of the bound, where there is one."""
    bound, design = shown_bound(result), result.design_rate_rps
    if bound is not None:
        return bound / design - 1 if design else None
    return None if result.slack is None else known(result.slack.value)


def gpus_needed(result: Result) -> int | None:
    """GPUs by the rate that is reported: at most as many, where it is a bound. None where none can be counted."""
    bound, declared = shown_bound(result), result.requirement
    if bound is None or result.design_rate_rps is None:
        return result.gpus_required
    most = gpus_at(result, bound)
    if most is None:
        return None
    # The bound is rounded. What a verdict says of the budget is exact.
    return min(most, declared.gpus) if result.outcome is Outcome.PASS else most


def gpus_at(result: Result, rate_rps: float) -> int | None:
    """GPUs of the declared budget's rate if one replica sustained `rate_rps`; None for a rate that nobody can count by.

    A file may hold any number, such as the smallest that a float can have.
    """
    declared = result.requirement
    try:
        return gpus_required(
            declared.qps,
            declared.headroom,
            f"{rate_rps:.7g}",
            declared.gpus_per_replica,
            str(declared.efficiency),
        )
    except RequirementError:
        return None


def slack_text(result: Result) -> str:
    """``+4.2%``, or ``>= +360.0%`` where more was not measured; empty where it is not known."""
    slack = reported_slack(result)
    at_least = ">= " if shown_bound(result) is not None else ""
    return "" if slack is None else f"{at_least}{percent(slack, signed=True)}"


def bound_text(result: Result) -> str:
    """``at least 6 req/s per replica, 4.6 times the design rate``. The result must have such a bound."""
    bound, design = shown_bound(result), result.design_rate_rps
    assert bound is not None  # noqa: S101 - what the docstring asks for
    shown = f"at least {rate(bound)} per replica"
    if not design:
        return shown
    times = bound / design
    return f"{shown}, {'the' if times < _SAME_RATE else f'{significant(times)} times the'} design rate"


_SAME_RATE: Final = 1.005
"""A bound below this multiple of the design rate is that rate: nothing above it was shown."""


def bound_by(result: Result) -> str:
    """``p95 E2E, limit 20 s``; empty where nothing is known to bind, or another limit decided."""
    return ", ".join(filter(None, bound_by_parts(result)))


def bound_by_parts(result: Result) -> tuple[str, str]:
    """``p95 E2E`` and ``limit 20 s``: what binds, and how much of it is allowed; empty as `bound_by`."""
    binding = result.binding
    if shown_bound(result) is not None:
        return "", ""  # nothing was seen to bind
    if not binding or (result.accuracy is not None and result.accuracy.decided) or broken_beside(result) is not None:
        return "", ""
    if binding == "errors":
        return "errors", f"at most {percent(result.slo.max_error_rate)} allowed"
    if binding == "backlog":
        return "a backlog that grows", ""
    if goodput_percent(binding) is not None:
        return limit_name(binding), f"limits {thresholds_text(result.slo.thresholds)} together"
    limit = result.slo.limits.get(binding)
    return limit_name(binding), "" if limit is None else f"limit {seconds(limit)}"


def broken_beside(result: Result) -> SecondaryResult | None:
    """The limit beside the rate that decides the verdict; None if none does."""
    return next((each for each in result.secondary if each.decided), None)


def gpus(count: int) -> str:
    """``1 GPU``, ``3 GPUs``."""
    return f"{count} GPU{'' if count == 1 else 's'}"


def shown(path: Path) -> str:
    """A path, relative to the working directory if it lies inside."""
    try:
        here = Path.cwd()
    except OSError:  # a test removed it
        return shown_path(path)
    return shown_path(path.relative_to(here) if path.is_relative_to(here) else path)


_UNCOUNTED: Final = {
    Outcome.PASS: "keeps its budget",
    Outcome.FAIL: "does not keep its budget",
    Outcome.INCONCLUSIVE: "is undecided",
}
"""The verdict in words, used when no GPUs can be counted."""


def headline(result: Result) -> str:
    """The verdict with its arithmetic, in one line.

    ``chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50``
    """
    return ": ".join(headline_parts(result))


def headline_parts(result: Result) -> tuple[str, str]:
    """The claim, and its arithmetic or reason."""
    name, outcome = result.name, result.outcome
    if result.left_unmeasured:
        return f"{name} was not measured", result.reason
    if outcome is None:
        return name, _figure(result)
    if outcome is Outcome.INVALID:
        return f"{name} was not measured", result.reason
    if (beside := broken_beside(result)) is not None:
        enough = arithmetic(result) if result.sustainable_rate or shown_bound(result) is not None else ""
        fast = ", ".join(filter(None, ["fast enough", enough]))
        return f"{name}: {beside.claim}", "; ".join(filter(None, [beside.arithmetic, beside.reason, fast]))
    if result.accuracy is not None and result.accuracy.decided:
        return f"{name} {result.accuracy.claim}", result.accuracy.undecided or f"fast enough, {arithmetic(result)}"
    claim = _needs(result, outcome)
    return (
        (f"{name} {_UNCOUNTED[outcome]}", result.reason) if claim is None else (f"{name} {claim}", arithmetic(result))
    )


def _needs(result: Result, outcome: Outcome) -> str | None:
    """The GPUs that a verdict counts, against the budget; None if it can count none."""
    budget = f"budget {result.requirement.gpus}"
    if shown_bound(result) is not None:
        most = gpus_needed(result)
        return f"needs at most {gpus(most)}, {budget}" if most is not None and outcome is Outcome.PASS else None
    if result.sustainable_rate is None or result.gpus_required is None:
        return None
    if outcome is Outcome.INCONCLUSIVE and result.gpus_interval is not None:
        low, high = result.gpus_interval
        return f"may need {f'{gpus(high)}' if low == high else f'{low} to {gpus(high)}'}, {budget}"
    return f"needs {gpus(result.gpus_required)}, {budget}"


def _figure(result: Result) -> str:
    """What was measured without a verdict."""
    found, samples = result.sustainable_rate, result.samples
    if shown_bound(result) is not None:
        return f"one replica sustains {bound_text(result).removesuffix(' per replica')}"
    if result.problems:
        return f"not measured: {result.problems[0].text}"
    if found is not None:
        return f"one replica sustains {rate(found.value)}"
    if result.imported is not None and samples:
        return f"{rate(samples[0].completed_rps)} completed, a point of {result.imported.described}"
    if len(samples) == 1:
        return f"{rate(samples[0].completed_rps)} in one window"
    return f"no sustainable rate: {result.reason}" if result.reason else "no sustainable rate"


def arithmetic(result: Result) -> str:
    """``100 req/s x 1.3 / 52.1 req/s = 2.50``; without the quotient where the rate is not known or 0.

    Where more was not measured, the bound that was shown. The result must have a sustainable rate or such a bound.
    """
    if shown_bound(result) is not None:
        return bound_text(result)
    declared, found = result.requirement, result.sustainable_rate
    assert found is not None  # noqa: S101 - what the docstring asks for
    kept = declared.efficiency
    divisor = rate(found.value) if kept == 1 else f"({rate(found.value)} x {percent(kept)})"
    division = f"{declared.qps:g} req/s x {declared.headroom:g} / {divisor}"
    value = known(found.value)
    printed = _exact(significant(value)) if value else Fraction(0)
    if not printed:  # a rate may be so small that it is printed as 0
        return division
    per_replica = declared.gpus_per_replica
    # From the figures as printed, in exact arithmetic, so that a reader who checks the line gets the same.
    replicas = _exact(declared.qps) * _exact(declared.headroom) / (printed * _exact(kept))
    return f"{division} = {float(replicas):.2f}{'' if per_replica == 1 else f' replicas of {per_replica} GPUs'}"


def _exact(number: float | str) -> Fraction:
    return Fraction(str(number))
