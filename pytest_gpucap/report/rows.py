"""One result as rows of plain text. Every report for people is made of these rows.

An absent part of the result gives no row, so a report shows only what was measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from pytest_gpucap.errors import shortened
from pytest_gpucap.report.formatting import (
    bound_by,
    bound_text,
    gpus,
    gpus_needed,
    interval,
    known,
    limit_name,
    limit_texts,
    percent,
    percent_interval,
    percentile_name,
    rate,
    seconds,
    shown_bound,
    significant,
)
from pytest_gpucap.report.goodput import goodput_of, goodput_text
from pytest_gpucap.report.reasoning import reasoning_text
from pytest_gpucap.requirement import limited_percentile
from pytest_gpucap.results.comparison import Comparison, FigureComparison, LatencyComparison
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import (
    KEPT_PERCENTILES,
    MeasuredStart,
    Outcome,
    Sample,
    SecondaryResult,
)
from pytest_gpucap.results.points import WHAT_IT_IS, failed_share, latency_at
from pytest_gpucap.results.problems import ProblemSource
from pytest_gpucap.results.reasoning import TTFAT
from pytest_gpucap.results.result import START_UP, DeclaredBudget, DeclaredSlo, DeclaredWorkload, Result, ResultKind
from pytest_gpucap.results.telemetry import HostSummary, cores_text
from pytest_gpucap.results.windows import WindowId

Row = tuple[str, str]

WORST_FIRST = (Outcome.INVALID, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS, None)
_USUAL: Final[list[tuple[str, int]]] = [("ttft", 95), ("e2e", 95)]
_SHOWN_S = 0.05
"""Phases shorter than this are left out of the server time shown."""


def result_rows(result: Result) -> list[Row]:
    """What was asked, what was found, and what it took."""
    judged = result.design_rate_rps is not None
    return [
        *imported(result),
        *([("requirement", _requirement(result))] if judged else []),
        ("workload", workload(result.workload)),
        ("limits", limits(result.slo)),
        *_found(result),
        *fleet(result),
        *starts(result),
        *sampled(result),
        *reasoning(result),
        *_goodput(result),
        *_prefix_hits(result),
        *adapters(result),
        *_failures(result),
        *_physical_limit(result),
        *accuracy(result),
        *secondary(result),
        *comparison(result),
        *host(result),
        *(("remark", text) for text in (*forgetting(result), *result.environment.remarks)),
        *not_told(result),
        *([("server time", _server_time(result))] if result.imported is None else []),
    ]


def not_told(result: Result) -> list[Row]:
    """What the engine does not tell, so that nothing rests on it."""
    missing = result.environment.not_told
    return [("not told", f"{', '.join(missing)}: the engine has none of these")] if missing else []


def reasons(result: Result) -> list[Row]:
    """Why a requirement fails, is undecided or regressed: what binds, where the bottleneck is, what to try."""
    if not (result.failed or result.regressed or result.left_unmeasured):
        return []
    first, *others = causes(result) or [("", "")]
    lines = [first, *comparison(result), *others]
    return [(name, value) for name, value in lines if value]


def causes(result: Result) -> list[Row]:
    """The limit that binds, the bottleneck with its evidence, what to try, and why a measurement cannot be trusted."""
    bottleneck = result.bottleneck
    lines = [("bound by", bound_by(result))]
    lines += _goodput(result) if result.slo.goodput is not None else []
    if result.more_time is not None and (result.outcome is Outcome.INCONCLUSIVE or result.left_unmeasured):
        lines.append(("more time", result.more_time.text))
    if bottleneck is not None:
        lines += [("bottleneck", f"{bottleneck.kind}: {'; '.join(bottleneck.evidence)}"), ("try", bottleneck.advice)]
    # The headline has the limit that decides.
    lines += [_limited(each) for each in result.secondary if each.outcome is not Outcome.PASS and not each.decided]
    lines += [] if told_failures(result) in result.reason else _failures(result)
    lines += [("problem", problem.text) for problem in result.problems if problem.text != result.reason]
    return [(name, value) for name, value in lines if value]


_LATENCIES: Final = ("ttft", "ttfat", "tpot", "itl", "e2e")
"""In the order in which a request meets them."""


def sampled(result: Result) -> list[Row]:
    """The latencies of a window that `sample` measured, or of a point: percentiles of each metric, a row each."""
    if result.kind not in {ResultKind.SAMPLE, ResultKind.IMPORTED}:
        return []
    lines = []
    for sample in result.samples:
        for metric in _LATENCIES:
            found = sample.latencies.get(metric)
            if found is not None and known(found.p50_s) is not None:
                shown = (
                    f"p{percent} {seconds(value)}"
                    for percent in KEPT_PERCENTILES
                    if (value := known(found.percentile(percent))) is not None
                )
                lines.append((metric.upper(), ", ".join(shown)))
    return lines


def reasoning(result: Result) -> list[Row]:
    """How much of the answers was reasoning, and when the answers began; empty where none reasoned."""
    return [("reasoning", told)] if (told := reasoning_text(result)) else []


def adapters(result: Result) -> list[Row]:
    """The share of each LoRA adapter and the latencies of its requests, a row each; empty without a mix."""
    columns = list(dict.fromkeys(kept_percentile(name) for name in result.slo.percentiles)) or _USUAL
    lines = []
    for each in result.adapters[:_MOST_ROWS]:
        told = [f"{shortened(each.name)}: {percent(each.share)} of the requests", f"{each.requests} ended well"]
        if (drawn := known(each.drawn)) is not None:
            told[-1] += f" ({percent(drawn)})"
        for metric, percentile in columns:
            found = each.latencies.get(metric)
            if found is not None and (value := known(found.percentile(percentile))) is not None:
                told.append(f"{percentile_name(metric, percentile)} {seconds(value)}")
        lines.append(("adapter", ", ".join(told)))
    more = len(result.adapters) - _MOST_ROWS
    return [*lines, ("", f"and {more} more, which the result file has")] if more > 0 else lines


def adapter_mix(declared: DeclaredWorkload) -> str:
    """``support 70.0%, legal 30.0%``; empty without a mix of LoRA adapters."""
    mix = ", ".join(f"{shortened(each.name)} {percent(each.share)}" for each in declared.adapters[:_MOST_ADAPTERS])
    return f"{mix}, ... ({len(declared.adapters)} adapters)" if len(declared.adapters) > _MOST_ADAPTERS else mix


_MOST_ADAPTERS: Final = 4
"""Named in the line of a workload."""
_MOST_ROWS: Final = 20
"""Of adapters in one report."""


def imported(result: Result) -> list[Row]:
    """Which tool measured a point, when, at what load, and which limits the point keeps."""
    found = result.imported
    if found is None:
        return []
    when = f", {found.started.isoformat(sep=' ', timespec='minutes')}" if found.started else ""
    lengths = "lengths as seen, not as asked for" if found.observed_lengths else ""
    varied = [f"{name} {value}" for name, value in {**found.parameters, **found.labels}.items()]
    lines = [
        ("imported", f"{WHAT_IT_IS}: {found.described}, {found.file} (sha256 {found.sha256[:12]}){when}"),
        ("load", "; ".join(filter(None, [found.load, *varied, lengths]))),
    ]
    return [*lines, *(("against limits", text) for text in [kept_text(result)] if text)]


def kept_text(result: Result) -> str:
    """Which limits a point keeps: ``p95 E2E 51 ms of 20 s: kept``; empty without limits."""
    told = []
    for name, limit_s in result.slo.limits.items():
        value = latency_at(result, name)
        if value is None:
            told.append(f"{limit_name(name)} is not in the file")
        else:
            word = "kept" if value <= limit_s else "broken"
            told.append(f"{limit_name(name)} {seconds(value)} of {seconds(limit_s)}: {word}")
    if (failed := failed_share(result)) > result.slo.max_error_rate:
        told.append(f"errors {percent(failed)} of {percent(result.slo.max_error_rate)}: broken")
    return ", ".join(told)


def _goodput(result: Result) -> list[Row]:
    return [("goodput", told)] if (told := goodput_text(result)) else []


def prefix_hits(result: Result) -> str:
    """Of sessions, how much of the prompts the server found in its cache; empty where that is not known."""
    share = result.prefix_hit_rate
    return "" if share is None else f"{percent(share)} of the prompt tokens were in the prefix cache"


def forgetting(result: Result) -> list[str]:
    """What it means that the server forgets what its sessions sent, or will; empty where it has all."""
    found, sent, cost = result.prefix_hit_rate, result.prefix_sent_rate, result.forgetting_cost
    if cost:
        costs = f"costs it {percent(cost)} of its rate, which the rate allows for"
    if result.forgets and found is not None and sent is not None:
        means = f"in the long run that {costs}" if cost else "so in the long run it may sustain less"
        text = (
            f"the server found {percent(found)} of the prompt tokens in its prefix cache, and {percent(sent)} had been "
            f"sent before: what it forgets grows with rate and time, {means}"
        )
        return [text]
    return [f"the KV cache does not hold what sessions said for good: in the long run that {costs}"] if cost else []


def _prefix_hits(result: Result) -> list[Row]:
    return [("prefix hits", told)] if (told := prefix_hits(result)) else []


def told_failures(result: Result) -> str:
    """How many requests failed, and what the server said; empty if none did."""
    return "" if result.failed_requests is None else str(result.failed_requests)


def _failures(result: Result) -> list[Row]:
    return [("failed", told)] if (told := told_failures(result)) else []


def workload(declared: DeclaredWorkload) -> str:
    """Lengths, arrivals and endpoint in one line."""
    shared = f", {declared.shared_prefix_tokens} shared" if declared.shared_prefix_tokens else ""
    preset = f"{declared.preset}: " if declared.preset else ""
    own = f"{own_prompts(declared)}, " if declared.prompts else ""
    extra = f", extra_body {shortened(declared.extra_body)}" if declared.extra_body else ""
    extra += f", adapters {adapter_mix(declared)}" if declared.adapters else ""
    extra += f", sessions {told_sessions(declared)}" if declared.sessions else ""
    return (
        f"{preset}{own}{declared.input_tokens} tokens in{images(declared)}{shared}, {declared.tokens_out} out, "
        f"{declared.arrivals} arrivals, {declared.endpoint}{_how(declared)}{extra}"
    )


def told_sessions(declared: DeclaredWorkload) -> str:
    """As they are declared; of a file ``96 of chat.jsonl think=2s (sha256 0123456789ab)``; empty without sessions."""
    if declared.sessions_sha256 is None:
        return declared.sessions or ""
    count = "" if declared.session_count is None else f"{declared.session_count} of "
    return f"{count}{declared.sessions} (sha256 {declared.sessions_sha256[:12]})"


def images(declared: DeclaredWorkload) -> str:
    """`` (images 2 x 512x512, 640x480)``, sizes as they first come; empty where prompts have none."""
    counts = Counter(declared.images)
    sizes = (f"{count} x {size}" if count > 1 else size for size, count in counts.items())
    return f" (images {', '.join(sizes)})" if counts else ""


def _how(declared: DeclaredWorkload) -> str:
    """What is unusual in what a request asks for."""
    documents = f" of {declared.documents} documents" if declared.documents is not None else ""
    return documents + (" (not streamed)" if declared.endpoint.generates and not declared.stream else "")


def own_prompts(declared: DeclaredWorkload) -> str:
    """``96 prompts of chat.jsonl (sha256 0123456789ab)``, of a workload that has prompts of the user's own."""
    digest = f" (sha256 {declared.prompts_sha256[:12]})" if declared.prompts_sha256 else ""
    return f"{declared.prompt_count or 'the'} prompts of {declared.prompts}{digest}"


