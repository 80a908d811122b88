"""Runs of many nights -> one series for each thing that was measured again and again."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pytest_gpucap.history.comparable import Told, changed, identity
from pytest_gpucap.history.store import SUFFIX, Run, oldest_first, read_run
from pytest_gpucap.results.environment import Environment
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.points import point_rate
from pytest_gpucap.results.result import DeclaredWorkload, Result, ResultKind
from pytest_gpucap.results.result_file import ResultFileError
from pytest_gpucap.results.trend import UNKNOWN, TrendPoint
from pytest_gpucap.secondary import SecondaryName
from pytest_gpucap.user_files import is_file, is_folder, shown_path

NIGHT: Final = timedelta(hours=8)
"""Runs that start within this time of a night's first run belong to that night: its confirming runs."""
_GPU: Final = "GPU"

FAR_TOO_WIDE: Final = 3.0
"""A run is not judged if its interval is so many times as wide as is usual in its series; and"""
WIDE: Final = math.log(1.10)
"""wider than this, in the logarithm."""


@dataclass(frozen=True, slots=True)
class NightlySeries:
    """The runs of one test, on one class of GPU, with one model, workload, SLO and set of server arguments.

    Attributes:
        test: pytest's node id.
        name: the requirement's name.
        kind: of measurement.
        gpu_class, model, workload: as declared, for people.
        simulated: from a simulator; never mixed with measured ones.
        imported: the tool and the load of points of another tool; empty for what this plugin measured. Never mixed.
        identity: all that must agree, as one text.
        points: the runs, oldest first. A run whose interval is far wider than the series' own (and beyond 10%) is shown
            and otherwise ignored.
        results: those of the points, in the same order.
        figure: what the points' figures are, where they are no rates but of a limit beside it.
        start: of which starts a start-up is: those that compiled, or those that found what was compiled before.
        floor: added to every figure before logarithms are taken.
    """

    test: str
    name: str
    kind: ResultKind
    gpu_class: str
    model: str
    workload: str
    simulated: bool
    identity: str
    points: tuple[TrendPoint, ...]
    results: tuple[Result, ...] = field(repr=False)
    figure: SecondaryName | None = None
    start: Literal["cold", "warm"] | None = None
    floor: float = 0.0
    imported: str = ""

    def changed_between(self, first: int, last: int) -> tuple[str, ...]:
        """What else changed from any of these runs to the next, as ``name: before -> after``."""
        lines: dict[str, None] = {}
        for index in range(first, last):
            lines |= dict.fromkeys(changed(self.results[index], self.results[index + 1]))
            before, after = (self.points[each].versions.get(_GPU) for each in (index, index + 1))
            if before and after and before != after:
                lines[f"{_GPU}: {before} -> {after}"] = None
        return tuple(lines)


def read_folder(folder: Path) -> tuple[list[Run], list[str]]:
    """Every result file in a folder and below, oldest first, and one line for each file that is none.

    Raises:
        NotADirectoryError: if there is no such folder.
    """
    if not is_folder(folder):
        raise NotADirectoryError(f"there is no folder {shown_path(folder)}")
    runs, skipped = [], []
    # os.walk: a folder that disappears or may not be read is left out.
    below = (Path(place) / name for place, _, names in os.walk(folder) for name in names if name.endswith(SUFFIX))
    for path in sorted(below):
        # Files that are being written have names with a leading dot.
        if path.name.startswith(".") or not is_file(path):
            continue
        try:
            runs.append(read_run(path))
        except ResultFileError as error:
            skipped.append(str(error))
    return oldest_first(runs), skipped


