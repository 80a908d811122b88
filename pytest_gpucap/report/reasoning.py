"""The reasoning of a result's answers in one line: how long it was, and when answers began after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytest_gpucap.report.formatting import known, percent, seconds
from pytest_gpucap.results.measured import Sample, judged_samples
from pytest_gpucap.results.reasoning import TTFAT, Reasoning
from pytest_gpucap.results.result import Result, ResultKind

_SHOWN: Final = (50, 95)
"""Percentiles of the time to first answer token."""


def reasoning_together(samples: Sequence[Sample]) -> Reasoning | None:
    """The reasoning of some windows together, each weighted by its answers; None where none reasoned."""
    found = [each.reasoning for each in samples if each.reasoning is not None and each.reasoning.requests]
    total = sum(each.requests for each in found)
    if not total:
        return None
    return Reasoning(
        requests=total,
        unanswered=sum(each.unanswered for each in found),
        reasoning_tokens=sum(each.requests * (known(each.reasoning_tokens) or 0.0) for each in found) / total,
        output_tokens=sum(each.requests * (known(each.output_tokens) or 0.0) for each in found) / total,
    )


def reasoning_text(result: Result) -> str:
    """``312 of 512 tokens of an answer (61%); p50 TTFAT 3.2 s, p95 TTFAT 4.1 s``; empty where no answer reasoned.

    The windows are those at the rate that is judged. Where there are none, those of every steady load. A latency is
    that of the worst window.
    """
    samples = result.samples if result.kind is ResultKind.SAMPLE else judged_samples(result.samples)
    found = reasoning_together(samples)
    if found is None:
        return ""
    share = found.reasoning_tokens / found.output_tokens if found.output_tokens else 0.0
    told = f"{found.reasoning_tokens:.4g} of {found.output_tokens:.4g} tokens of an answer ({percent(share)})"
    latencies = [each.latencies[TTFAT] for each in samples if TTFAT in each.latencies]
    if latencies and result.kind is not ResultKind.SAMPLE:  # of which each latency has a row
        worst = {p: max((known(each.percentile(p)) or 0.0 for each in latencies), default=0.0) for p in _SHOWN}
        told += "; " + ", ".join(f"p{p} TTFAT {seconds(value)}" for p, value in worst.items())
    if found.unanswered:
        told += f"; {found.unanswered} of {found.requests} answers ended before an answer token, and have no TTFAT"
    return told