def limits(slo: DeclaredSlo) -> str:
    """``p95 E2E 20 s, p95 TTFT 500 ms, errors 1.0%``."""
    latencies = limit_texts(slo.limits, slo.goodput, slo.thresholds)
    return ", ".join([*latencies, f"errors {percent(slo.max_error_rate)}"])


def grouped(samples: Sequence[Sample]) -> list[tuple[WindowId, list[Sample]]]:
    """The slices of each measuring window together, in the order in which they were measured."""
    groups: dict[tuple[str, WindowId], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.kind, sample.window.whole), []).append(sample)
    return [(window, group) for (_, window), group in groups.items()]


def mean(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float | None:
    """The time-weighted mean of a figure over the samples that have it."""
    found = [
        (value, sample.end_s - sample.start_s) for sample in samples if (value := known(figure(sample))) is not None
    ]
    length_s = sum(length for _, length in found)
    return sum(value * length for value, length in found) / length_s if length_s > 0 else None


_FIGURES: tuple[Callable[[Sample], float], ...] = (
    lambda sample: sample.in_flight_mean,
    lambda sample: sample.completed_rps,
    lambda sample: sample.output_tokens_per_s,
)


def window_table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the measuring windows, with the percentiles that limits are set on (TTFT and E2E if none).

    Where answers reason first, TTFAT stands beside them.

    A latency is that of the window's worst slice, goodput that of all its slices. If windows do not keep a limit's
    percentile, the nearest one is shown under its own name.
    """
    columns = list(dict.fromkeys(kept_percentile(name) for name in result.slo.percentiles)) or _usual(result.samples)
    if any(TTFAT in sample.latencies for sample in result.samples):
        columns.append((TTFAT, 95))
    latencies = [percentile_name(metric, percent) for metric, percent in columns]
    told = ["goodput"] if goodput_of(result.samples) is not None else []
    headers = ["window", "s", "in flight", "req/s", "tok/s", *latencies, *told, "errors"]
    body = [
        [
            window.text,
            f"{sum(sample.end_s - sample.start_s for sample in group):.0f}",
            *(_figure(mean(group, figure)) for figure in _FIGURES),
            *(seconds(max(latency(group, *column), default=None)) for column in columns),
            *(percent(share) if (share := goodput_of(group)) is not None else "" for _ in told),
            str(sum(sum(sample.errors.values()) for sample in group) or ""),
        ]
        for window, group in grouped(result.samples)
    ]
    return headers, body


def _usual(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    """Metrics and percentiles that are shown where no limit asks for others: the nearest that the samples have."""
    return [
        (metric, next((each for each in (percent, 99, 90, 50) if latency(samples, metric, each)), percent))
        for metric, percent in _USUAL
    ]


def latency(samples: Sequence[Sample], metric: str, percent: int) -> list[float]:
    """A percentile of the samples that have it, in seconds."""
    kept = (sample.latencies[metric] for sample in samples if metric in sample.latencies)
    return [value for each in kept if (value := known(each.percentile(percent))) is not None]


def kept_percentile(limit: str) -> tuple[str, int]:
    """Metric and the percentile that windows keep nearest to a limit's: ``e2e_p99_9`` -> ``("e2e", 99)``."""
    limited = limited_percentile(limit)
    if limited is None:
        return limit, 95
    return limited.metric, min(KEPT_PERCENTILES, key=lambda kept: abs(kept - limited.percent))


def environment_rows(result: Result) -> list[Row]:
    """What surrounded the measurement: GPU, driver, server, command, host; last the seed, and where requests are."""
    values = ((name, getattr(result.environment, name)) for name in Environment.__struct_fields__)
    named = [
        (name.replace("_", " "), str(value))
        for name, value in values
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""  # a remark has flags
    ]
    return [*named, ("seed", str(result.seed)), *_kept_requests(result)]


def _kept_requests(result: Result) -> list[Row]:
    """Where the single requests are; a row per file."""
    found = []
    for each in result.requests:
        more = f", {each.left_out} more are left out" if each.left_out else ""
        found.append(("requests", each.missing or f"{each.rows} in {each.file}{more}"))
    return found


def measured_on(result: Result) -> str:
    """GPU, server and model in one line; empty where the session left no time to measure, and for imported points."""
    if result.left_unmeasured or result.imported is not None:
        return ""
    found = result.environment
    return ", ".join(part for part in (found.gpu, found.server, found.model) if part)


def _requirement(result: Result) -> str:
    declared = result.requirement
    budget = f"{declared.qps:g} req/s on {gpus(declared.gpus)}, headroom {declared.headroom:g}"
    kept = "" if declared.efficiency == 1 else f", {percent(declared.efficiency)} efficiency"
    return f"{budget}{kept} -> {rate(result.design_rate_rps)} per replica"


def _found(result: Result) -> list[Row]:
    found, lines = result.sustainable_rate, []
    if shown_bound(result) is not None:
        lines.append(("sustainable", f"{bound_text(result)}; more was not measured"))
        needed = gpus_needed(result) if result.design_rate_rps else None
        return lines + ([("GPUs needed", f"at most {needed}")] if needed is not None else [])
    if found is not None:
        binding = f", bound by {limit_name(result.binding)}" if result.binding else ""
        lines.append(("sustainable", f"{interval(found)} req/s per replica{binding}"))
    if result.slack is not None:
        lines.append(("slack", percent_interval(result.slack)))
    if found is not None and result.gpus_interval is not None:
        fewest, most = result.gpus_interval
        lines.append(("GPUs needed", f"{result.gpus_required} ({fewest} to {most})"))
    return lines


def fleet(result: Result) -> list[Row]:
    """What the replicas of a fleet sustain together, how well they add up, and which of them was slow.

    Of one replica that stands for several: what is taken for granted of the others.
    """
    found = result.fleet
    if found is None:
        return _additivity(result.requirement) if result.design_rate_rps else []
    told = [f"{found.replicas} replicas, {found.router}"]
    if found.together is not None and shown_bound(result) is None:
        told.append(f"{interval(found.together)} req/s together")
    if found.alone is not None:
        told.append(f"one alone {interval(found.alone)} req/s")
    lines = [("fleet", ", ".join(told))]
    if found.efficiency is not None:
        count = found.replicas
        lines.append(
            ("efficiency", f"{percent_interval(found.efficiency, signed=False)} of {count} times one replica alone")
        )
    elif found.note:
        lines.append(("efficiency", f"not known: {found.note}"))
    lines += [("lost", text) for text in found.lost]
    lines += [("weakest", found.weakest_why)] if found.weakest_why else []
    if (outside := known(found.outside_share)) is not None and outside >= _OUTSIDE:
        way = "on the way" if found.router.startswith("client") else "in the router and on the way"
        lines.append(("", f"{percent(outside)} of a request's time passed outside of the replicas, {way}"))
    return lines


_OUTSIDE: Final = 0.05
"""Less of a request's time outside of the replicas is not worth a line."""


def _additivity(declared: DeclaredBudget) -> list[Row]:
    count = declared.gpus // declared.gpus_per_replica
    if count == 1 or declared.fleet > 1:
        return []
    if declared.efficiency != 1:
        return [("efficiency", f"{count} replicas are taken to keep {percent(declared.efficiency)} of one alone")]
    return [("efficiency", f"{count} replicas are taken to add up; gpucap(replicas=...) measures whether they do")]


def starts(result: Result) -> list[Row]:
    """What each start of the server sustains, and how far they spread; empty for one start."""
    if not result.starts:
        return []
    spread = "" if result.start_spread is None else f"; standard deviation {percent(result.start_spread)}"
    lines = [("starts", f"{', '.join(map(start_told, result.starts))}{spread}")]
    detailed = [number for number, start in enumerate(result.starts, 1) if start.detailed]
    return lines + [("", f"windows, telemetry and bottleneck are those of start {number}") for number in detailed]


def start_told(start: MeasuredStart) -> str:
    """``4.12 req/s PASS``, ``at least 6 req/s PASS``."""
    if start.at_least_rps is not None:
        found = f"at least {rate(start.at_least_rps)}"
    else:
        found = "no rate" if start.sustainable_rate is None else rate(start.sustainable_rate.value)
    return f"{found} {start.outcome}" if start.outcome is not None else found


def _physical_limit(result: Result) -> list[Row]:
    """The upper limit from the hardware's bandwidth and compute."""
    if found := result.limit:
        return [("physical limit", found.text)]
    reason = result.no_limit
    return [("physical limit", f"not known: {reason}")] if reason and not result.simulated else []


def accuracy(result: Result) -> list[Row]:
    """The share of right answers, and the rate of right answers."""
    found = result.accuracy
    if found is None:
        return []
    value, low, high = (
        ("?", "?", "?") if found.share is None else map(percent, (found.share.value, found.share.low, found.share.high))
    )
    least = f", at least {percent(found.min_accuracy)} required" if found.min_accuracy is not None else ""
    notes = [
        f"in {len(found.samples)} samples" if found.samples else "",
        f"{found.cut} cut off at the token limit" if found.cut else "",
        f"{found.skipped} without reasoning" if found.skipped else "",
        f"{found.ungraded} not readable here (the accuracy extra has a maths parser)" if found.ungraded else "",
        f"{found.failed} requests got no answer" if found.failed else "",
    ]
    told = ", ".join(filter(None, notes))
    lines = [("accuracy", f"{value} ({low} to {high}), {found.right} of {found.answers} answers right{least}")]
    lines += [("", told)] if told else []
    if found.good_rps is not None:
        lines.append(("good", f"{interval(found.good_rps)} right answers a second per replica"))
    return lines


def secondary(result: Result) -> list[Row]:
    """The limits beside the rate: each figure against its limit, where it comes from, and what follows from it."""
    return [_limited(each) for each in result.secondary]


def _limited(found: SecondaryResult) -> Row:
    """One such limit; its outcome too, if it is not kept."""
    told = found.told if found.outcome is Outcome.PASS else f"{found.told}: {found.outcome}"
    return found.title, "; ".join(filter(None, [told, found.arithmetic, found.beside, found.reason]))


def comparison(result: Result) -> list[Row]:
    """Against the baseline: the decision, the change with its interval, and why."""
    found = result.comparison
    if not found:
        return []
    lines = [("baseline", ", ".join(filter(None, [f"{found.baseline.name}: {found.decision}", change(found)])))]
    if found.reason:
        lines.append(("", found.reason))
    if found.differs:
        lines.append(("differs", "; ".join(found.differs)))
    if found.changed:
        lines.append(("changed", "; ".join(found.changed)))
    return lines


def host(result: Result) -> list[Row]:
    """Who used the host's cores, what held them back, and why the host was not itself if that is only a remark."""
    found = None if result.telemetry is None else result.telemetry.host
    if found is None or found.busy_cores is None:
        return []
    used = [
        f"{cores_text(found.busy_cores)} of {found.cores} cores busy",
        "" if found.own_cores is None else f"{cores_text(found.own_cores)} by server and load generator",
        _others(found),
    ]
    lines = [("host", ", ".join(filter(None, used)))]
    if held := _held_back(found):
        lines.append(("", ", ".join(held)))
    return [*lines, *(("disturbed", text) for text in remarks(result))]


def remarks(result: Result) -> list[str]:
    """Why the host was not itself, where that is only a remark and not among the problems."""
    found = None if result.telemetry is None else result.telemetry.host
    judged = {problem.kind for problem in result.problems if problem.source is ProblemSource.HOST}
    return [] if found is None else [each.text for each in found.disturbances if each.kind not in judged]


def _others(found: HostSummary) -> str:
    if found.other_cores is None:
        return "the server's processes cannot be told from others"
    named = [each.describe() for each in found.others]
    return f"{cores_text(found.other_cores)} by others" + (f" ({', '.join(named)})" if named else "")


def _held_back(found: HostSummary) -> list[str]:
    """Figures that say how much the processes had to wait; those that are not known are left out."""
    base = f" of {found.base_clock_mhz:.0f}" if found.base_clock_mhz else ""
    shares = [
        (found.waiting, "{} of the time a task waited for a core"),
        (found.stolen, "{} steal"),
        (found.throttled, f"CPU quota of {cores_text(found.quota_cores or 0.0)} cores used up in {{}} of its periods"),
        (found.memory_stalled or None, "{} of the time all waited for memory"),
        (found.heated or None, "{} of the time held back by heat"),
    ]
    told = [text.format(percent(share)) for share, text in shares if share is not None]
    return [*told, *([f"{found.clock_mhz:.0f}{base} MHz"] if found.clock_mhz else [])]


def change(comparison: Comparison | LatencyComparison | FigureComparison) -> str:
    """``-12.1% (-14.0% to -10.0%)``: head over base minus one; empty where the two cannot be compared."""
    ratio = comparison.ratio
    if ratio is None or known(ratio.value) is None:
        return ""
    if ratio.low == ratio.high:  # both figures were read
        return percent(ratio.value - 1, signed=True)
    less_one = {"value": ratio.value - 1, "low": ratio.low - 1, "high": ratio.high - 1}
    return percent_interval(msgspec.structs.replace(ratio, **less_one))


LATENCY_HEADERS: Final = ("base", "head", "change (95% interval)", "decision")


def latency_cells(found: LatencyComparison) -> tuple[str, str, str, str]:
    """A latency of base and head under `LATENCY_HEADERS`."""
    return seconds(found.base_s), seconds(found.head_s), change(found), found.decision.value


def start_phases(result: Result) -> str:
    """``imports 20 s, weights 5 s, rest 2 s``: what the start-up was spent on; empty where nothing is known of it.

    The rest is what no phase accounts for: a log tells some of its times to the second, and not of everything.
    """
    known_s = sum(result.start_phases_s.values())
    if not known_s:
        return ""
    rest_s = result.spent_s.get(START_UP, 0.0) - known_s
    return ", ".join(_shown_phases({**result.start_phases_s, "rest": rest_s}))


def _server_time(result: Result) -> str:
    parts, phases = _shown_phases(result.spent_s), start_phases(result)
    if phases:
        parts = [f"{part} ({phases})" if part.startswith(f"{START_UP} ") else part for part in parts]
    return ", ".join(parts) or "none"


def _shown_phases(spent_s: Mapping[str, float]) -> list[str]:
    return [f"{phase} {seconds(spent)}" for phase, spent in spent_s.items() if spent >= _SHOWN_S]


def _figure(value: float | None) -> str:
    return "" if value is None else significant(value)
