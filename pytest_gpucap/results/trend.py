"""Trends over the result files of many nights: one `Trend` per series of runs.

``gpucap history --format json`` prints trends in this form, and the HTML page draws its history from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

import msgspec

from pytest_gpucap.results.encoding import Figure
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.results.result import ResultKind
from pytest_gpucap.secondary import METRICS, Bound, SecondaryName

UNKNOWN: Final = "?"
"""In place of a class or a model that nothing tells."""


class AlarmState(StrEnum):
    """The state of the nightly alarm after a run."""

    LEARNING = "learning"
    """There are too few runs since the last change for a comparison."""
    QUIET = "quiet"
    DROP_SUSPECTED = "drop suspected"
    """A drop may have begun; one more run, from a fresh server, confirms or refutes it."""
    RISE_SUSPECTED = "rise suspected"
    DROP = "drop"
    RISE = "rise"


class TrendPoint(msgspec.Struct, frozen=True):
    """One run of a series.

    Attributes:
        when: when the run's session began, with its time zone.
        file: path of its result file.
        night: number of its night, from 0.
        rate: sustainable rate of one replica, req/s; in a trend of another figure that figure, in its own unit.
        judged: whether the rate is known well enough to be compared.
        versions: of server, driver and plugin, and the GPU and host, by name. Unknown ones are left out.
    """

    when: datetime
    file: str
    night: int
    rate: Interval
    judged: bool
    versions: Mapping[str, str]


class Segment(msgspec.Struct, frozen=True):
    """Neighbouring runs on one level.

    Attributes:
        start, stop: the runs are ``points[start:stop]``.
        rate: the level, with its interval, in the unit of the points.
    """

    start: int
    stop: int
    rate: Interval


class LevelChange(msgspec.Struct, frozen=True):
    """One change of level.

    Attributes:
        index: the point at which it most likely began.
        earliest, latest: points between which it began, with 95% confidence.
        ratio: level after over level before.
        confirmed: the point at which the alarm confirmed it; None where only the search over all runs found it.
        changed: what else changed where it may have begun (99.5% confidence), such as ``server: vLLM 0.26.0 -> vLLM
            0.27.0``.
        when, file: those of the point at `index`.
    """

    index: int
    earliest: int
    latest: int
    ratio: Interval
    confirmed: int | None
    changed: tuple[str, ...]
    when: datetime
    file: str


def lower_is_better(figure: SecondaryName | None) -> bool:
    """Whether a figure's limit is at most so much; of the rate (None) more is better."""
    return figure is not None and METRICS[figure].bound is Bound.AT_MOST


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """The trend of one series of runs. All indices count `points`.

    Attributes:
        test: pytest's node id.
        name: of the requirement.
        kind: of measurement.
        gpu_class, model, workload: as text; `?` where it is not known.
        simulated: no real server was measured.
        imported: the tool and the load, of points of another tool, whose rates have no interval; else empty.
        run_sd: run-to-run standard deviation of the logarithm of the rate (0.017 is 1.7%).
        state: of the alarm after the newest run.
        suspected_since: the point from which a change is suspected; None where none is.
        standing: index, among `changes`, of the confirmed change to the worse that has not been recovered: of the rate
            a drop. None where there is none.
        points: the runs, oldest first.
        segments: the levels, oldest first; they cover all points. Empty where no point can be judged.
        changes: between the segments, oldest first: ``changes[i].index == segments[i + 1].start``.
        figure: the keyword of the limit beside the rate whose figures these are; None: they are rates.
        start: of a start-up, which starts these are: ``cold`` ones compiled, ``warm`` ones found what was compiled
            before; None where that is not known.
    """

    test: str
    name: str
    kind: ResultKind
    gpu_class: str
    model: str
    workload: str
    simulated: bool
    run_sd: Figure
    state: AlarmState
    suspected_since: int | None
    standing: int | None
    points: tuple[TrendPoint, ...]
    segments: tuple[Segment, ...]
    changes: tuple[LevelChange, ...]
    figure: SecondaryName | None = None
    start: Literal["cold", "warm"] | None = None
    imported: str = ""

    @property
    def title(self) -> str:
        """One line for people."""
        known = (each for each in (self.gpu_class, self.model, self.workload) if each != UNKNOWN)
        place = ", ".join(known)  # a simulated server may name no model
        kind = "" if self.kind is ResultKind.CHECK else f"{self.kind}() in "
        what = f"{self.what} in " if self.figure is not None else ""
        if self.imported:
            kind, place = "IMPORTED ", f"{place}, {self.imported}"
        return f"{'SIMULATED ' if self.simulated else ''}{what}{kind}{self.test} ({place})"

    @property
    def what(self) -> str:
        """``energy``, ``cold start-up``; ``sustainable rate``."""
        if self.figure is None:
            return "sustainable rate"
        title = METRICS[self.figure].title
        return f"{self.start} {title}" if self.start is not None else title

    @property
    def rise_is_worse(self) -> bool:
        """Whether lower is better."""
        return lower_is_better(self.figure)

    @property
    def standing_drop(self) -> LevelChange | None:
        """The confirmed change to the worse that has not been recovered."""
        return None if self.standing is None else self.changes[self.standing]
