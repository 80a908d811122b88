"""A trace of real traffic: when requests arrived and how long they were.

A file is CSV or JSON Lines, in our own format or in one of published traces (`pytest_gpucap.load.trace_formats`). Our
own format has the columns or keys ``arrival_s``, ``input_tokens`` and ``output_tokens`` in any order; others are
ignored. Times are seconds from any start, in rising order.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pytest_gpucap.arrays import Floats, Int32s
from pytest_gpucap.errors import shortened, told
from pytest_gpucap.load.prompt_lengths import longest_prompt
from pytest_gpucap.load.sessions import longest_turn
from pytest_gpucap.load.trace_formats import CSV_FORMATS, JSON_FORMATS, TraceFormat, recognise
from pytest_gpucap.requirement import MOST_TOKENS, RequirementError, Workload
from pytest_gpucap.user_files import UserFileError, lines_of, shown_path, status
from pytest_gpucap.workloads.lengths import described

MAX_ROWS = 2_000_000
"""More than any measurement can send. Public traces of a week have ten times as many, and would fill the memory."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace of n requests.

    Attributes:
        arrival_s: shape (n,), seconds from the first arrival.
        input_tokens, output_tokens: shape (n,).
        period_s: the time after which the trace starts over: from the first arrival to the last, and one mean gap.
        left_out: rows of failed requests, which are not in the trace.
    """

    arrival_s: Floats
    input_tokens: Int32s
    output_tokens: Int32s
    period_s: float
    left_out: int = 0

    @property
    def rate_rps(self) -> float:
        """Mean rate of the trace as recorded, in requests per second."""
        return self.arrival_s.size / self.period_s

    def sha256(self) -> str:
        """Hash of arrivals (in whole microseconds from the first), input and output tokens: 64 hex digits.

        The file's name and format, its line ends, its other columns and the time of the first arrival are left out: two
        files with the same hash make the very same requests.
        """
        found = hashlib.sha256()
        for column, form in (
            (np.round(self.arrival_s * 1e6), "<i8"),
            (self.input_tokens, "<i4"),
            (self.output_tokens, "<i4"),
        ):
            found.update(column.astype(form).tobytes())
        return found.hexdigest()


def read_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        RequirementError: if the file cannot be read, or a row is malformed; names the file and the line.
    """
    try:
        changed = status(path)
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the trace file cannot be read: {error.why}") from None
    return _read(path, changed.st_mtime_ns, changed.st_size)


def with_trace_lengths(workload: Workload) -> Workload:
    """The workload with its trace's hash, and with lengths that have the trace's mean, spread and bounds.

    A workload without a trace stays as it is. Requests are sent as the trace has them, row by row. Estimates and
    physical limits use the lengths set here.

    Raises:
        RequirementError: as `read_trace`.
    """
    if workload.arrivals.trace is None:
        return workload
    trace = read_trace(workload.arrivals.trace)
    return replace(
        workload,
        input_tokens=described(trace.input_tokens),
        output_tokens=described(trace.output_tokens),
        arrivals=replace(workload.arrivals, trace_sha256=trace.sha256()),
    )


def longest_request(workload: Workload) -> tuple[int, int]:
    """Input and output tokens of the request with most tokens in all that the workload may send.

    Raises:
        RequirementError: as `read_trace`.
    """
    if workload.prompts is not None:
        return longest_prompt(workload.prompts)
    if workload.sessions is not None:
        return longest_turn(workload)
    if workload.arrivals.trace is None:
        return workload.longest
    trace = read_trace(workload.arrivals.trace)
    # As 64-bit integers: the sum of two counts may not fit 32 bits.
    longest = int((trace.input_tokens.astype(np.int64) + trace.output_tokens).argmax())
    return int(trace.input_tokens[longest]), int(trace.output_tokens[longest])


def decode_context(trace: Trace) -> float:
    """Mean context, in tokens, of the decode steps that generate the trace's output tokens.

    This is the mean of each row's prompt and half of its output, weighted by its output. Long answers take most of the
    steps, so the weights matter wherever the lengths of prompt and answer are related.
    """
    read, written = trace.input_tokens.astype(np.float64), trace.output_tokens.astype(np.float64)
    return float(np.sum(written * (read + written / 2)) / np.sum(written))


