"""A measurement against its physical limit: what share it reaches, and whether it can be true at all.

A measurement above its limit is broken: the server stopped early or answered without the model, the GPU is of another
class, or tokens were counted wrong. The shortest context and the fewest experts decide, so that no good measurement is
ever called impossible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from pytest_gpucap.results.measured import Interval, Measurement, Outcome, Sample, Verdict
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.result import PhysicalLimit
from pytest_gpucap.results.windows import WindowId
from pytest_gpucap.roofline.limits import Limit, NoLimit, Roofline

TOLERANCE = 0.05
"""Share by which a measurement may exceed its limit: figures of GPU classes are rounded, and clocks differ a little."""
LEAST_WINDOW_S = 2.0
"""Shorter windows are left out: tokens that were made before them would dominate."""


@dataclass(frozen=True, slots=True)
class PhaseWindow:
    """The slices of one phase together."""

    window: WindowId
    duration_s: float
    in_flight: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class LimitShare:
    """The window in which the server delivered most tokens, and the limit at the requests it had in flight then.

    Attributes:
        measured_rps: its tokens per second over the workload's mean output.
        share: of the limit; 1 is physics.
        declared: as `Roofline.declared`.
    """

    window: PhaseWindow
    limit: Limit
    measured_rps: float
    share: float
    declared: str = ""

    def text(self, limited_by: str | None = None) -> str:
        """``38.9 req/s, 26% of the bandwidth limit at 64 in flight (149 req/s): engine CPU``."""
        declared = f"; {self.declared} as declared" if self.declared else ""
        found = (
            f"{_short(self.measured_rps)} req/s, {self.share:.0%} of the {self.limit.bound} limit at "
            f"{_short(self.limit.batch)} in flight ({_short(self.limit.rate_rps)} req/s{declared})"
        )
        return f"{found}: {limited_by}" if limited_by else found

    def physical_limit(self, limited_by: str | None = None) -> PhysicalLimit:
        """As a result has it."""
        return PhysicalLimit(
            bound=self.limit.bound,
            rate_rps=self.limit.rate_rps,
            ttft_s=self.limit.ttft_s,
            tpot_s=self.limit.tpot_s,
            output_tokens_per_s=self.limit.output_tokens_per_s,
            batch=self.limit.batch,
            share=self.share,
            text=self.text(limited_by),
            formula=self.limit.formula,
        )


def whole_windows(samples: Iterable[Sample]) -> list[PhaseWindow]:
    """The samples, slices of one phase joined; those too short to mean anything are left out."""
    phases: dict[WindowId, list[Sample]] = {}
    for sample in samples:
        phases.setdefault(sample.window.whole, []).append(sample)
    joined = []
    for whole, slices in phases.items():
        spans = [sample.end_s - sample.start_s for sample in slices]
        total = sum(spans)
        if total >= LEAST_WINDOW_S:
            tokens = sum(s.output_tokens_per_s * t for s, t in zip(slices, spans, strict=True)) / total
            in_flight = sum(s.in_flight_mean * t for s, t in zip(slices, spans, strict=True)) / total
            joined.append(PhaseWindow(whole, total, in_flight, tokens))
    return [window for window in joined if window.in_flight > 0 and math.isfinite(window.output_tokens_per_s)]


def share_of(samples: Sequence[Sample], roofline: Roofline) -> LimitShare | None:
    """The share of the limit in the window of the most tokens per second; None without a usable window."""
    found = whole_windows(samples)
    if not found:
        return None
    window = max(found, key=lambda each: each.output_tokens_per_s)
    limit = roofline.at(max(1.0, window.in_flight))
    rate = window.output_tokens_per_s / roofline.workload.output_tokens.mean
    return LimitShare(window, limit, rate, window.output_tokens_per_s / limit.output_tokens_per_s, roofline.declared)


def impossible(
    samples: Sequence[Sample], roofline: Roofline, rates: Mapping[str, Interval | None] | None = None
) -> str | None:
    """Why the measurement cannot be true; None when it can.

    Args:
        samples: its windows.
        roofline: the limits of what was measured.
        rates: estimates by their name, in requests per second. An estimate cannot be true if its whole interval is
            above the limit. The upper end alone may be, because an estimate may reach beyond what was measured.
    """
    where = f"on {roofline.hardware.gpus}x {roofline.hardware.name}"
    fewest = replace(roofline, least_experts=True)
    for window in whole_windows(samples):
        most = fewest.most_tokens_per_s(max(1.0, window.in_flight))
        # A server that was stuck may send tokens in this window that it made before: at most those of all requests in
        # flight. Where lengths differ, the long ones are in flight.
        held_back = window.in_flight * roofline.workload.output_tokens.high
        if window.output_tokens_per_s * window.duration_s > (1 + TOLERANCE) * most * window.duration_s + held_back:
            limit = fewest.at(max(1.0, window.in_flight))
            return (
                f"{_short(window.output_tokens_per_s)} tokens/s with {_short(window.in_flight)} in flight is above the "
                f"{limit.bound} limit of {_short(most)} tokens/s {where} ({limit.formula}): {_causes(roofline)}"
            )
    # Not by TPOT: a busy API server sends many tokens at once, and the gaps between them are then not those of passes.
    shortest_s = fewest.shortest_e2e_s()
    for sample in samples:
        e2e = sample.latencies.get("e2e")
        if roofline.workload.ignore_eos and e2e is not None and e2e.p50_s < shortest_s / (1 + TOLERANCE):
            return (
                f"a median E2E of {_ms(e2e.p50_s)} is below the least possible of {_ms(shortest_s)} for the shortest "
                f"request alone {where} ({fewest.at(1).formula}): {_causes(roofline)}"
            )
    return _rate_above(roofline, rates or {}) if roofline.workload.ignore_eos else None


def _causes(roofline: Roofline) -> str:
    declared = ", or it runs with arguments that vllm(...) does not name (quantization, speculation, more GPUs)"
    return (
        "the server stops early, has seen these prompts before or is not this model, or the GPU is not of this class"
        f"{declared if roofline.declared else ''}"
    )


def _rate_above(roofline: Roofline, rates: Mapping[str, Interval | None]) -> str | None:
    most = roofline.certain().best()
    if most is None:
        return None
    for name, rate in rates.items():
        if rate is not None and rate.low > (1 + TOLERANCE) * most.rate_rps:
            return (
                f"the {name} of {_short(rate.value)} req/s ({_short(rate.low)} to {_short(rate.high)}) is above the "
                f"{most.bound} limit of {_short(most.rate_rps)} req/s on {roofline.hardware.gpus}x "
                f"{roofline.hardware.name} at any batch ({most.formula}): {_causes(roofline)}"
            )
    return None


def checked(measurement: Measurement, roofline: Roofline | NoLimit, points: Sequence[Sample] = ()) -> Measurement:
    """The measurement; with a problem, and so without its estimates, where physics rules it out."""
    if isinstance(roofline, NoLimit):
        return measurement
    rates = {"sustainable rate": measurement.sustainable_rate, "saturated rate": measurement.saturated_rate}
    problem = impossible([*measurement.samples, *points], roofline, rates)
    if problem is None:
        return measurement
    return replace(
        measurement,
        problems=(*measurement.problems, _impossible(problem)),
        sustainable_rate=None,
        saturated_rate=None,
        single_rate=None,
        binding=None,
    )


def checked_sample(sample: Sample, roofline: Roofline | NoLimit) -> Sample:
    """The sample; with a problem where physics rules it out."""
    problem = None if isinstance(roofline, NoLimit) else impossible([sample], roofline)
    return (
        sample
        if problem is None
        else msgspec.structs.replace(sample, problems=(*sample.problems, _impossible(problem)))
    )


def _impossible(text: str) -> Problem:
    return Problem(ProblemSource.MEASUREMENT, ProblemKind.IMPOSSIBLE, text)


def checked_verdict(verdict: Verdict, roofline: Roofline | NoLimit) -> Verdict:
    """The verdict; INVALID where physics rules its measurement out."""
    measurement = checked(verdict.measurement, roofline)
    if measurement is verdict.measurement:
        return verdict
    return Verdict(
        outcome=Outcome.INVALID,
        measurement=measurement,
        design_rate_rps=verdict.design_rate_rps,
        gpus_required=None,
        gpus_interval=None,
        slack=None,
        reason=verdict.reason if verdict.outcome is Outcome.INVALID else measurement.problems[-1].text,
    )


def _short(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.10g}"


def _ms(seconds: float) -> str:
    return f"{float(f'{seconds * 1e3:.3g}'):.10g} ms"
