"""Explains a failed comparison: the result that its figure comes from, in a few lines.

Results hold plain numbers, so that they can be stored, sent and computed with. When a comparison of such a number
fails, it is looked up among the figures that the running test has measured. A float that agrees in seven digits is that
figure. A whole number may be a coincidence, so only a count of GPUs in a comparison of counts is explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pytest_gpucap.report import rows
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import arithmetic, bound_text, shown_bound
from pytest_gpucap.report.formatting import interval as formatted
from pytest_gpucap.results.encoding import rounded
from pytest_gpucap.results.measured import Interval, Latency
from pytest_gpucap.results.result import Result

_OPERATORS: Final = frozenset({"<", "<=", ">", ">=", "==", "!="})
_INTERVALS: Final = ("sustainable_rate", "saturated_rate", "single_rate", "slack", "batching_gain")
_NUMBERS: Final = ("design_rate_rps", "knee_rps")
_OF_A_SAMPLE: Final = ("completed_rps", "output_tokens_per_s", "in_flight_mean")
_ENDS: Final = ("value", "low", "high")
_WIDTH: Final = 100
"""pytest cuts an explanation at eight lines and 640 characters."""


def explain(operator: str, left: object, right: object, results: Sequence[Result]) -> list[str] | None:
    """Lines for pytest's assertion explanation; None if neither side is a figure of `results`.

    Args:
        operator: the comparison, such as ``<=``.
        left: its left side.
        right: its right side.
        results: what the running test has measured so far.
    """
    if operator not in _OPERATORS:
        return None
    for side in (left, right):
        # The figure most likely comes from the last measurement.
        for result in reversed(results):
            name = _name(side, result)
            if name is not None:
                first, *others = _lines(name, cleaned(result))
                return [_cut(f"{left!r} {operator} {right!r}: {first}"), *map(_cut, others)]
    return None


def _name(value: object, result: Result) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        counts = {"gpus_required": result.gpus_required}
        counts |= dict(zip(("gpus_interval[0]", "gpus_interval[1]"), result.gpus_interval or (), strict=False))
        return next((name for name, count in counts.items() if count == value), None)
    kept = rounded(value)
    return None if kept is None else next((name for name, figure in _figures(result) if figure == kept), None)


def _figures(result: Result) -> Iterator[tuple[str, float | None]]:
    for name in _INTERVALS:
        interval: Interval | None = getattr(result, name)
        if interval is not None:
            yield from ((f"{name}.{end}", getattr(interval, end)) for end in _ENDS)
    for name in _NUMBERS:
        yield name, getattr(result, name)
    for sample in result.samples:
        yield from ((f"{name} ({sample.window.text})", getattr(sample, name)) for name in _OF_A_SAMPLE)
        for metric, latency in sample.latencies.items():
            for name in Latency.__struct_fields__:
                yield f"{metric} {name} ({sample.window.text})", getattr(latency, name)


def _lines(name: str, result: Result) -> Iterator[str]:
    simulated = " (SIMULATED)" if result.simulated else ""
    yield f"{name} of {result.name}{simulated}{f': {_source(result)}' if name.startswith('gpus') else ''}"
    rate = result.sustainable_rate
    if shown_bound(result) is not None:
        yield f"one replica sustains {bound_text(result)}; more was not measured"
    elif rate is not None and (found := formatted(rate)):
        yield f"sustainable rate {found} req/s per replica ({rate.confidence * 100:g}% interval)"
    yield from (f"{key}: {value}" for key, value in rows.causes(result))


def _source(result: Result) -> str:
    return arithmetic(result) if result.sustainable_rate or shown_bound(result) is not None else ""


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
