"""Result files -> a table for a data frame: a row for each result, or for each measuring window.

Every row has the same columns. A figure that is not known is None. Times are seconds, rates requests a second of one
replica.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from importlib import import_module
from typing import Any, Final

from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.exported import latencies, source_of
from pytest_gpucap.report.formatting import gpus_needed, known, reported_rate, reported_slack
from pytest_gpucap.report.goodput import goodput_share
from pytest_gpucap.report.headline import standing
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Sample
from pytest_gpucap.results.points import point_rate
from pytest_gpucap.results.result import Result, ResultFile

Cell = str | float | int | datetime | None
_METRICS: Final = ("ttft", "tpot", "itl", "e2e")


class RowKind(StrEnum):
    """What a row is of."""

    WINDOWS = "windows"
    RESULTS = "results"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of equal columns.

    Attributes:
        columns: their names and the type of their values: ``str``, ``float``, ``int`` or ``datetime``.
        rows: in the order of the files, with a value or None for each column.
    """

    columns: dict[str, type]
    rows: list[list[Cell]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A result in its file."""

    file: str
    content: ResultFile
    result: Result

    @property
    def started(self) -> datetime:
        imported = self.result.imported
        return self.content.started if imported is None else imported.started or self.content.started


_Column = tuple[str, type, Callable[[Any], Cell]]

_ABOUT: Final[tuple[_Column, ...]] = (
    ("file", str, lambda at: at.file),
    ("started", datetime, lambda at: at.started),
    ("test", str, lambda at: at.result.test),
    ("requirement", str, lambda at: at.result.name),
    ("kind", str, lambda at: at.result.kind.value),
    ("source", str, lambda at: source_of(at.result)),
    ("gpu_class", str, lambda at: at.result.environment.gpu_class),
    ("gpus_per_replica", int, lambda at: at.result.requirement.gpus_per_replica),
    ("model", str, lambda at: at.result.environment.model),
    ("server", str, lambda at: at.result.environment.server),
    ("word", str, lambda at: standing(at.result).text),
    ("outcome", str, lambda at: None if at.result.outcome is None else at.result.outcome.value),
)
"""Columns of both kinds of rows."""
_RESULT: Final[tuple[_Column, ...]] = (
    ("rate_rps", float, lambda at: known(reported_rate(at.result).value)),
    ("rate_low_rps", float, lambda at: known(reported_rate(at.result).low)),
    ("rate_high_rps", float, lambda at: known(reported_rate(at.result).high)),
    ("point_rps", float, lambda at: point_rate(at.result)),
    ("design_rate_rps", float, lambda at: known(at.result.design_rate_rps)),
    ("qps", float, lambda at: at.result.requirement.qps if at.result.design_rate_rps else None),
    ("headroom", float, lambda at: at.result.requirement.headroom if at.result.design_rate_rps else None),
    ("gpus_required", int, lambda at: gpus_needed(at.result)),
    ("gpus", int, lambda at: at.result.requirement.gpus if at.result.design_rate_rps else None),
    ("slack", float, lambda at: reported_slack(at.result)),
    ("binding", str, lambda at: at.result.binding),
    ("goodput", float, lambda at: goodput_share(at.result)),
    ("input_tokens", str, lambda at: str(at.result.workload.input_tokens)),
    ("output_tokens", str, lambda at: str(at.result.workload.output_tokens)),
    ("server_time_s", float, lambda at: None if at.result.imported else at.result.total_spent_s),
    ("seed", str, lambda at: str(at.result.seed)),
)
_WINDOW: Final[tuple[_Column, ...]] = (
    ("window", str, lambda sample: sample.window.text),
    ("phase", str, lambda sample: sample.window.phase.value),
    ("cycle", int, lambda sample: sample.window.cycle),
    ("slice", int, lambda sample: sample.window.slice),
    ("slices", int, lambda sample: sample.window.slices),
    ("loop", str, lambda sample: sample.kind),
    ("start_s", float, lambda sample: sample.start_s),
    ("end_s", float, lambda sample: sample.end_s),
    ("offered_rps", float, lambda sample: known(sample.offered_rps)),
    ("concurrency", int, lambda sample: sample.concurrency),
    ("requests", int, lambda sample: sample.requests),
    ("errors", int, lambda sample: sum(sample.errors.values())),
    ("completed_rps", float, lambda sample: known(sample.completed_rps)),
    ("output_tokens_per_s", float, lambda sample: known(sample.output_tokens_per_s)),
    ("in_flight_mean", float, lambda sample: known(sample.in_flight_mean)),
    ("in_flight_end", int, lambda sample: sample.in_flight_end),
    ("goodput", float, lambda sample: known(sample.goodput)),
)
_LATENCIES: Final = tuple(f"{metric}_p{percent}_s" for metric in _METRICS for percent in KEPT_PERCENTILES)


def table(files: Iterable[tuple[str, ResultFile]], kind: RowKind) -> Table:
    """The table of some result files.

    Args:
        files: name and content of each.
        kind: what a row is of.
    """
    own = _RESULT if kind is RowKind.RESULTS else _WINDOW
    columns = {name: each for name, each, _ in (*_ABOUT, *own)} | dict.fromkeys(_LATENCIES, float)
    rows = []
    for file, content in files:
        for result in map(cleaned, content.results):
            at = _Place(file, content, result)
            about = [figure(at) for _, _, figure in _ABOUT]
            if kind is RowKind.RESULTS:
                found = {f"{each.metric}_p{each.percent}_s": each.value_s for each in latencies(result)}
                rows.append([*about, *(figure(at) for _, _, figure in own), *map(found.get, _LATENCIES)])
            else:
                rows += [
                    [*about, *(figure(sample) for _, _, figure in own), *_percentiles(sample)]
                    for sample in result.samples
                ]
    return Table(columns, rows)


def _percentiles(sample: Sample) -> Iterator[float | None]:
    for metric in _METRICS:
        latency = sample.latencies.get(metric)
        for percent in KEPT_PERCENTILES:
            yield None if latency is None else known(latency.percentile(percent))


def csv_text(found: Table) -> str:
    """As CSV (RFC 4180) with a header; empty cells for None, times in ISO 8601.

    A text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\r\n")
    writer.writerow(found.columns)
    writer.writerows([[_cell(value) for value in row] for row in found.rows])
    return written.getvalue()


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def _cell(value: Cell) -> Cell:
    if isinstance(value, datetime):
        return value.isoformat()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class NoParquet(ModuleNotFoundError):  # noqa: N818 - it states what there is not
    """pyarrow is not installed."""


def parquet_bytes(found: Table) -> bytes:
    """As a Parquet file with typed columns.

    Raises:
        NoParquet: without the extra ``parquet``.
        ValueError: for a count beyond 64 bits, which a file may claim.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise NoParquet from None
    types = {str: arrow.string(), float: arrow.float64(), int: arrow.int64(), datetime: arrow.timestamp("us", "UTC")}
    schema = arrow.schema([(name, types[each]) for name, each in found.columns.items()])
    columns: Sequence[Sequence[Cell]] = list(zip(*found.rows, strict=True)) or [()] * len(found.columns)
    try:
        arrays = [arrow.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    except (OverflowError, arrow.ArrowInvalid):
        raise ValueError("a count is too large for the 64 bits that Parquet has; CSV takes it") from None
    written = io.BytesIO()
    parquet.write_table(arrow.Table.from_arrays(arrays, schema=schema), written)
    return written.getvalue()
