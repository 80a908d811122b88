"""Measuring windows as a table, and a figure or a percentile of several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pytest_gpucap.report.formatting import known, percent, percentile_name, seconds, significant
from pytest_gpucap.report.goodput import goodput_of
from pytest_gpucap.requirement import limited_percentile
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Sample
from pytest_gpucap.results.reasoning import TTFAT
from pytest_gpucap.results.result import Result
from pytest_gpucap.results.windows import WindowId


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
    percentile, the nearest one is shown under its own name. Errors have a column where there were some.
    """
    columns = list(dict.fromkeys(kept_percentile(name) for name in result.slo.percentiles)) or _usual(result.samples)
    if any(TTFAT in sample.latencies for sample in result.samples):
        columns.append((TTFAT, 95))
    latencies = [percentile_name(metric, percent) for metric, percent in columns]
    told = ["goodput"] if goodput_of(result.samples) is not None else []
    failed = ["errors"] if any(sample.errors for sample in result.samples) else []
    headers = ["window", "s", "in flight", "req/s", "tok/s", *latencies, *told, *failed]
    body = [
        [
            window.text,
            f"{sum(sample.end_s - sample.start_s for sample in group):.0f}",
            *(_figure(mean(group, figure)) for figure in _FIGURES),
            *(seconds(max(latency(group, *column), default=None)) for column in columns),
            *(percent(share) if (share := goodput_of(group)) is not None else "" for _ in told),
            *(str(sum(sum(sample.errors.values()) for sample in group) or "") for _ in failed),
        ]
        for window, group in grouped(result.samples)
    ]
    return headers, body


USUAL: Final[list[tuple[str, int]]] = [("ttft", 95), ("e2e", 95)]


def _usual(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    """Metrics and percentiles that are shown where no limit asks for others: the nearest that the samples have."""
    return [
        (metric, next((each for each in (percent, 99, 90, 50) if latency(samples, metric, each)), percent))
        for metric, percent in USUAL
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


def _figure(value: float | None) -> str:
    return "" if value is None else significant(value)
