"""A result -> the texts and tables of its card. The template only places them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pytest_gpucap.report import (
    capacity_rows,
    changes,
    declared_text,
    host_rows,
    imported_rows,
    rows,
    server_time,
    windows,
)
from pytest_gpucap.report.formatting import (
    bound_by_parts,
    gpus,
    gpus_needed,
    interval,
    known,
    limit_name,
    limit_texts,
    percent,
    percentile_name,
    rate,
    seconds,
    shown_bound,
    significant,
    slack_text,
    sustained,
)
from pytest_gpucap.report.goodput import goodput_of, goodput_share, kept_text
from pytest_gpucap.report.headline import Tone, result_headlines, standing
from pytest_gpucap.report.html.distributions import LATENCY_METRICS
from pytest_gpucap.requirement import ArrivalKind
from pytest_gpucap.results.comparison import FigureComparison, RegressionDecision
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import Interval, Latency, Outcome, Sample
from pytest_gpucap.results.result import DeclaredWorkload, Result, ResultKind
from pytest_gpucap.secondary import METRICS

EMPTY_CELL: Final = "\u2013"
"""The content of an empty cell."""
_SIGNS: Final = {
    Tone.PASS: "✓",
    Tone.FAIL: "✕",
    Tone.INCONCLUSIVE: "?",
    Tone.INVALID: "!",
    Tone.EXPECTED: "✕",
    Tone.NONE: "·",
}
_OPEN_AT_FIRST: Final = 6
_LEAST_SHOWN_S: Final = 0.05
_RATIO_ENDS: Final = (0.1, 10.0)
"""Ends of the axis of capacity over design rate; an arrow shows that a value lies beyond them."""
_TONES: Final = {
    RegressionDecision.REGRESSED: "bad",
    RegressionDecision.IMPROVED: "good",
    RegressionDecision.SAME: "good",
}
"""Of a comparison; any other decision is a warning."""


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict as it is shown: by its word, not only by its colour."""

    text: str
    sign: str
    tone: str


@dataclass(frozen=True, slots=True)
class CapacitySpan:
    """Capacity over design rate on a logarithmic axis: places in per cent of its width, and the same in words."""

    value: float
    low: float
    high: float
    clipped_low: bool
    clipped_high: bool
    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure with its name and what qualifies it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class TimeShare:
    """A phase's share of the server time: where it starts in the bar and how wide it is, in per cent."""

    name: str
    value: str
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know beside the figures; `tone` is ``bad``, ``warn``, ``good`` or ``plain``."""

    title: str
    lines: tuple[str, ...]
    tone: str = "plain"
    advice: str = ""


@dataclass(frozen=True, slots=True)
class WindowsTable:
    """The measuring windows in numbers; the first cell of a row names its window."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class ComparedTable:
    """Base and head side by side; a row each for the rate and for the latencies at an equal load.

    Attributes:
        base: the name of what the result is compared with.
        rows: what, base, head, change with its interval, decision.
    """

    base: str
    rows: tuple[tuple[str, str, str, str, str], ...]


@dataclass(frozen=True, slots=True)
class ResultCard:
    """One result as the page shows it."""

    anchor: str
    name: str
    test: str
    badge: Badge
    headline: str
    reason: str
    simulated: bool
    imported: str
    opened: bool
    rate: str
    interval: str
    design: str
    needed: str
    slack: str
    span: CapacitySpan | None
    facts: tuple[Fact, ...]
    notes: tuple[Note, ...]
    compared: ComparedTable | None
    spent: tuple[TimeShare, ...]
    start_phases: str
    declared: tuple[Fact, ...]
    windows: WindowsTable
    environment: tuple[Fact, ...]
    command: str
    curve_text: str


def badge(result: Result) -> Badge:
    """What the result came to."""
    found = standing(result)
    sign = "↓" if found.word == "REGRESSED" else _SIGNS[found.tone]
    return Badge(found.text, sign, found.tone.value)


