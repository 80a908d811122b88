"""Watches the host during a measurement: who used its cores, and whether the measurement's processes had theirs.

In a container ``/proc/stat`` counts the host's cores while ``/proc`` lists the container's processes. So both are read:
what the cores did, less what this measurement's processes used, is what others used, and the processes that can be seen
give it names. Only cores that the measurement may run on count.

A measurement's own processes are pytest, the server, and all that these two started. Another worker of pytest-xdist is
another session.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from pytest_gpucap.engines.answering import port_of
from pytest_gpucap.results.problems import Problem, ProblemKind
from pytest_gpucap.results.telemetry import HostSummary, OtherProcess
from pytest_gpucap.telemetry.host_files import (
    KERNEL_THREADS,
    CpuTimes,
    HostFiles,
    Pressure,
    Process,
    Quota,
    Throttling,
)
from pytest_gpucap.telemetry.host_health import (
    IDLE_CORES,
    IDLE_SHARE,
    SPARE_CORES,
    UNSEEN_CORES,
    host_problems,
)
from pytest_gpucap.telemetry.serving import OwnServer, with_descendants
from pytest_gpucap.telemetry.time_series import TimeSeries, counter_growth, known_mean

HOST_PERIOD_S: Final = 1.0
LONGEST_HOST_PERIOD_S: Final = 10.0
HOST_SHARE: Final = 0.002
"""Share of one core for reading the host. A reading looks at every process, so it takes longer on a large machine, and
is then taken less often."""
LOOK_AGAIN_S: Final = 5.0
"""How often the server's processes, quotas and connections are looked up."""
_COUNTERS: Final = (
    # Seconds since the watch began, added up over cores.
    "busy_s",
    "idle_s",
    "steal_s",
    "own_s",
    "others_s",
    "unseen_s",
    "disturbing_s",
    # Seconds of the clock since the watch began.
    "waiting_s",
    "memory_stalled_s",
    "heated_s",
)
HOST_FIELDS: Final = (*_COUNTERS, "clock_mhz", "base_clock_mhz")
QUOTA_FIELDS: Final = ("periods", "throttled_periods", "throttled_s", "used_s")
_NAMED: Final = 5
"""So many other processes are named."""
_WORTH_NAMING: Final = 0.02
"""Cores that a process must use in a reading to be followed by name."""
_MOST_FOLLOWED: Final = 1000
_BUSY_CORE: Final = 0.5
"""The clock of a core counts while it is busy for this share of the time: idle cores clock down."""


@dataclass(slots=True)
class _Reading:
    """The host at a moment."""

    time_s: float
    cores: Mapping[int, CpuTimes]
    processes: Mapping[int, Process]
    pressure: Pressure | None
    memory: Pressure | None
    heated_s: float | None = None


@dataclass(slots=True)
class _WatchedQuota:
    quota: Quota
    series: TimeSeries = field(default_factory=lambda: TimeSeries(QUOTA_FIELDS))


@dataclass(frozen=True, slots=True)
class _QuotaFigures:
    """What `HostSummary` says of a quota."""

    cores: float | None = None
    throttled: float | None = None
    throttled_cores: float | None = None
    other_cores: float | None = None


@dataclass(slots=True)
class _Followed:
    """An other process that was busy at some time, and its CPU time since it is followed."""

    name: str
    used_s: float = 0.0
    series: TimeSeries = field(default_factory=lambda: TimeSeries(("cpu_s",)))


