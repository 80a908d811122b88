"""What the kernel says of the host: CPU times, processes, pressure, quotas, clocks.

Every reader gives None, or nothing, where the kernel does not tell: without pressure information, in a sandbox whose
``/proc/stat`` holds zeros, on a virtual machine without clocks. Formats: proc(5), ``Documentation/accounting/psi.rst``
and ``Documentation/admin-guide/cgroup-v2.rst`` of the Linux kernel.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
KERNEL_THREADS: Final = 2
"""The process id of the parent of all kernel threads, wherever they can be seen."""
_STAT_BYTES: Final = 4096
_INTERPRETERS: Final = ("bash", "java", "node", "perl", "python", "ruby", "sh")
_WITH_VALUE: Final = frozenset({"-X", "-W", "-cp", "-classpath", "-r", "--require"})
"""Their arguments that are followed by something else than the script."""
_CLOCKED_CORES: Final = 4
"""So many cores are asked for their clock: on some machines an answer interrupts the core."""


class CpuTimes(NamedTuple):
    """Seconds since the start of the machine, all cores of a set together.

    `busy` is the time of processes. Interrupts are not in it: nobody can say whose they are.
    """

    busy_s: float
    idle_s: float
    steal_s: float


class Process(NamedTuple):
    """One process.

    Attributes:
        started: when, in clock ticks since the start of the machine. With the id it names a process for good.
        cpu_s: CPU time of the process.
        children_s: CPU time of its children that have ended and that it has waited for.
    """

    pid: int
    name: str
    parent: int
    started: int
    cpu_s: float
    children_s: float


class Pressure(NamedTuple):
    """Seconds in which at least one task waited (`some_s`), and in which all tasks that had work did (`full_s`)."""

    some_s: float
    full_s: float


class Throttling(NamedTuple):
    """Counters of one CPU quota. `throttled_s` is added up over cores; `used_s` is None where it is not told."""

    periods: float
    throttled_periods: float
    throttled_s: float
    used_s: float | None


@dataclass(frozen=True, slots=True)
class Quota:
    """A control group with a CPU quota.

    Attributes:
        folder: of its files.
        cores: the quota over its period.
    """

    folder: Path
    cores: float


class HostFiles:
    """The files of a machine.

    Args:
        proc: where procfs is mounted.
        cpus: the folder of the cores in sysfs.
    """

    def __init__(self, proc: Path = Path("/proc"), cpus: Path = Path("/sys/devices/system/cpu")) -> None:
        self._proc, self._cpus = proc, cpus

    def cores_of(self, pid: int) -> frozenset[int]:
        """The cores that a process may run on; empty if that is not known."""
        try:
            return frozenset(os.sched_getaffinity(pid))
        except (OSError, AttributeError):  # it has ended, or the system has no affinity
            return frozenset()

    def core_times(self) -> dict[int, CpuTimes]:
        """The times of every core; empty where the kernel does not count them."""
        found = {}
        for line in _text(self._proc / "stat").splitlines():
            if not line.startswith("cpu"):
                break
            name, *fields = line.split()
            if name == "cpu":
                continue
            with suppress(ValueError, IndexError):
                user, nice, system, idle, waiting = (float(field) for field in fields[:5])
                steal = float(fields[7]) if len(fields) > 7 else 0.0  # noqa: PLR2004 - the eighth field
                found[int(name[3:])] = CpuTimes(
                    (user + nice + system) / _TICKS_PER_S, (idle + waiting) / _TICKS_PER_S, steal / _TICKS_PER_S
                )
        return found if any(any(times) for times in found.values()) else {}

    def processes(self) -> dict[int, Process]:
        """All processes that can be seen from here, by id; those that end meanwhile are left out."""
        found = {}
        for entry in _names(self._proc):
            if entry.isdecimal() and (process := self._process(entry)) is not None:
                found[process.pid] = process
        return found

    def _process(self, pid: str) -> Process | None:
        try:
            file = os.open(f"{self._proc}/{pid}/stat", os.O_RDONLY)
        except OSError:
            return None
        try:
            line = os.read(file, _STAT_BYTES)
        except OSError:
            return None
        finally:
            os.close(file)
        # The name in parentheses may hold anything, so the last parenthesis ends it.
        head, _, rest = line.rpartition(b")")
        try:
            fields = rest.split()
            user, system, children_user, children_system = (int(field) for field in fields[11:15])
            return Process(
                int(pid),
                head.partition(b"(")[2].decode(errors="replace"),
                int(fields[1]),
                int(fields[19]),
                (user + system) / _TICKS_PER_S,
                (children_user + children_system) / _TICKS_PER_S,
            )
        except (ValueError, IndexError):
            return None

    def title(self, process: Process) -> str:
        """A process's name; of an interpreter also its script or module, but no arguments, which may be secret."""
        if not process.name.startswith(_INTERPRETERS):
            return process.name
        arguments = iter(_text(self._proc / str(process.pid) / "cmdline").split("\0")[1:])
        for argument in arguments:
            if argument == "-c":
                break
            if argument in _WITH_VALUE:
                next(arguments, None)
            elif argument == "-m":
                return f"{process.name} {next(arguments, '')}".strip()
            elif not argument.startswith("-"):
                return f"{process.name} {Path(argument).name}".strip()
        return process.name

    def memory_pressure(self) -> Pressure | None:
        """The machine's pressure on memory."""
        return _pressure(self._proc / "pressure" / "memory")

    def cpu_pressure(self, group: Path | None) -> Pressure | None:
        """The CPU pressure of a control group, by its folder; of the machine without one, or if it does not tell."""
        own = None if group is None else _pressure(group / "cpu.pressure")
        return own or _pressure(self._proc / "pressure" / "cpu")

    def group_of(self, pid: int) -> Path | None:
        """The folder of a process's own control group; None for the root group, which is the machine."""
        return next(
            (folder for folder in self._levels(pid) if (folder / "cgroup.type").exists()), None
        )  # the root has no type

    def quotas(self, pid: int) -> list[Quota]:
        """The CPU quotas that hold for a process, innermost first."""
        levels = ((folder, _quota_cores(folder)) for folder in self._levels(pid))
        return [Quota(folder, cores) for folder, cores in levels if cores is not None]

    def throttling(self, quota: Quota) -> Throttling | None:
        """The counters of a quota; None if they cannot be read."""
        told = _figures(_text(quota.folder / "cpu.stat"))
        if "nr_periods" not in told or "nr_throttled" not in told:
            return None
        if "usage_usec" in told:
            used_s: float | None = told["usage_usec"] / 1e6
        else:
            # Version 1 counts in a controller of its own, which usually shares the folder.
            used_s = _number(_text(quota.folder / "cpuacct.usage"), 1e9)
        held_s = told["throttled_usec"] / 1e6 if "throttled_usec" in told else told.get("throttled_time", 0.0) / 1e9
        return Throttling(told["nr_periods"], told["nr_throttled"], held_s, used_s)

    def clock_mhz(self, cores: Collection[int]) -> tuple[float, float | None] | None:
        """The mean clock of a few of these cores, and the clock that they are sold with if it is known."""
        clocks, sold = [], []
        for core in sorted(cores)[:_CLOCKED_CORES]:
            folder = self._cpus / f"cpu{core}"
            now = _number(_text(folder / "cpufreq" / "scaling_cur_freq"), 1e3)
            if now is None:
                continue
            clocks.append(now)
            base = _number(_text(folder / "cpufreq" / "base_frequency"), 1e3)
            base = base or _number(_text(folder / "acpi_cppc" / "nominal_freq"), 1.0)
            if base:
                sold.append(base)
        if not clocks:
            return None
        return sum(clocks) / len(clocks), sum(sold) / len(sold) if len(sold) == len(clocks) else None

    def heated_s(self, cores: Collection[int]) -> float | None:
        """Seconds in which heat held the processor back since the start of the machine; None where nobody counts."""
        times = [
            _number(_text(self._cpus / f"cpu{core}" / "thermal_throttle" / "package_throttle_total_time_ms"), 1e3)
            for core in sorted(cores)[:_CLOCKED_CORES]
        ]
        return max((time for time in times if time is not None), default=None)

    def _levels(self, pid: int) -> Iterator[Path]:
        """The folders of the control groups that limit the CPU of a process, innermost first."""
        mounts = list(self._mounts())
        for line in _text(self._proc / str(pid) / "cgroup").splitlines():
            number, controllers, group = (*line.split(":", 2), "", "")[:3]
            second = number == "0" and not controllers
            if not second and "cpu" not in controllers.split(","):
                continue
            for is_second, root, point in mounts:
                if is_second == second:
                    yield from _up_to_mount(group, root, point)

    def _mounts(self) -> Iterator[tuple[bool, str, Path]]:
        """Where control groups are mounted: version 2 or not, the group that is mounted, and the folder."""
        for line in _text(self._proc / "self" / "mountinfo").splitlines():
            place, _, kind = line.partition(" - ")
            fields, source = place.split(), kind.split()
            if len(fields) < 5 or not source:  # noqa: PLR2004 - the mount point is the fifth
                continue
            if source[0] == "cgroup2":
                yield True, fields[3], Path(fields[4])
            elif source[0] == "cgroup" and "cpu" in source[-1].split(","):
                yield False, fields[3], Path(fields[4])


