"""What a failed comparison was about: the record that its figure comes from, in a few lines.

Results hold plain numbers, so that they can be stored, sent and computed with. When a comparison of such a number
fails, it is looked up among the figures that the running test has measured: a float that agrees in seven digits is that
figure; a whole number may be another one, so only a count of GPUs in a comparison of counts is explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pytest_gpucap.report import rows
from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.formatting import arithmetic
from pytest_gpucap.results.record import plain

_OPERATORS: Final = frozenset({"<", "<=", ">", ">=", "==", "!="})
_INTERVALS: Final = ("sustainable_rate", "saturated_rate", "single_rate", "slack", "batching_gain")
_NUMBERS: Final = ("design_rate_rps", "knee_rps")
_WIDTH: Final = 100
"""pytest cuts an explanation at eight lines and 640 characters."""


def explain(operator: str, left: object, right: object, records: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Lines for pytest's assertion explanation; None where neither side is a figure of `records`.

    Args:
        operator: the comparison, such as ``<=``.
        left: its left side.
        right: its right side.
        records: what the running test has measured so far.
    """
    if operator not in _OPERATORS:
        return None
    for side in (left, right):
        # The last measurement is the likeliest to be spoken of.
        for record in reversed(records):
            name = _name(side, record)
            if name is not None:
                first, *others = _lines(name, cleaned(record))
                return [_cut(f"{left!r} {operator} {right!r}: {first}"), *map(_cut, others)]
    return None


def _name(value: object, record: Mapping[str, Any]) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        counts = {"gpus_required": record.get("gpus_required")}
        counts |= dict(zip(("gpus_interval[0]", "gpus_interval[1]"), record.get("gpus_interval") or (), strict=False))
        return next((name for name, count in counts.items() if count == value), None)
    kept = plain(value)
    return None if kept is None else next((name for name, figure in _figures(record) if figure == kept), None)


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name in _INTERVALS:
        for end in ("value", "low", "high"):
            yield f"{name}.{end}", (record.get(name) or {}).get(end)
    for name in _NUMBERS:
        yield name, record.get(name)
    for sample in record["samples"]:
        for name in ("completed_rps", "output_tokens_per_s", "in_flight_mean"):
            yield f"{name} ({sample['label']})", sample[name]
        for metric, latency in sample["latencies"].items():
            for name, figure in latency.items():
                yield f"{metric} {name} ({sample['label']})", figure


def _lines(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    simulated = " (SIMULATED)" if record["simulated"] else ""
    yield f"{name} of {record['name']}{simulated}{f': {_source(record)}' if name.startswith('gpus') else ''}"
    if found := rows.interval(record["sustainable_rate"]):
        confidence = record["sustainable_rate"]["confidence"]
        yield f"sustainable rate {found} req/s a replica ({confidence * 100:g}% interval)"
    yield from (f"{key}: {value}" for key, value in rows.causes(record))


def _source(record: Mapping[str, Any]) -> str:
    return arithmetic(record) if record["sustainable_rate"] else ""


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