class HostWatch:
    """Reads the host at every `sample`, and judges windows that were measured.

    Args:
        base_url: of the server, on this machine; None: its processes are known otherwise.
        strict: a disturbance makes the window invalid; otherwise it is only reported.
        clock: seconds, monotonic; the clock of the windows.
        files: of the machine.
        pid: of the process that measures.
        server: finds the server's processes by its port; made from `base_url` by default.

    Attributes:
        server_pids: the server's processes as far as the engine knows them.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        strict: bool = True,
        clock: Callable[[], float] = time.monotonic,
        files: HostFiles | None = None,
        pid: int | None = None,
        server: OwnServer | None = None,
    ) -> None:
        self.server_pids: frozenset[int] = frozenset()
        self.series = TimeSeries(HOST_FIELDS)
        self._strict, self._clock = strict, clock
        self._files = files or HostFiles()
        self._pid = os.getpid() if pid is None else pid
        self._server = server or OwnServer(None if base_url is None else port_of(base_url))
        self._own: dict[int, int] = {}
        """Own processes by id, with their start: a process stays one of ours when its parent has ended."""
        self._allowed: frozenset[int] = frozenset()
        self._before: _Reading | None = None
        self._totals = dict.fromkeys(_COUNTERS, 0.0)
        self._group: Path | None = None
        self._quotas: dict[Path, _WatchedQuota] = {}
        self._followed: dict[tuple[int, int], _Followed] = {}
        self._look_due_s = -math.inf
        self._judged: list[tuple[float, float, Problem]] = []
        self._lock = threading.Lock()

    def sample(self) -> None:
        """Read the host once now."""
        with self._lock:
            self._sample()

    def problems(self, start_s: float, end_s: float) -> list[Problem]:
        """Why a measurement in that window cannot be trusted; none if it can, or if nobody wants to know."""
        with self._lock:
            if self._before is None or self._before.time_s < end_s:
                self._sample()  # otherwise the last seconds of the window would be unknown
        found = host_problems(self._figures(start_s, end_s), end_s - start_s)
        self._judged += [(start_s, end_s, problem) for problem in found]
        return found if self._strict else []

    def summary(self, start_s: float, end_s: float) -> HostSummary:
        """The host over a window, with what was wrong in the windows inside it that were judged."""
        wrong: dict[ProblemKind, list[Problem]] = defaultdict(list)
        for since_s, until_s, problem in self._judged:
            if since_s < end_s and until_s > start_s:
                wrong[problem.kind].append(problem)
        told = tuple(
            replace(first, text=f"{first.text}; so in {len(others) + 1} windows" if others else first.text)
            for first, *others in wrong.values()
        )
        return replace(self._figures(start_s, end_s), disturbances=told)

    def _sample(self) -> None:
        now_s = self._clock()
        processes = self._files.processes()
        self._adopt(processes)
        if now_s >= self._look_due_s:
            self._look(now_s, processes)
        self._allowed = frozenset().union(*(self._files.cores_of(pid) for pid in self._own)) or self._allowed
        now = _Reading(
            now_s,
            self._files.core_times(),
            processes,
            self._files.cpu_pressure(self._group),
            self._files.memory_pressure(),
        )
        before, self._before = self._before, now
        now.heated_s = self._files.heated_s(self._cores(now))
        if before is None:
            self.series.append(now_s, [0.0] * len(self._totals) + [nan, nan])  # counters begin here; clocks come later
        elif now_s > before.time_s and self._pid in processes:  # without a process list nothing can be told apart
            self._add(before, now)
        for watched in self._quotas.values():
            told = self._files.throttling(watched.quota)
            if told is not None:
                watched.series.append(now_s, _row(told))

    def _look(self, now_s: float, processes: Mapping[int, Process]) -> None:
        """Look up what changes seldom."""
        self._look_due_s = now_s + LOOK_AGAIN_S
        self._server.look(processes, frozenset(self._own))
        self._adopt(processes)
        self._group = self._files.group_of(self._pid)
        for pid in {self._pid, *self.server_pids, *self._server.pids}:
            for quota in self._files.quotas(pid):
                self._quotas.setdefault(quota.folder, _WatchedQuota(quota)).quota = quota

    def _adopt(self, processes: Mapping[int, Process]) -> None:
        """Find the measurement's own processes: those known, and all that descend from them."""
        known = {pid for pid, started in self._own.items() if pid in processes and processes[pid].started == started}
        own = with_descendants({self._pid, *self.server_pids, *self._server.pids, *known}, processes)
        self._own = {pid: processes[pid].started for pid in own}

    def _cores(self, reading: _Reading) -> frozenset[int]:
        """The cores that count: those that the measurement may run on, as far as the kernel counts their time."""
        counted = frozenset(reading.cores)
        # Where the cores of a container have numbers of their own, all of them are its cores.
        return self._allowed if self._allowed and self._allowed <= counted else counted

    def _add(self, before: _Reading, now: _Reading) -> None:
        """Add what happened between two readings to the totals."""
        seconds = now.time_s - before.time_s
        cores = self._cores(now)
        told = {core: _grown(before.cores[core], now.cores[core]) for core in cores if core in before.cores}
        growth = _used_by(before.processes, now.processes)
        kernel = _kernel_threads(now.processes)
        own_s = sum(used for pid, used in growth.items() if pid in self._own)
        others = {
            pid: used
            for pid, used in growth.items()
            if pid not in self._own and pid not in kernel and self._meets(pid, used / seconds, now)
        }
        seen_s, unseen_s = sum(others.values()), 0.0
        if told:
            busy_s, idle_s, steal_s = (sum(column) for column in zip(*told.values(), strict=True))
            beyond_s = max(0.0, busy_s - own_s - sum(growth.get(pid, 0.0) for pid in kernel))
            if len(cores) < len(now.cores):
                seen_s = min(seen_s, beyond_s)  # the rest was on other cores
            if not kernel and beyond_s - seen_s > UNSEEN_CORES * seconds:
                unseen_s = beyond_s - seen_s
        else:
            busy_s, steal_s = own_s + seen_s, nan
            idle_s = max(0.0, (len(self._allowed) or 1) * seconds - busy_s)
        waiting_s = (
            nan if now.pressure is None or before.pressure is None else now.pressure.some_s - before.pressure.some_s
        )
        stalled_s = nan if now.memory is None or before.memory is None else now.memory.full_s - before.memory.full_s
        others_s = seen_s + unseen_s if self._server.known else nan
        taken = _taken(idle_s / seconds, max(1, len(cores) or len(self._allowed)), waiting_s / seconds)
        now.heated_s = self._files.heated_s(cores)
        heated_s = nan if now.heated_s is None or before.heated_s is None else now.heated_s - before.heated_s
        added = (busy_s, idle_s, steal_s, own_s, others_s, unseen_s, others_s * taken, waiting_s, stalled_s, heated_s)
        for name, value in zip(_COUNTERS, added, strict=True):
            self._totals[name] += 0.0 if math.isnan(value) else value
        counted = [
            nan if math.isnan(value) else self._totals[name] for name, value in zip(_COUNTERS, added, strict=True)
        ]
        busy = [core for core, times in told.items() if times.busy_s >= _BUSY_CORE * seconds]
        clock, base = self._files.clock_mhz(busy) or (nan, nan)
        self.series.append(now.time_s, [*counted, clock, nan if base is None else base])
        if self._server.known:
            self._follow(others, before, now)

    def _meets(self, pid: int, cores: float, reading: _Reading) -> bool:
        """Whether an other process may run on the cores that count. Only for a busy one it is worth asking."""
        counted = self._cores(reading)
        if cores < _WORTH_NAMING or len(counted) == len(reading.cores):
            return True
        allowed = self._files.cores_of(pid)
        return not allowed or bool(allowed & counted)

    def _follow(self, others: Mapping[int, float], before: _Reading, now: _Reading) -> None:
        """Keep the CPU time of other processes that are worth a name."""
        for pid, used_s in others.items():
            key = pid, now.processes[pid].started
            followed = self._followed.get(key)
            if followed is None:
                if used_s < _WORTH_NAMING * (now.time_s - before.time_s) or len(self._followed) >= _MOST_FOLLOWED:
                    continue
                followed = self._followed[key] = _Followed(self._files.title(now.processes[pid]))
                followed.series.append(before.time_s, (0.0,))
            followed.used_s += used_s
            followed.series.append(now.time_s, (followed.used_s,))

    def _figures(self, start_s: float, end_s: float) -> HostSummary:
        columns = self.series.all()

        def mean(name: str) -> float | None:
            grown = counter_growth(columns["time_s"], columns[name], start_s, end_s)
            return None if grown is None else grown[0] / grown[1]

        # A clock is that of the time before its reading.
        window = self.series.window(math.nextafter(start_s, math.inf), end_s)
        steal, busy = mean("steal_s"), mean("busy_s")
        wanted = None if steal is None or busy is None else steal + busy
        before = self._before
        own, others = mean("own_s"), mean("others_s")
        quota = self._quota(start_s, end_s, own)
        return HostSummary(
            readings=int(window["time_s"].size),
            cores=max(1, len(self._allowed if before is None else self._cores(before) or self._allowed)),
            busy_cores=busy,
            idle_cores=mean("idle_s"),
            own_cores=own,
            other_cores=others,
            unseen_cores=None if others is None else mean("unseen_s"),
            disturbing_cores=mean("disturbing_s"),
            others=self._busiest(start_s, end_s),
            stolen=steal / wanted if steal is not None and wanted else None,
            stolen_cores=steal,
            waiting=mean("waiting_s"),
            memory_stalled=mean("memory_stalled_s"),
            clock_mhz=known_mean(window["clock_mhz"]),
            base_clock_mhz=known_mean(window["base_clock_mhz"]),
            heated=mean("heated_s"),
            quota_cores=quota.cores,
            quota_other_cores=quota.other_cores,
            throttled=quota.throttled,
            throttled_cores=quota.throttled_cores,
        )

    def _busiest(self, start_s: float, end_s: float) -> tuple[OtherProcess, ...]:
        found = []
        for (pid, _), followed in self._followed.copy().items():
            columns = followed.series.all()
            grown = counter_growth(columns["time_s"], columns["cpu_s"], start_s, end_s)
            if grown is not None and grown[0] >= _WORTH_NAMING * (end_s - start_s):
                found.append(OtherProcess(pid, followed.name, grown[0] / (end_s - start_s)))
        return tuple(sorted(found, key=lambda process: -process.cores)[:_NAMED])

    def _quota(self, start_s: float, end_s: float, own: float | None) -> _QuotaFigures:
        """The figures of the quota that held the processes back most, else of the tightest; none without a quota."""
        found = []
        for watched in self._quotas.copy().values():
            columns = watched.series.all()
            grown = {name: counter_growth(columns["time_s"], columns[name], start_s, end_s) for name in QUOTA_FIELDS}
            periods, throttled = grown["periods"], grown["throttled_periods"]
            held, used = grown["throttled_s"], grown["used_s"]
            found.append(
                _QuotaFigures(
                    cores=watched.quota.cores,
                    throttled=throttled[0] / periods[0] if periods and throttled and periods[0] else None,
                    throttled_cores=held[0] / held[1] if held else None,
                    other_cores=max(0.0, used[0] / used[1] - own) if used and own is not None else None,
                )
            )
        worst = min(found, key=lambda each: (-(each.throttled or 0.0), each.cores or 0.0), default=None)
        return worst or _QuotaFigures()


