"""Runs of many nights -> one series for each thing that was measured again and again."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.history.comparable import TOLD, WEIGHTS, changed, identity
from pytest_gpucap.history.store import Run, oldest_first, read_run
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.record import Record
from pytest_gpucap.results.result_file import ResultFileError

NIGHT: Final = timedelta(hours=8)
"""Runs that start within this time of a night's first run belong to that night: its confirming runs."""

_FAR_TOO_WIDE: Final = 3.0
_WIDE: Final = math.log(1.10)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a series.

    Attributes:
        when: when the run's session began, with its time zone.
        night: number of its night, counted from 0; runs within `NIGHT` of a night's first run share it.
        path: of its file.
        rate: sustainable rate of one replica, req/s.
        judged: whether the rate says enough to be compared; a run whose interval is far wider than the series' own
            (and beyond 10%) is shown and otherwise ignored.
        versions: of server, driver and plugin, and which GPU and host, by name; what is not known is left out.
        record: the whole result, in the form of ``docs/result-file.md``.
    """

    when: datetime
    night: int
    path: Path
    rate: Interval
    judged: bool
    versions: Mapping[str, str]
    record: Record = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class NightlySeries:
    """The runs of one test, on one class of GPU, with one model, workload, SLO and set of server arguments.

    Attributes:
        test: pytest's node id.
        name: the requirement's name.
        kind: of measurement, as in the result file.
        gpu_class, model, workload: as declared, for people.
        simulated: from a simulator; never mixed with measured ones.
        identity: all that must agree, as one text.
        points: oldest first.
    """

    test: str
    name: str
    kind: str
    gpu_class: str
    model: str
    workload: str
    simulated: bool
    identity: str
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """One line for people."""
        place = f"{self.gpu_class}, {self.model}, {self.workload}"
        kind = "" if self.kind == "check" else f"{self.kind}() in "
        return f"{'SIMULATED ' if self.simulated else ''}{kind}{self.test} ({place})"


def read_folder(folder: Path) -> tuple[list[Run], list[str]]:
    """Every result file in a folder and below, oldest first, and one line for each file that is none.

    Raises:
        NotADirectoryError: if there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder}")
    runs, skipped = [], []
    for path in sorted(folder.rglob("*.json")):
        # Names with a leading dot are files that are being written.
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            runs.append(read_run(path))
        except ResultFileError as error:
            skipped.append(str(error))
        except (KeyError, TypeError, AttributeError) as error:
            skipped.append(f"{path}: not in the form of a result file ({type(error).__name__}: {error})")
    return oldest_first(runs), skipped


def series_of(runs: Iterable[Run]) -> tuple[list[NightlySeries], list[str]]:
    """The series in these runs, and one line for each result that cannot be used.

    Results without a sustainable rate, and those that found a problem with themselves, say nothing about capacity and
    are left out without a word. A test that was measured twice in one session (its confirming run) has two points.

    Args:
        runs: in any order.
    """
    grouped: dict[str, list[tuple[Run, Record]]] = {}
    seen: dict[tuple[object, ...], Path] = {}
    unused = []
    for run in oldest_first(runs):
        for number, record in enumerate(run.results, 1):
            try:
                if not _usable(record):
                    continue
                key = _identity(record)
                # A session's own result file and the copies made of it are one run.
                same = (run.started, key, record["seed"], *record["sustainable_rate"].values())
                if seen.setdefault(same, run.path) != run.path:
                    unused.append(f"{run.path}: result {number} is also in {seen[same]}")
                    continue
                grouped.setdefault(key, []).append((run, record))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                unused.append(f"{run.path}: result {number} cannot be read ({type(error).__name__}: {error})")
    found = [_series(identity, members) for identity, members in grouped.items()]
    return sorted(found, key=lambda series: (series.simulated, series.test, series.identity)), unused


def _usable(record: Record) -> bool:
    rate = record["sustainable_rate"]
    if rate is None or record["problems"] or record["outcome"] == "INVALID":
        return False
    return all(float(rate[key]) > 0 for key in ("value", "low", "high"))


def _identity(record: Record) -> str:
    """What must agree for two rates to be about the same thing: test, kind, and all that makes results comparable."""
    # Builds that report more than others (the type of the weights) must not break a series in two, and an argument
    # that is left out is the same as one that is switched off.
    names = identity(record, told=TOLD - WEIGHTS.keys())
    told = {name: value for name, value in names.items() if value not in {"none", "", "false"}}
    return json.dumps({"test": record["test"], "kind": record["kind"], **told}, sort_keys=True)


def _gpu_class(facts: Mapping[str, Any]) -> str:
    return str(facts.get("gpu_class") or facts.get("gpu") or "?")


def _series(identity: str, members: Sequence[tuple[Run, Record]]) -> NightlySeries:
    newest = members[-1][1]
    rates = [_rate(record["sustainable_rate"]) for _, record in members]
    widths = [math.log(rate.high / rate.low) / 2 for rate in rates]
    widest = max(_WIDE, _FAR_TOO_WIDE * statistics.median(widths))
    points, night, first = [], -1, None
    for (run, record), rate, width in zip(members, rates, widths, strict=True):
        if first is None or run.started - first > NIGHT:
            night, first = night + 1, run.started
        points.append(Point(run.started, night, run.path, rate, width <= widest, _versions(record), record))
    return NightlySeries(
        test=newest["test"],
        name=newest["name"],
        kind=newest["kind"],
        gpu_class=_gpu_class(newest["environment"]),
        model=str(newest["environment"].get("model") or "?"),
        workload=_workload(newest["workload"]),
        simulated=bool(newest["simulated"]),
        identity=identity,
        points=tuple(points),
    )


def _rate(rate: Mapping[str, Any]) -> Interval:
    return Interval(*(float(rate[key]) for key in ("value", "low", "high", "confidence")))


def _workload(workload: Mapping[str, Any]) -> str:
    return f"{workload['input_tokens']} tokens in, {workload['output_tokens']} out, {workload['arrivals']}"


def _versions(record: Record) -> dict[str, str]:
    """What a reader wants to see of one run, by the name that a person would give it."""
    facts = record["environment"]
    named = {
        "server": facts.get("server"),
        "driver": facts.get("driver"),
        "plugin": facts.get("plugin"),
        "GPU": ", ".join(str(device["uuid"]) for device in facts.get("devices") or () if device.get("uuid")),
        "host": facts.get("host"),
    }
    return {name: str(value) for name, value in named.items() if value}


def changed_between(before: Point, after: Point) -> list[str]:
    """What else differs between two runs, as ``name: before -> after``."""
    found = changed(before.record, after.record)
    one, other = before.versions.get("GPU"), after.versions.get("GPU")
    return [*found, *([f"GPU: {one} -> {other}"] if one != other and one and other else [])]
