"""One result as rows of plain text. Every report for people is made of these rows.

An absent part of the result gives no row, so a report shows only what was measured.
"""

from __future__ import annotations

from typing import Final

from pytest_gpucap.errors import shortened
from pytest_gpucap.report import host_rows
from pytest_gpucap.report.capacity_rows import fleet, physical_limit, starts, sustained_rows
from pytest_gpucap.report.changes import change
from pytest_gpucap.report.declared_text import limits, requirement, workload
from pytest_gpucap.report.formatting import Row, bound_by, interval, known, percent, percentile_name, seconds
from pytest_gpucap.report.goodput import goodput_text
from pytest_gpucap.report.headline import standing
from pytest_gpucap.report.imported_rows import imported
from pytest_gpucap.report.reasoning import reasoning_text
from pytest_gpucap.report.server_time import server_time
from pytest_gpucap.report.windows import USUAL, kept_percentile
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Outcome, SecondaryResult
from pytest_gpucap.results.result import Result, ResultKind


def result_rows(result: Result) -> list[Row]:
    """What was asked, what was found, and what it took."""
    judged = result.design_rate_rps is not None
    return [
        *imported(result),
        *([("requirement", requirement(result))] if judged else []),
        ("workload", workload(result.workload)),
        ("limits", limits(result.slo)),
        *sustained_rows(result),
        *fleet(result),
        *starts(result),
        *sampled(result),
        *reasoning(result),
        *_goodput(result),
        *_prefix_hits(result),
        *adapters(result),
        *_failures(result),
        *physical_limit(result),
        *accuracy(result),
        *secondary(result),
        *comparison(result),
        *host_rows.host(result),
        *(("remark", text) for text in (*forgetting(result), *result.environment.remarks)),
        *not_told(result),
        *([("server time", server_time(result))] if result.imported is None else []),
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
                lines.append((metric.upper(), f"{', '.join(shown)} {_of(metric, found.count)}"))
    return lines


def _of(metric: str, count: int) -> str:
    """What percentiles rest on: the last hundredth of a few values is a single one."""
    what = "gap" if metric == "itl" else "request"
    return f"({count:,} {what}{'' if count == 1 else 's'})"


def reasoning(result: Result) -> list[Row]:
    """How much of the answers was reasoning, and when the answers began; empty where none reasoned."""
    return [("reasoning", told)] if (told := reasoning_text(result)) else []


def adapters(result: Result) -> list[Row]:
    """The share of each LoRA adapter and the latencies of its requests, a row each; empty without a mix."""
    columns = list(dict.fromkeys(kept_percentile(name) for name in result.slo.percentiles)) or USUAL
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


_MOST_ROWS: Final = 20
"""Of adapters in one report."""


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


def notes(result: Result) -> list[str]:
    """What a verdict leaves unsaid, whatever it is: the host, the cache, odd answers; failed requests of a good one."""
    # A bad result names its failed requests among its causes.
    failures = told_failures(result) if standing(result).ending is None and not result.failed else ""
    beside = (*host_rows.remarks(result), *forgetting(result), *result.environment.remarks, failures)
    return list(filter(None, beside))


def _prefix_hits(result: Result) -> list[Row]:
    return [("prefix hits", told)] if (told := prefix_hits(result)) else []


def told_failures(result: Result) -> str:
    """How many requests failed, and what the server said; empty if none did."""
    return "" if result.failed_requests is None else str(result.failed_requests)


def _failures(result: Result) -> list[Row]:
    return [("failed", told)] if (told := told_failures(result)) else []


def environment_rows(result: Result) -> list[Row]:
    """What surrounded the measurement: GPU, driver, server, command, host; last the seed, and where requests are."""
    values = ((name, getattr(result.environment, name)) for name in Environment.__struct_fields__)
    named = [
        (name.replace("_", " "), str(value))
        for name, value in values
        if isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""  # a remark has flags
    ]
    # Nobody knows the seed of another tool's run.
    seed = [] if result.imported is not None else [("seed", str(result.seed))]
    return [*named, *seed, *_kept_requests(result)]


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
    """Against the baseline: the decision, the change with its interval, and why; why latencies were not compared."""
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
    if found.no_latencies:
        lines.append(("no latencies", found.no_latencies))
    return lines
