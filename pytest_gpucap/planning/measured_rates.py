"""Rates that this plugin measured, from the results in result files and baselines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.planning.evidence import Evidence, Provenance
from pytest_gpucap.planning.service import BOUNDING, Service
from pytest_gpucap.requirement import GOODPUT, Arrivals, Length, OwnPrompts, Slo, Workload, declared_limits, positive
from pytest_gpucap.results.measured import Interval, Sample
from pytest_gpucap.results.points import failed_share, latency_at, point_rate
from pytest_gpucap.results.result import DeclaredSlo, DeclaredWorkload, Result, ResultKind
from pytest_gpucap.vllm_arguments import VllmArguments, recorded


class UnknownMeasurement(GpuCapError, ValueError):  # noqa: N818 - reads as what is wrong
    """No measurement has the name that was asked for. The message lists the names that there are."""


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """The sustainable rate of one replica, as one result states it.

    Attributes:
        name: of the requirement or the test.
        place: the file that holds the result.
        rate: requests per second, with its interval.
        qps: the target rate that the test declared; None if it declared none.
        headroom: the factor on the target rate that the test declared.
        declared: the GPU class is taken from the declaration, because the server was behind a URL.
        samples: load and throughput of the measuring windows.
    """

    name: str
    place: str
    provenance: Provenance
    gpu_class: str
    service: Service
    rate: Interval
    qps: Fraction | None
    headroom: Fraction
    declared: bool = False
    samples: tuple[Sample, ...] = ()

    @property
    def evidence(self) -> Evidence:
        """The rate as evidence for its own GPU class."""
        declared = ", GPU class as declared" if self.declared else ""
        text = f"{self.name} in {self.place}{declared}"
        if self.provenance is Provenance.IMPORTED:
            return Evidence(self.provenance, self.rate.value, None, None, f"{text}: {A_POINT}")
        return Evidence(self.provenance, self.rate.value, self.rate.low, self.rate.high, text)


def measured_rates(
    results: Iterable[Result], place: str, provenance: Provenance
) -> tuple[list[MeasuredRate], list[str]]:
    """The usable rates among the results of one file, in their order.

    Returns:
        The rates; and one line for each result that was left out, with the reason.
    """
    usable, left_out = point_rates((each for each in results if each.imported is not None), place)
    for result in results:
        if result.imported is not None:
            continue
        rate, reason = _rate(result), _unusable(result)
        if rate is None or reason:
            left_out.append(f"{result.name} in {place}: {reason}")
        else:
            usable.append(_measured_rate(result, rate, place, provenance))
    return usable, left_out


def point_rates(points: Iterable[Result], place: str) -> tuple[list[MeasuredRate], list[str]]:
    """The highest point of each service that keeps its limits.

    Args:
        points: imported results.
        place: the file that holds them.

    Returns:
        The rates, each without an interval; and one line for each point that was left out, with the reason.
    """
    best: list[MeasuredRate] = []
    left_out: list[str] = []
    for result in points:
        rate, reason = point_rate(result), _unusable_point(result)
        if rate is None or reason:
            left_out.append(f"{result.name} in {place}: {reason or 'no request was answered'}")
            continue
        found = _measured_rate(result, Interval(rate, rate, rate), place, Provenance.IMPORTED)
        other = next(
            (each for each in best if each.gpu_class == found.gpu_class and each.service.same(found.service)), None
        )
        lower = found
        if other is None:
            best.append(found)
            continue
        if other.rate.value < rate:
            best[best.index(other)], lower = found, other
        left_out.append(f"{lower.name} in {place}: a lower point of the same service")
    return best, left_out


A_POINT: Final = "a point, no measured capacity: it has no interval, and nothing shows that its rate lasts"


def _unusable_point(result: Result) -> str:
    """Why a point gives no rate to plan with; empty if it does."""
    if result.simulated:
        return "SIMULATED, which is no measurement"
    if not result.trusted:
        return result.problems[0].text if result.problems else "not to be trusted"
    if not result.environment.gpu_class:
        return "the GPU class is not known; give it when importing: --gpu-class"
    if failed_share(result) > result.slo.max_error_rate:
        return f"{failed_share(result):.1%} of its requests failed"
    return next(filter(None, (_broken(result, name, limit_s) for name, limit_s in result.slo.limits.items())), "")


def _broken(result: Result, limit: str, limit_s: float) -> str:
    """Why a point does not keep a limit; empty if it does."""
    value = latency_at(result, limit)
    if value is None:
        return f"{limit} is not in the file"
    return f"{limit} is {value:.3g} s, limit {limit_s:.3g} s" if value > limit_s else ""


def choose(rates: Sequence[MeasuredRate], name: str | None = None, model: str | None = None) -> MeasuredRate | None:
    """The last of the rates with this name; without a name, the last one of this model.

    A point of another tool is chosen where there is nothing else.

    Returns:
        None if no name was given and no rate is of this model.

    Raises:
        UnknownMeasurement: if no rate has the name.
    """
    rates = sorted(rates, key=lambda rate: rate.provenance is not Provenance.IMPORTED)
    if name is None:
        return next((rate for rate in reversed(rates) if model in {None, rate.service.model}), None)
    for rate in reversed(rates):
        if rate.name == name:
            return rate
    known = ", ".join(dict.fromkeys(rate.name for rate in rates)) or "none with a sustainable rate"
    raise UnknownMeasurement(f"{name}: there is no such measurement; there are: {known}")


def best_of_each_class(rates: Sequence[MeasuredRate], preferred: MeasuredRate | None = None) -> list[MeasuredRate]:
    """One rate per GPU class: `preferred` if it is of that class, else by provenance, else the narrowest interval."""
    best: dict[str, MeasuredRate] = {}
    for rate in sorted(
        rates,
        key=lambda each: (
            each is not preferred,
            list(Provenance).index(each.provenance),
            each.rate.high / max(each.rate.low, 1e-9),
        ),
    ):
        best.setdefault(rate.gpu_class, rate)
    return list(best.values())


def _unusable(result: Result) -> str:
    """Why a result gives no rate to plan with; empty if it does."""
    if result.simulated:
        return "SIMULATED, which is no measurement"
    if result.kind is ResultKind.SAMPLE:
        return "a single window has no sustainable rate"
    if not result.workload.endpoint.generates:
        return "its answers have no tokens, and plans are for those that have"
    rate = _rate(result)
    if rate is None or not math.isfinite(rate.value) or not math.isfinite(rate.low):
        return "no sustainable rate was found"
    if not result.environment.gpu_class:
        return "the GPU class was not known"
    return ""


def _rate(result: Result) -> Interval | None:
    """The sustainable rate. Where it lies beyond all that was measured, GPUs are planned by what was shown."""
    found, bound = result.sustainable_rate, result.at_least_rps
    return found if bound is None else Interval(bound, bound, bound if found is None else max(bound, found.high))


def _measured_rate(result: Result, rate: Interval, place: str, provenance: Provenance) -> MeasuredRate:
    """The rate in a usable result."""
    environment = result.environment
    return MeasuredRate(
        name=result.name,
        place=place,
        provenance=provenance,
        gpu_class=str(environment.gpu_class),
        service=Service(
            model=str(environment.model),
            arguments=VllmArguments(recorded(environment.server_args or {})).only(BOUNDING),
            workload=_workload(result.workload),
            slo=_slo(result.slo),
        ),
        rate=rate,
        qps=positive(result.requirement.qps, "qps") if result.kind is ResultKind.CHECK else None,
        headroom=positive(result.requirement.headroom, "headroom"),
        declared=environment.url is not None or result.imported is not None,
        samples=tuple(each for each in result.samples if math.isfinite(each.output_tokens_per_s)),
    )


def _slo(declared: DeclaredSlo) -> Slo:
    """The limits on latency."""
    # With their unit: a plain number above a minute is refused, since people often mean milliseconds.
    limits = {name: f"{limit_s!r}s" for name, limit_s in declared.limits.items()}
    thresholds = {metric.value: f"{limit_s!r}s" for metric, limit_s in declared.thresholds.items()}
    goodput = {} if declared.goodput is None else {GOODPUT: str(declared.goodput)}
    return Slo(declared_limits({**limits, **thresholds, **goodput}))


def _workload(declared: DeclaredWorkload) -> Workload:
    """The parts of a workload that two services must have in common."""
    return Workload(
        input_tokens=Length.parse(declared.input_tokens, "input_tokens"),
        output_tokens=Length.parse(declared.output_tokens, "output_tokens"),
        shared_prefix_tokens=declared.shared_prefix_tokens,
        arrivals=Arrivals(
            declared.arrivals, declared.burstiness, None if declared.trace is None else Path(declared.trace)
        ),
        prompts=None
        if declared.prompts is None
        else OwnPrompts(Path(declared.prompts), declared.prompts_sha256 or "", declared.prompt_count or 1),
    )
