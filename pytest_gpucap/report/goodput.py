"""Goodput of a result and of its windows: the share of the requests that kept all limits together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytest_gpucap.report.formatting import known, percent, share_name
from pytest_gpucap.requirement import Metric, limited_percentile
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.result import DeclaredSlo, Result
from pytest_gpucap.results.windows import Phase

_JUDGED: Final = {Phase.SAMPLE: "", Phase.DESIGN_RATE: " at the design rate", Phase.DIRECT: " at the design rate"}
"""Windows whose goodput is a figure of the result, and where they were measured. Others have another rate each."""


def goodput_of(samples: Sequence[Sample]) -> float | None:
    """Goodput of some windows together, each weighted by its requests; None where none is known."""
    found = [(each.requests, share) for each in samples if (share := known(each.goodput)) is not None]
    total = sum(count for count, _ in found)
    return sum(count * share for count, share in found) / total if total else None


def goodput_share(result: Result) -> float | None:
    """Goodput at the design rate, or of the window that `sample` measured; None where none is known."""
    return goodput_of([each for each in result.samples if each.window.phase in _JUDGED])


def goodput_text(result: Result) -> str:
    """``93.1% of the requests that ended at the design rate kept all limits, 95% required``; empty where none is known.

    Those that were sent and had not ended are in the verdict's reason: where a queue grows, they are the late ones.
    """
    share = goodput_share(result)
    if share is None:
        return ""
    where = next(_JUDGED[each.window.phase] for each in result.samples if each.window.phase in _JUDGED)
    return f"{percent(share)} of the requests that ended{where} {kept_text(result.slo)}"


def kept_text(slo: DeclaredSlo) -> str:
    """``kept all limits, 95% required``. Limits on ITL are not on requests."""
    gaps = any((found := limited_percentile(name)) and found.metric is Metric.ITL for name in slo.limits)
    asked = "" if slo.goodput is None else f", {share_name(slo.goodput)} required"
    return f"kept all limits{' but those on ITL' if gaps else ''}{asked}"