@lru_cache(maxsize=4)
def _read(path: Path, _changed_ns: int, _size: int) -> Trace:
    try:
        with lines_of(path) as lines:
            form, found = _rows(path, lines)
            rows = list(itertools.islice(found, MAX_ROWS + 1))
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the trace file cannot be read: {error.why}") from None
    except csv.Error as error:
        raise RequirementError(f"{shown_path(path)}: the trace file cannot be read: {error}") from None
    if len(rows) > MAX_ROWS:
        cut = f"head -n {MAX_ROWS} {path.name} > part{path.suffix}"
        raise RequirementError(f"{shown_path(path)}: a trace may have up to {MAX_ROWS} rows; take a part of it: {cut}")
    kept = [row for row in rows if row[2] and row[3]] if form.published else rows
    if len(kept) < 2:  # noqa: PLR2004 - a rate needs two arrivals
        failed = f", and {len(rows) - len(kept)} of failed requests" if len(rows) > len(kept) else ""
        raise RequirementError(f"{shown_path(path)}: a trace needs at least 2 rows, this one has {len(kept)}{failed}")
    if form.published:
        kept.sort(key=lambda row: row[1])
    arrival_s = np.array([row[1] for row in kept])
    back = np.flatnonzero(np.diff(arrival_s) < 0)
    if back.size:
        raise RequirementError(
            f"{shown_path(path)}:{kept[back[0] + 1][0]}: {form.columns[0]} goes back in time; sort the rows by it"
        )
    arrival_s -= arrival_s[0]
    if arrival_s[-1] == 0:
        raise RequirementError(f"{shown_path(path)}: all requests arrive at the same moment, so the trace has no rate")
    return Trace(
        arrival_s,
        np.array([row[2] for row in kept], np.int32),
        np.array([row[3] for row in kept], np.int32),
        float(arrival_s[-1] * len(kept) / (len(kept) - 1)),
        len(rows) - len(kept),
    )


TraceRow = tuple[int, float, int, int]
"""Line number, arrival in seconds, input tokens, output tokens."""


def _rows(path: Path, lines: Iterable[str]) -> tuple[TraceFormat, Iterator[TraceRow]]:
    """The file's format and its rows; the rows are read when they are asked for."""
    numbered = enumerate(lines, start=1)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        raise RequirementError(f"{shown_path(path)}: the trace file is empty")
    if first[1].lstrip().startswith("{"):
        return _json_rows(path, itertools.chain([first], numbered))
    return _csv_rows(path, first[1], (line for _, line in numbered), first[0])


def _csv_rows(path: Path, header: str, lines: Iterator[str], offset: int) -> tuple[TraceFormat, Iterator[TraceRow]]:
    names = [name.strip() for name in next(csv.reader([header]))]
    form = _recognised(f"{shown_path(path)}:{offset}: the header", CSV_FORMATS, names)
    places = [names.index(name) for name in form.columns]
    reader = csv.reader(lines)

    def rows() -> Iterator[TraceRow]:
        for row in reader:
            number = reader.line_num + offset
            if row:
                values = [row[place] if place < len(row) else None for place in places]
                yield _row(f"{shown_path(path)}:{number}", number, form, values)

    return form, rows()


def _json_rows(path: Path, numbered: Iterator[tuple[int, str]]) -> tuple[TraceFormat, Iterator[TraceRow]]:
    number, line = next(numbered)
    where = f"{shown_path(path)}:{number}"
    first = _json_object(where, line)
    inside = [f"{name}.{key}" for name, value in first.items() if isinstance(value, dict) for key in value]
    form = _recognised(f"{where}: the object", JSON_FORMATS, [*first, *inside])

    def rows() -> Iterator[TraceRow]:
        for at, text in itertools.chain([(number, line)], numbered):
            if text.strip():
                where = f"{shown_path(path)}:{at}"
                found = _json_object(where, text)
                missing = [name for name in form.columns if name not in found]
                if missing:
                    raise RequirementError(f"{where}: the object lacks {', '.join(missing)}")
                yield _row(where, at, form, [found[name] for name in form.columns])

    return form, rows()


def _recognised(what: str, formats: tuple[TraceFormat, ...], names: Collection[str]) -> TraceFormat:
    found = recognise(formats, names)
    if found is None:
        known = " or ".join(dict.fromkeys(", ".join(each.columns) for each in formats))
        raise RequirementError(f"{what} is of no known trace; it must name {known}")
    form, lacking = found
    if lacking:
        raise RequirementError(f"{what} lacks {', '.join(lacking)}; it must name {', '.join(form.columns)}")
    return form


def _json_object(where: str, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequirementError(f"{where}: not a JSON object")
    return found


def _row(where: str, number: int, form: TraceFormat, values: list[Any]) -> TraceRow:
    try:
        arrival_s = form.seconds(values[0])
    except (TypeError, ValueError, OverflowError):
        raise RequirementError(f"{where}: {form.columns[0]} must be {form.time_is}, not {told(values[0])}") from None
    if not math.isfinite(arrival_s):
        raise RequirementError(f"{where}: {form.columns[0]} must be finite, not {shortened(str(values[0]))}")
    least = 0 if form.published else 1
    prompt, output = (
        _tokens(where, name, value, least) for name, value in zip(form.columns[1:], values[1:], strict=True)
    )
    return number, arrival_s, prompt, output


def _tokens(where: str, name: str, value: Any, least: int) -> int:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequirementError(f"{where}: {name} must be a number, not {told(value)}") from None
    if not (least <= found <= MOST_TOKENS and found == int(found)):
        raise RequirementError(
            f"{where}: {name} must be a whole number of at least {least} and at most {MOST_TOKENS}, not {found:g}"
        )
    return int(found)