def time_text(when: datetime) -> str:
    """A time for people: ``22 Nov 2026, 21:24 UTC``."""
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return f"{when.day} {when:%b %Y, %H:%M}{zone}"


def result_cards(results: Sequence[Result]) -> list[ResultCard]:
    """A card for each result, in the order given."""
    return [_card(result, number) for number, result in enumerate(results, 1)]


def _card(result: Result, number: int) -> ResultCard:
    bound, design, needed = shown_bound(result), result.design_rate_rps, gpus_needed(result)
    found = result.sustainable_rate if bound is None else None
    most = "" if bound is None else "at most "
    return ResultCard(
        anchor=f"result-{number}",
        name=result.name,
        test=result.test,
        badge=badge(result),
        headline=" ".join(line.text for line in result_headlines(result)),
        reason=result.reason,
        simulated=result.simulated,
        imported="" if result.imported is None else result.imported.described,
        opened=number <= _OPEN_AT_FIRST,
        rate=sustained(result)
        if bound is not None or result.imported
        else EMPTY_CELL
        if found is None
        else _number(found.value),
        interval=_range(found),
        design=significant(design) if design else EMPTY_CELL,
        needed=EMPTY_CELL if needed is None else f"{most}{needed} of {result.requirement.gpus}",
        slack=slack_text(result) or EMPTY_CELL,
        span=_span(found, design),
        facts=tuple(_facts(result)),
        notes=tuple(_notes(result)),
        compared=_compared(result),
        spent=tuple(_spent(result.spent_s)),
        start_phases=server_time.start_phases(result),
        declared=tuple(_declared(result)),
        windows=windows_table(result),
        environment=tuple(_environment(result)),
        command=result.environment.command or "",
        curve_text=_curve_text(result),
    )


def _range(found: Interval | None) -> str:
    """``50.9 to 53.4``; empty where an end is open."""
    if found is None or known(found.low) is None or known(found.high) is None:
        return ""
    return f"{significant(found.low)} to {significant(found.high)}"


def _facts(result: Result) -> list[Fact]:
    sampled = (Fact(name, value) for name, value in rows.sampled(result))
    reasoning = (Fact("Reasoning", value) for _, value in rows.reasoning(result))
    return [*_capacity(result), *_budget(result), *_throughput(result), *sampled, *reasoning, *_physical_limit(result)]


def _capacity(result: Result) -> list[Fact]:
    found, bound = result.sustainable_rate, shown_bound(result)
    if bound is not None:
        return [Fact("Sustainable rate", sustained(result) + " req/s", "more was not measured")]
    if found is None:
        return []
    return [
        Fact(
            "Sustainable rate",
            rate(found.value),
            f"{_range(found)}, {found.confidence * 100:.0f}% interval".removeprefix(", "),
        )
    ]


def _budget(result: Result) -> list[Fact]:
    """The rate that the budget needs, and how far the capacity is from it."""
    declared, figures = result.requirement, []
    if result.design_rate_rps:
        asked = f"{declared.qps:g} req/s x {declared.headroom:g}, per replica"
        figures.append(Fact("Design rate", rate(result.design_rate_rps), asked))
    bound = shown_bound(result)
    if bound is not None:
        figures += [Fact("Slack", slack_text(result), "by what was shown")] if result.design_rate_rps else []
    elif result.slack is not None:
        value, low, high = (
            percent(end, signed=True) for end in (result.slack.value, result.slack.low, result.slack.high)
        )
        figures.append(Fact("Slack", value, f"{low} to {high}"))
    if bound is not None:
        figures.append(Fact("GPUs needed", f"at most {gpus_needed(result)}", f"budget {declared.gpus}"))
    elif result.gpus_required is not None:
        ends = result.gpus_interval
        note = f"; {ends[0]} to {ends[1]} over the interval" if ends is not None and ends[0] != ends[1] else ""
        figures.append(Fact("GPUs needed", str(result.gpus_required), f"budget {declared.gpus}{note}"))
    return figures