def _row(told: Throttling) -> tuple[float, float, float, float]:
    return told.periods, told.throttled_periods, told.throttled_s, nan if told.used_s is None else told.used_s


def _taken(idle_cores: float, cores: int, waiting: float) -> float:
    """How much of what others used was missing to the measurement, 0 to 1."""
    if idle_cores < max(IDLE_CORES, IDLE_SHARE * cores):
        return 1.0
    if idle_cores < SPARE_CORES and not math.isnan(waiting):
        return min(1.0, max(0.0, waiting))
    return 0.0


def _grown(before: CpuTimes, now: CpuTimes) -> CpuTimes:
    """The times between two readings. The kernel may take back a little of the idle time."""
    return CpuTimes(*(max(0.0, new - old) for old, new in zip(before, now, strict=True)))


def _kernel_threads(processes: Mapping[int, Process]) -> frozenset[int]:
    """All kernel threads; none where they cannot be seen, and then neither can other containers."""
    root = processes.get(KERNEL_THREADS)
    if root is None or root.name != "kthreadd":
        return frozenset()
    return frozenset(pid for pid, each in processes.items() if KERNEL_THREADS in {pid, each.parent})


def _used_by(before: Mapping[int, Process], now: Mapping[int, Process]) -> dict[int, float]:
    """CPU seconds of every living process between two readings, with those of its children that ended meanwhile."""
    used: dict[int, float] = {}
    ended: dict[int, float] = {}
    for pid, process in now.items():
        old = before.get(pid)
        known = old is not None and old.started == process.started
        used[pid] = max(0.0, process.cpu_s - (old.cpu_s if known and old else 0.0))
        ended[pid] = max(0.0, process.children_s - (old.children_s if known and old else 0.0))
    # A parent's figure holds the whole life of a child that ended. What the child used before is taken off again, from
    # the parent or, if that has ended too, from whoever waited for the child instead.
    for pid, process in before.items():
        if pid in now and now[pid].started == process.started:
            continue
        owed, parent = process.cpu_s + process.children_s, process.parent
        for _ in range(len(before)):
            if parent in ended:
                taken = min(owed, ended[parent])
                ended[parent] -= taken
                owed -= taken
            if owed <= 0 or parent not in before:
                break
            parent = before[parent].parent
    return {pid: used[pid] + ended[pid] for pid in used}