def _up_to_mount(group: str, root: str, point: Path) -> Iterator[Path]:
    """The folders of the groups from `group` up to the one that is mounted at `point`."""
    # In a container the group's name may be the host's, while its folder is mounted as the container's root.
    below = group.removeprefix(root) if root != "/" and f"{group}/".startswith(f"{root}/") else group
    folder = point / below.lstrip("/")
    if not folder.is_dir():
        folder = point
    yield folder
    while folder not in {point, folder.parent}:
        folder = folder.parent
        yield folder


def _quota_cores(folder: Path) -> float | None:
    limit, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not limit:
        limit, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    try:
        cores = float(limit) / float(period)
    except (ValueError, ZeroDivisionError):  # "max", or nothing
        return None
    return cores if cores > 0 else None


def _pressure(path: Path) -> Pressure | None:
    told: dict[str, float] = {}
    for line in _text(path).splitlines():
        kind, _, figures = line.partition(" ")
        with suppress(ValueError):
            told[kind] = float(figures.rpartition("total=")[2]) / 1e6
    return Pressure(told["some"], told.get("full", 0.0)) if "some" in told else None


def _figures(text: str) -> Mapping[str, float]:
    """``name value`` on every line."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        with suppress(ValueError):
            found[name] = float(value)
    return found


def _number(text: str, unit: float) -> float | None:
    try:
        return float(text) / unit
    except ValueError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - a Path for each of thousands of processes costs too much
    except OSError:
        return []


def _text(path: Path) -> str:
    """What a file holds; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
