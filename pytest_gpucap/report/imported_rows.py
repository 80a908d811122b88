"""A point of another tool as rows: who measured it, at what load, and which limits it keeps."""

from __future__ import annotations

from pytest_gpucap.report.formatting import Row, limit_name, percent, seconds
from pytest_gpucap.results.points import WHAT_IT_IS, failed_share, latency_at
from pytest_gpucap.results.result import Result


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