def _throughput(result: Result) -> list[Fact]:
    """The limit that binds, and the rates at other loads."""
    figures = []
    bound, detail = bound_by_parts(result)
    if bound:
        figures.append(Fact("Bound by", bound, detail))
    if (share := goodput_share(result)) is not None:
        figures.append(Fact("Goodput", percent(share), f"of the requests {kept_text(result.slo)}"))
    for found, name in ((result.saturated_rate, "Saturated"), (result.single_rate, "One at a time")):
        if found is not None:
            figures.append(Fact(name, rate(found.value), _range(found)))
    if gain := result.batching_gain:
        figures.append(Fact("Batching gain", f"{_number(gain.value)} times", _range(gain)))
    return figures


def _physical_limit(result: Result) -> list[Fact]:
    """The share of the physical limit, or why it is not known. A simulated server has none."""
    if limit := result.limit:
        at = f"{limit.bound}: {rate(limit.rate_rps)} at {_number(limit.batch)} in flight"
        return [Fact("Of the physical limit", f"{limit.share * 100:.0f}%", at)]
    if result.no_limit and not result.simulated:
        return [Fact("Of the physical limit", "not known", result.no_limit)]
    return []


def _notes(result: Result) -> list[Note]:
    notes = []
    if result.problems:
        problems = tuple(problem.text for problem in result.problems)
        notes.append(Note("Why the measurement cannot be trusted", problems, "bad"))
    if found := result.failed_requests:
        title = f"{found.failed} of {found.ended} requests failed"
        notes.append(Note(title, tuple(map(str, found.kinds)), "warn"))
    if result.comparison is not None:
        (_, decided), *others = rows.comparison(result)
        lines = tuple(f"{name}: {value}" if name else value for name, value in others)
        notes.append(Note(f"Against the baseline {decided}", lines, _TONES.get(result.comparison.decision, "warn")))
    if told := capacity_rows.starts(result):
        notes.append(Note(f"{len(result.starts)} starts of the server", tuple(value for _, value in told), "plain"))
    if result.fleet is not None:
        told = capacity_rows.fleet(result)
        lines = tuple(f"{name}: {value}" if name else value for name, value in told[1:])
        notes.append(Note(f"Fleet of {told[0][1]}", lines, "bad" if result.fleet.lost else "plain"))
    if answers := result.accuracy:
        least, share = answers.min_accuracy, answers.share
        short = least is not None and share is not None and share.high < least
        lines = tuple(value for name, value in rows.accuracy(result) if name)
        notes.append(Note("Accuracy of the answers", lines, "bad" if short else "plain"))
    notes += _adapters(result)
    if beside := rows.secondary(result):
        lines = tuple(f"{name}: {value}" for name, value in beside)
        kept = all(each.outcome is Outcome.PASS for each in result.secondary)
        notes.append(Note("Limits beside the rate", lines, "plain" if kept else "bad"))
    notes += [Note("Prefix cache", (text,), "warn") for text in rows.forgetting(result)]
    if watched := host_rows.host(result):
        remarks = host_rows.remarks(result)
        notes.append(Note("Host", tuple(value for _, value in watched), "warn" if remarks else "plain"))
    if bottleneck := result.bottleneck:
        notes.append(Note(f"Bottleneck: {bottleneck.kind}", bottleneck.evidence, advice=bottleneck.advice))
    return notes


def _adapters(result: Result) -> list[Note]:
    mix = rows.adapters(result)
    return [Note("Adapters", tuple(value for _, value in mix), "plain")] if mix else []


