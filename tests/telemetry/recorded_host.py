"""A machine made of files in the formats of procfs and sysfs, in which time passes by hand."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from pytest_gpucap.telemetry.host_files import HostFiles
from pytest_gpucap.telemetry.host_watch import HostWatch

TICKS_PER_S = 100
PYTEST = 100
"""The process that measures."""
SERVER = 101
V2 = "31 23 0:28 / {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 23 0:28 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


class RecordedHost(HostFiles):
    """A machine with so many cores. Processes use them for as long as `run` says."""

    def __init__(self, folder: Path, cores: int = 2, allowed: Collection[int] | None = None) -> None:
        super().__init__(folder / "proc", folder / "cpu")
        self.folder, self.now_s = folder, 1000.0
        self.allowed = {PYTEST: frozenset(range(cores) if allowed is None else allowed)}
        self.times = {core: {"user": 50.0, "idle": 800.0, "steal": 1.0} for core in range(cores)}
        self.alive: dict[int, list[object]] = {}
        self.pressure = {"cpu": (0.0, 0.0), "memory": (0.0, 0.0)}
        self.process(PYTEST, "pytest")
        self.process(SERVER, "vllm", parent=PYTEST)

    def cores_of(self, pid: int) -> frozenset[int]:
        return self.allowed.get(pid, self.allowed[PYTEST])

    def watch(self, *, strict: bool = True) -> HostWatch:
        found = HostWatch(strict=strict, clock=lambda: self.now_s, files=self, pid=PYTEST)
        self.write()
        found.sample()
        return found

    def process(self, pid: int, name: str, parent: int = 1, started: int = 5) -> None:
        self.alive[pid] = [name, parent, started, 0.0, 0.0]

    def whole(self) -> None:
        """All processes of the machine can be seen, and so can its kernel threads."""
        self.process(2, "kthreadd", parent=0)

    def end(self, pid: int, waited_for_by: int | None) -> None:
        """A process ends. Whoever waited for it has its CPU time from then on."""
        _, _, _, cpu_s, children_s = self.alive.pop(pid)
        shutil.rmtree(self.folder / "proc" / str(pid), ignore_errors=True)
        if waited_for_by is not None:
            self.alive[waited_for_by][4] += cpu_s + children_s  # type: ignore[operator]

    def run(
        self,
        watch: HostWatch,
        seconds: float = 5.0,
        *,
        cores: dict[int, float] | None = None,
        stolen: float = 0.0,
        waiting: float = 0.0,
        stalled: float = 0.0,
        unseen: float = 0.0,
        on: Collection[int] | None = None,
    ) -> tuple[float, float]:
        """Time passes, a reading a second; the window.

        Args:
            watch: reads.
            seconds: of time.
            cores: that each process uses.
            stolen: cores that the hypervisor gives to others.
            waiting: share of the time in which a task waits for a core.
            stalled: share of the time in which all tasks wait for memory.
            unseen: cores that processes use which are not listed.
            on: the cores on which all this happens; all by default.
        """
        start_s = self.now_s
        on = list(self.times if on is None else on)
        for _ in range(round(seconds)):
            self.now_s += 1.0
            used = sum((cores or {}).values()) + unseen
            for pid, share in (cores or {}).items():
                self.alive[pid][3] += share  # type: ignore[operator]
            for core, times in self.times.items():
                here = used / len(on) if core in on else 0.0
                times["user"] += here
                times["steal"] += stolen / len(self.times)
                times["idle"] += max(0.0, 1.0 - here - stolen / len(self.times))
            for what, share in (("cpu", waiting), ("memory", stalled)):
                some, full = self.pressure[what]
                self.pressure[what] = some + share, full + share
            self.write()
            watch.sample()
        return start_s, self.now_s

    def write(self) -> None:
        lines = [
            f"cpu{core} {t['user'] * TICKS_PER_S:.0f} 0 0 {t['idle'] * TICKS_PER_S:.0f} 0 0 7 "
            f"{t['steal'] * TICKS_PER_S:.0f} 0 0"
            for core, t in self.times.items()
        ]
        self.put("proc/stat", "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 99 0 7", "ctxt 123"]))
        for what, (some, full) in self.pressure.items():
            self.put(
                f"proc/pressure/{what}",
                f"some avg10=0.00 avg60=0.00 avg300=0.00 total={some * 1e6:.0f}\n"
                f"full avg10=0.00 avg60=0.00 avg300=0.00 total={full * 1e6:.0f}\n",
            )
        for pid, (name, parent, started, cpu_s, children_s) in self.alive.items():
            user, children = (round(seconds * TICKS_PER_S) for seconds in (cpu_s, children_s))  # type: ignore[operator]
            self.put(
                f"proc/{pid}/stat",
                f"{pid} ({name}) S {parent} 1 1 0 -1 4194304 9 0 0 0 {user} 0 {children} 0 20 0 1 0 {started} 1 2 3\n",
            )

    def put(self, path: str, text: str) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group(self, name: str, version: int, root: str = "/", **files: str) -> None:
        """Put the processes into a control group: its name as the process sees it, and its files (``_`` for ``.``)."""
        point = self.folder / "cgroup"
        point.mkdir(exist_ok=True)
        self.put("proc/self/mountinfo", (V2 if version == 2 else V1).format(point=point, root=root))
        for pid in (PYTEST, SERVER):
            self.put(
                f"proc/{pid}/cgroup", f"0::{name}\n" if version == 2 else f"4:cpu,cpuacct:{name}\n1:name=systemd:/\n"
            )
        below = name.removeprefix(root) if root != "/" else name
        for file, text in files.items():
            self.put(f"cgroup{below}/{file.replace('__', '.', 1)}".replace("//", "/"), text)