def series_of(runs: Iterable[Run]) -> tuple[list[NightlySeries], list[str]]:
    """The series in these runs, and one line for each result that cannot be used.

    Results without a sustainable rate, and those that are not to be trusted, show nothing about capacity and are left
    out without a line. A test that was measured twice in one session (its confirming run) has two points.

    Args:
        runs: in any order.
    """
    grouped: dict[str, list[Member]] = {}
    seen: dict[tuple[datetime, str, int, Interval], Path] = {}
    unused = []
    for run in oldest_first(runs):
        for number, result in enumerate(run.results, 1):
            rate = _rate(result)
            if rate is None or not result.trusted:
                continue
            if not (rate.value > 0 and rate.low > 0 and math.isfinite(rate.high)):
                unused.append(f"{run.path}: result {number} has no closed interval of its sustainable rate")
                continue
            key = identity_of(result)
            # A session's own result file and the copies made of it are one run.
            when = run.started if result.imported is None else result.imported.started or run.started
            first = seen.setdefault((when, key, result.seed, rate), run.path)
            if first != run.path:
                unused.append(f"{run.path}: result {number} is also in {first}")
                continue
            grouped.setdefault(key, []).append(Member(when, run, result, rate))
    found = [_series(identity, members) for identity, members in grouped.items()]
    return sorted(found, key=lambda series: (series.simulated, series.test, series.identity)), unused


class Member(NamedTuple):
    """One point of a series: when it was measured, where it stands, and its rate (or another figure)."""

    when: datetime
    run: Run
    result: Result
    rate: Interval


def _rate(result: Result) -> Interval | None:
    """The sustainable rate; of a point of another tool, which has no interval, its rate alone."""
    point = point_rate(result)
    return result.sustainable_rate if point is None else Interval(point, point, point)


def identity_of(result: Result) -> str:
    """What must be equal for two rates to be about the same thing: test, kind, and all that `identity` holds."""
    # Builds that report more than others (the type of the weights) must not break a series in two, and an argument
    # that is left out is the same as one that is switched off.
    names = identity(result, told=Told.TRACE)
    told = {key.name: value for key, value in names.items() if value not in {"none", "", "false"}}
    return json.dumps({"test": result.test, "kind": result.kind, **told}, sort_keys=True)


def _series(identity: str, members: Sequence[Member]) -> NightlySeries:
    # One file may hold points of many nights.
    members = sorted(members, key=lambda member: member.when)
    widths = [math.log(member.rate.high / member.rate.low) / 2 for member in members]
    widest = max(WIDE, FAR_TOO_WIDE * statistics.median(widths))
    return series_from(members, [width <= widest for width in widths], identity)


def series_from(members: Sequence[Member], judged: Sequence[bool], identity: str) -> NightlySeries:
    """The series of results that belong together.

    Args:
        members: the oldest first.
        judged: whether each is known well enough to be compared.
        identity: all that agrees in them, as one text.
    """
    newest = members[-1].result
    points: list[TrendPoint] = []
    night, first = -1, None
    for (started, run, result, rate), good in zip(members, judged, strict=True):
        if first is None or started - first > NIGHT:
            night, first = night + 1, started
        when = started.replace(microsecond=0)
        versions = _versions(result.environment)
        points.append(TrendPoint(when, str(run.path), night, rate, good, versions))
    return NightlySeries(
        test=newest.test,
        name=newest.name,
        kind=newest.kind,
        gpu_class=newest.environment.gpu_class or newest.environment.gpu or UNKNOWN,
        model=newest.environment.model or UNKNOWN,
        workload=_workload(newest.workload),
        simulated=newest.simulated,
        identity=identity,
        points=tuple(points),
        results=tuple(member.result for member in members),
        imported="" if newest.imported is None else f"points of {newest.imported.tool}, without an interval",
    )


def _workload(workload: DeclaredWorkload) -> str:
    return f"{workload.input_tokens} tokens in, {workload.tokens_out} out, {workload.arrivals}"


def _versions(environment: Environment) -> dict[str, str]:
    """What a reader wants to see of one run, by the name that people read."""
    named = {
        "server": environment.server,
        "driver": environment.driver,
        "plugin": environment.plugin,
        _GPU: ", ".join(device.uuid for device in environment.devices if device.uuid),
        "host": environment.host,
    }
    return {name: value for name, value in named.items() if value}