def _compared(result: Result) -> ComparedTable | None:
    """None where nothing was compared, or nothing can be. Without a rate of the base latencies may be."""
    found = result.comparison
    if found is None or (found.base_rate is None and not found.latencies and not found.figures):
        return None
    head = interval(found.head_rate or result.sustainable_rate) or EMPTY_CELL
    rate_row = ("Sustainable rate, req/s per replica", interval(found.base_rate), head, changes.change(found))
    return ComparedTable(
        found.baseline.name,
        (
            (*rate_row, found.decision.value),
            *((f"{limit_name(each.limit)} at {each.load}", *changes.latency_cells(each)) for each in found.latencies),
            *(
                (METRICS[each.name].title, *_both(each), changes.change(each), each.noise or each.reason)
                for each in found.figures
            ),
        ),
    )


def _both(figure: FigureComparison) -> tuple[str, str]:
    base, head = (
        EMPTY_CELL if found is None else METRICS[figure.name].shown(found.value) for found in (figure.base, figure.head)
    )
    return base, head


def _spent(spent_s: Mapping[str, float]) -> list[TimeShare]:
    parts = {phase: value for phase, value in spent_s.items() if value >= _LEAST_SHOWN_S}
    whole = sum(parts.values())
    shares, start = [], 0.0
    for phase, value in parts.items():
        width = value / whole * 100
        shares.append(TimeShare(phase, seconds(value), round(start, 2), round(width, 2)))
        start += width
    return shares


def _declared(result: Result) -> list[Fact]:
    declared, workload = result.requirement, result.workload
    shared = f", {workload.shared_prefix_tokens} of them shared" if workload.shared_prefix_tokens else ""
    of_file = f"{declared_text.own_prompts(workload)}: " if workload.prompts else ""
    sampling = ", ".join(f"{key} {value}" for key, value in workload.sampling.items())
    facts = [Fact(name.capitalize(), text) for name, text in imported_rows.imported(result)]
    if result.kind is ResultKind.CHECK:
        budget = f"{declared.qps:g} req/s on {gpus(declared.gpus)}, headroom {declared.headroom:g}"
        facts.append(Fact("Requirement", budget))
    if declared.gpus_per_replica != 1:
        facts.append(Fact("Replica", gpus(declared.gpus_per_replica)))
    facts += [
        Fact("Limits", declared_text.limits(result.slo)),
        Fact("Prompts", f"{of_file}{workload.input_tokens} tokens{declared_text.media(workload)}{shared}"),
        Fact("Answers", _answers(workload)),
        Fact("Arrivals", _arrivals(workload)),
        Fact("Endpoint", workload.endpoint + (f", {workload.documents} documents" if workload.documents else "")),
    ]
    extra = [Fact("Extra body", workload.extra_body)] if workload.extra_body else []
    extra += [Fact("Adapters", declared_text.adapter_mix(workload))] if workload.adapters else []
    extra += [Fact("Sessions", declared_text.told_sessions(workload))] if workload.sessions else []
    extra += [Fact("Prefix hit rate", hits)] if (hits := rows.prefix_hits(result)) else []
    return [*facts, *([Fact("Sampling", sampling)] if sampling else []), *extra]


def _answers(workload: DeclaredWorkload) -> str:
    if not workload.endpoint.generates:
        return "without tokens"
    ignored = ", end of text ignored" if workload.ignore_eos else ""
    return f"{workload.output_tokens} tokens{ignored}{'' if workload.stream else ', not streamed'}"


def _arrivals(workload: DeclaredWorkload) -> str:
    if workload.arrivals is ArrivalKind.GAMMA:
        return f"gamma, burstiness {workload.burstiness:g}"
    return f"trace {workload.trace}" if workload.trace else workload.arrivals


def _environment(result: Result) -> list[Fact]:
    values = ((name.replace("_", " "), getattr(result.environment, name)) for name in Environment.__struct_fields__)
    listed = [
        Fact(name, "; ".join(value))
        for name, value in values
        if isinstance(value, tuple) and value and all(isinstance(each, str) for each in value)
    ]
    return [*(Fact(name, value) for name, value in rows.environment_rows(result) if name != "command"), *listed]


