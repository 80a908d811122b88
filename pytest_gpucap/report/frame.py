"""Result files -> a table for a data frame: a row for each result, phase, measuring window or single request.

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
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.exported import latencies, source_of
from pytest_gpucap.report.formatting import gpus_needed, known, reported_rate, reported_slack
from pytest_gpucap.report.goodput import goodput_share
from pytest_gpucap.report.headline import standing
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Sample
from pytest_gpucap.results.points import point_rate
from pytest_gpucap.results.requests import RequestRow, RequestsFile
from pytest_gpucap.results.result import Result, ResultFile

Cell = str | bool | float | int | datetime | None
_METRICS: Final = ("ttft", "tpot", "itl", "e2e")


class RowKind(StrEnum):
    """What a row is of."""

    WINDOWS = "windows"
    """A measuring window, as it is recorded: a slice of a phase."""
    PHASES = "phases"
    """One load that was held: all its windows together. Percentiles are those of the worst of them."""
    RESULTS = "results"
    REQUESTS = "requests"
    """A single request, where a session kept them."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of equal columns.

    Attributes:
        columns: their names and the type of their values: ``str``, ``bool``, ``float``, ``int`` or ``datetime``.
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
"""Columns of all kinds of rows."""
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
    ("seed", str, lambda at: None if at.result.imported else str(at.result.seed)),
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
_PHASE: Final[tuple[_Column, ...]] = (
    ("phase", str, lambda slices: slices[0].window.phase.value),
    ("window", str, lambda slices: slices[0].window.whole.text),
    ("cycle", int, lambda slices: slices[0].window.cycle),
    ("windows", int, len),
    ("loop", str, lambda slices: slices[0].kind),
    ("start_s", float, lambda slices: slices[0].start_s),
    ("end_s", float, lambda slices: slices[-1].end_s),
    ("offered_rps", float, lambda slices: known(slices[0].offered_rps)),
    ("concurrency", int, lambda slices: slices[0].concurrency),
    ("requests", int, lambda slices: sum(each.requests for each in slices)),
    ("errors", int, lambda slices: sum(sum(each.errors.values()) for each in slices)),
    ("completed_rps", float, lambda slices: _mean(slices, "completed_rps")),
    ("output_tokens_per_s", float, lambda slices: _mean(slices, "output_tokens_per_s")),
    ("in_flight_mean", float, lambda slices: _mean(slices, "in_flight_mean")),
    ("in_flight_end", int, lambda slices: slices[-1].in_flight_end),
)
_REQUEST: Final[tuple[_Column, ...]] = (
    *(
        (name, kind, attrgetter(name))
        for name, kind in {
            "phase": str,
            "window": str,
            "first_token_window": str,
            "end_window": str,
            "status": str,
            **dict.fromkeys(("scheduled_s", "sent_s", "first_token_s", "last_token_s", "end_s"), float),
            **dict.fromkeys(("ttft_s", "tpot_s", "e2e_s"), float),
            **dict.fromkeys(("prompt_tokens", "output_tokens", "asked_output_tokens", "cached_tokens"), int),
            "mid_life": bool,
            "session": int,
            "adapter": str,
            "replica": int,
        }.items()
    ),
)
_OWN: Final = {
    RowKind.RESULTS: _RESULT,
    RowKind.WINDOWS: _WINDOW,
    RowKind.PHASES: _PHASE,
    RowKind.REQUESTS: (("start", int, None), *_REQUEST),
}
_LATENCIES: Final = tuple(f"{metric}_p{percent}_s" for metric in _METRICS for percent in KEPT_PERCENTILES)


Requests = Callable[[str, RequestsFile], Iterable[RequestRow]]
"""The requests of one file that a result file names: from the result file's name."""


def table(files: Iterable[tuple[str, ResultFile]], kind: RowKind, requests: Requests | None = None) -> Table:
    """The table of some result files.

    Args:
        files: name and content of each.
        kind: what a row is of.
        requests: reads the files with single requests, for rows of those.
    """
    columns = {name: each for name, each, _ in (*_ABOUT, *_OWN[kind])}
    if kind is not RowKind.REQUESTS:
        columns |= dict.fromkeys(_LATENCIES, float)
    rows: list[list[Cell]] = []
    for file, content in files:
        for result in map(cleaned, content.results):
            at = _Place(file, content, result)
            about = [figure(at) for _, _, figure in _ABOUT]
            rows += [[*about, *own] for own in _rows(at, kind, requests)]
    return Table(columns, rows)


def _rows(at: _Place, kind: RowKind, requests: Requests | None) -> Iterator[list[Cell]]:
    """What the rows of one result hold beside what is about it."""
    result = at.result
    match kind:
        case RowKind.RESULTS:
            found = {f"{each.metric}_p{each.percent}_s": each.value_s for each in latencies(result)}
            yield [*(figure(at) for _, _, figure in _RESULT), *map(found.get, _LATENCIES)]
        case RowKind.WINDOWS:
            for sample in result.samples:
                yield [*(figure(sample) for _, _, figure in _WINDOW), *_percentiles(sample)]
        case RowKind.PHASES:
            for slices in _phases(result.samples):
                yield [*(figure(slices) for _, _, figure in _PHASE), *_worst(slices)]
        case RowKind.REQUESTS:
            assert requests is not None  # noqa: S101 - what callers know
            for start, kept in enumerate(result.requests, 1):
                for row in requests(at.file, kept):
                    yield [start, *(_text(figure(row)) for _, _, figure in _REQUEST)]


def _phases(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """The windows of each load that was held; they follow each other."""
    for _, slices in groupby(samples, key=lambda sample: (sample.window.whole, sample.offered_rps)):
        yield list(slices)


def _worst(slices: Sequence[Sample]) -> Iterator[float | None]:
    """Each percentile of the window in which it is largest."""
    for values in zip(*map(_percentiles, slices), strict=True):
        yield max((value for value in values if value is not None), default=None)


def _mean(slices: Sequence[Sample], name: str) -> float | None:
    """The mean over time of a figure; None where it is not known of a window."""
    seconds = [max(each.end_s - each.start_s, 0.0) for each in slices]
    values = [known(getattr(each, name)) for each in slices]
    if not sum(seconds) or None in values:
        return None
    return sum((value or 0.0) * each for value, each in zip(values, seconds, strict=True)) / sum(seconds)


def _text(value: Cell) -> Cell:
    """A figure of a file of requests, which may hold any text."""
    return visible(value) if isinstance(value, str) else value


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
    types = {
        str: arrow.string(),
        bool: arrow.bool_(),
        float: arrow.float64(),
        int: arrow.int64(),
        datetime: arrow.timestamp("us", "UTC"),
    }
    schema = arrow.schema([(name, types[each]) for name, each in found.columns.items()])
    columns: Sequence[Sequence[Cell]] = list(zip(*found.rows, strict=True)) or [()] * len(found.columns)
    try:
        arrays = [arrow.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    except (OverflowError, arrow.ArrowInvalid):
        raise ValueError("a count is too large for the 64 bits that Parquet has; CSV takes it") from None
    written = io.BytesIO()
    parquet.write_table(arrow.Table.from_arrays(arrays, schema=schema), written)
    return written.getvalue()
