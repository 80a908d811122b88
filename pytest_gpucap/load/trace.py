"""A trace of real traffic: when requests arrived and how long they were.

Two forms, told apart by their content: CSV with the header ``arrival_s,input_tokens,output_tokens`` (in any order, more
columns are ignored), or JSON Lines with objects of the same keys. Times are seconds from any start, in rising order.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pytest_gpucap.load.protocol import Floats, Ints
from pytest_gpucap.requirement import RequirementError

COLUMNS = ("arrival_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals of shape (n,), seconds from the first one, with the token counts of each.

    `period_s` is the time after which the trace starts over when a phase outlasts it: from the first arrival to the
    last, and one mean gap.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    period_s: float

    @property
    def rate_rps(self) -> float:
        """Mean rate of the trace as recorded."""
        return self.arrival_s.size / self.period_s


def read_trace(path: Path) -> Trace:
    """Read a trace file.

    Raises:
        RequirementError: if the file cannot be read, or a row is not what it must be; names the file and the line.
    """
    try:
        changed = path.stat()
    except OSError as error:
        raise RequirementError(f"{path}: the trace file cannot be read: {error.strerror}") from None
    return _read(path, changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, _changed_ns: int, _size: int) -> Trace:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequirementError(f"{path}: the trace file cannot be read: {error}") from None
    rows = list(_json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text))
    if len(rows) < 2:  # noqa: PLR2004 - a rate needs two arrivals
        raise RequirementError(f"{path}: a trace needs at least 2 rows, this one has {len(rows)}")
    arrival_s = np.array([row[1] for row in rows])
    back = np.flatnonzero(np.diff(arrival_s) < 0)
    if back.size:
        raise RequirementError(f"{path}:{rows[back[0] + 1][0]}: arrival_s goes back in time; sort the rows by it")
    arrival_s -= arrival_s[0]
    if arrival_s[-1] == 0:
        raise RequirementError(f"{path}: all requests arrive at the same moment, so the trace has no rate")
    return Trace(
        arrival_s,
        np.array([row[2] for row in rows], np.int32),
        np.array([row[3] for row in rows], np.int32),
        float(arrival_s[-1] * len(rows) / (len(rows) - 1)),
    )


Row = tuple[int, float, int, int]
"""Line number, arrival, input tokens, output tokens."""


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise RequirementError(f"{path}:1: the header lacks {', '.join(missing)}; it must name {', '.join(COLUMNS)}")
    for row in reader:
        yield _row(f"{path}:{reader.line_num}", reader.line_num, [row[name] for name in COLUMNS])


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            values = [row[name] for name in COLUMNS]
        except (ValueError, TypeError, KeyError):
            raise RequirementError(f"{where}: not a JSON object with {', '.join(COLUMNS)}") from None
        yield _row(where, number, values)


def _row(where: str, number: int, values: list[str | float | int | None]) -> Row:
    numbers = []
    for name, value in zip(COLUMNS, values, strict=True):
        try:
            numbers.append(float(value))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise RequirementError(f"{where}: {name} must be a number, not {value!r}") from None
    arrival_s, input_tokens, output_tokens = numbers
    if not np.isfinite(arrival_s):
        raise RequirementError(f"{where}: arrival_s must be finite, not {arrival_s}")
    for name, tokens in zip(COLUMNS[1:], (input_tokens, output_tokens), strict=True):
        if not (1 <= tokens <= 2**31 - 1 and tokens == int(tokens)):
            raise RequirementError(f"{where}: {name} must be a whole number of at least 1, not {tokens:g}")
    return number, arrival_s, int(input_tokens), int(output_tokens)