def _span(found: Interval | None, design_rps: float | None) -> CapacitySpan | None:
    if found is None or not design_rps or not all(known(end) for end in (found.value, found.low, found.high)):
        return None
    low_end, high_end = _RATIO_ENDS
    value, low, high = (end / design_rps for end in (found.value, found.low, found.high))

    def place(ratio: float) -> float:
        inside = min(high_end, max(low_end, ratio))
        return round(math.log(inside / low_end) / math.log(high_end / low_end) * 100, 2)

    return CapacitySpan(
        place(value),
        place(low),
        place(high),
        clipped_low=low < low_end,
        clipped_high=high > high_end,
        text=f"{significant(value)} times the design rate ({significant(low)} to {significant(high)})",
    )


def _curve_text(result: Result) -> str:
    """A text description of the chart of latency against rate, for screen readers."""
    found, design = result.sustainable_rate, result.design_rate_rps
    parts = [f"{len(result.samples)} measuring windows"]
    if shown_bound(result) is not None:
        parts.append(f"sustainable rate {sustained(result)} req/s")
    elif found is not None:
        parts.append(f"sustainable rate {rate(found.value)} ({_range(found)})")
    if design:
        parts.append(f"design rate {rate(design)}")
    parts += [f"{limit_name(name)} limit {seconds(limit)}" for name, limit in result.slo.limits.items()]
    parts += limit_texts({}, result.slo.goodput, result.slo.thresholds)
    return ", ".join(parts)


def windows_table(result: Result) -> WindowsTable:
    """Every window with its percentiles, those that are limited among them, in the order of time."""
    samples = sorted(result.samples, key=lambda sample: sample.start_s)
    limited = [windows.kept_percentile(name) for name in result.slo.percentiles]
    percents = sorted({50, 95, 99, *(percent for _, percent in limited)})
    # Every limit has its columns, also where no window has a figure: it may be the one that binds.
    seen = {metric for sample in samples for metric in sample.latencies} | {metric for metric, _ in limited}
    metrics = [metric for metric in LATENCY_METRICS if metric in seen]
    limits = list(result.slo.limits)
    headers = ("window", "start", "length", "load", "requests", "req/s", "tok/s", "in flight", "errors")
    percentiles = (percentile_name(metric, percent) for metric in metrics for percent in percents)
    within = (f"within {limit_name(name)}" for name in limits)
    good = goodput_of(samples) is not None
    return WindowsTable(
        (*headers, *percentiles, *within, *(["goodput"] if good else [])),
        tuple(
            (
                *_window(sample, samples[0].start_s, metrics, percents, limits),
                *([_share(sample.goodput)] if good else []),
            )
            for sample in samples
        ),
    )


def _window(
    sample: Sample, origin_s: float, metrics: Sequence[str], percents: Sequence[int], limits: Sequence[str]
) -> tuple[str, ...]:
    closed = sample.kind == "closed"
    return (
        sample.window.text,
        seconds(round(sample.start_s - origin_s, 1)),
        seconds(sample.end_s - sample.start_s),
        f"{sample.concurrency} in flight" if closed else f"{_number(sample.offered_rps)} req/s",
        str(sample.requests),
        _number(sample.completed_rps),
        _number(sample.output_tokens_per_s),
        _number(sample.in_flight_mean),
        ", ".join(f"{count} {kind}" for kind, count in sample.errors.items()) or "0",
        *(_percentile(sample.latencies.get(metric), percent) for metric in metrics for percent in percents),
        *(_share(sample.attainment.get(name)) for name in limits),
    )


def _percentile(latency: Latency | None, percent: int) -> str:
    value = None if latency is None else known(latency.percentile(percent))
    return EMPTY_CELL if value is None else seconds(value)


def _number(value: float | None) -> str:
    found = known(value)
    return EMPTY_CELL if found is None else significant(found)


def _share(value: float | None) -> str:
    return EMPTY_CELL if known(value) is None else percent(value)
