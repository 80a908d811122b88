"""Who uses a device: processes and memory, a server's own processes and others, and memory that must come back."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.classes import GIB
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.nvml import FieldReader, NvmlUnavailable, handle_of, memory_used, nvml_session, process_list

IDLE_SHARE, IDLE_BYTES = 0.02, 512 * 2**20
"""An idle device uses less than 2% of its memory or 512 MiB, whichever is more: the driver's own."""
IDLE_OPTION = "--gpucap-gpu-idle"
RETURN_SLACK_BYTES = 64 * 2**20
"""Memory that the driver may keep after the first use of a device."""
RETURN_POLL_S = 0.25
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the first PID namespace (PROC_PID_INIT_INO in the kernel's proc_ns.h)."""


class MemoryNotReturned(GpuCapError):  # noqa: N818 - reads as what is wrong
    """The server ended and its memory did not come back in time; the message names who has it."""

    needs_traceback = False


@dataclass(frozen=True, slots=True)
class IdleMemory:
    """Memory that a device may have in use and still count as free: a desktop's display server is never gone.

    Attributes:
        bytes: as a number; or
        share: of the device's memory, 0 to 1.
    """

    bytes: int | None = None
    share: float | None = None

    def of(self, memory_bytes: int | None) -> int | None:
        """The bytes of a device with that much memory; None if they cannot be known."""
        if self.bytes is not None:
            return self.bytes
        return None if memory_bytes is None or self.share is None else int(self.share * memory_bytes)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute process on a device. The pid is the driver's; in a container it may be in another PID namespace."""

    pid: int
    memory_bytes: int | None

    def describe(self) -> str:
        """``pid 123 (alice, 12.3 GiB)``."""
        memory = "memory not told" if self.memory_bytes is None else f"{self.memory_bytes / GIB:.1f} GiB"
        return f"pid {self.pid} ({user_of(self.pid) or 'of another PID namespace, or just ended'}, {memory})"


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What a device holds now; None where NVML does not tell."""

    device: Device
    processes: tuple[GpuProcess, ...] | None
    memory_used_bytes: int | None
    memory_bytes: int | None

    @property
    def free(self) -> bool:
        """No process is on it, and no more memory is used than an idle driver keeps."""
        if self.memory_used_bytes is None or self.memory_bytes is None:
            return not self.processes
        return not self.processes and self.memory_used_bytes <= max(IDLE_BYTES, IDLE_SHARE * self.memory_bytes)

    def free_within(self, idle: IdleMemory | None) -> bool:
        """Whether it counts as free where `idle` memory may be in use, by whichever process; None: see `free`."""
        limit = None if idle is None else idle.of(self.memory_bytes)
        if limit is None or self.memory_used_bytes is None:
            return self.free
        return self.memory_used_bytes <= limit

    def describe(self) -> str:
        """One clause on who uses it, with pid, user and memory."""
        if self.processes:
            return f"{self.device.label} is used by " + ", ".join(process.describe() for process in self.processes)
        if self.memory_used_bytes is None:
            return f"{self.device.label}: NVML tells neither processes nor memory"
        in_use = f"{self.memory_used_bytes / GIB:.1f} GiB of its memory in use"
        return f"{self.device.label} has {in_use}, and NVML names no process (another container?)"


def occupancy_of(device: Device) -> Occupancy:
    """Ask NVML who uses a device. Without NVML nothing is known, and the device counts as free."""
    try:
        with nvml_session() as pynvml:
            reader = FieldReader(pynvml)
            handle = reader.ask("handle", handle_of, pynvml, device.uuid)
            if handle is None:
                return Occupancy(device, None, None, None)
            processes = reader.ask("processes", process_list, pynvml, handle)
            memory = reader.ask("memory", memory_used, pynvml, handle)
    except NvmlUnavailable:
        return Occupancy(device, None, None, None)
    return Occupancy(
        device,
        None if processes is None else tuple(GpuProcess(pid, memory) for pid, memory in processes),
        memory and memory[0],
        memory and memory[1],
    )


def user_of(pid: int) -> str | None:
    """The user who owns a process; None if there is no such process here."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - the owner of the directory is the process's user
    except OSError:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


class Neighbours:
    """Tells the server's processes on one device from those of others.

    Inside a container the driver may name processes by the host's pids, which tell nothing about the server's. The
    device was free when it was leased. So the first processes with unknown pids are taken for the server's, if they are
    no more than the server has; any later one is a neighbour.

    Args:
        contained: whether our pids may differ from the driver's; None: find out.
        tolerated: pids that were on the device when it was leased, and were allowed there.
    """

    def __init__(self, *, contained: bool | None = None, tolerated: Iterable[int] = ()) -> None:
        self._contained = in_container() if contained is None else contained
        self._tolerated = frozenset(tolerated)
        self._adopted: frozenset[int] | None = None

    def strangers(self, listed: Sequence[GpuProcess], ours: frozenset[int]) -> list[GpuProcess]:
        """The processes in `listed` that are not the server's; `ours`: the server's pids in our namespace."""
        listed = [process for process in listed if process.pid not in self._tolerated]
        pids = {process.pid for process in listed}
        if self._adopted is None and pids and self._contained and not pids & ours and len(pids) <= len(ours):
            self._adopted = frozenset(pids)
        known = ours | (self._adopted or frozenset())
        return [process for process in listed if process.pid not in known]


def in_container() -> bool:
    """Whether our pids may differ from the machine's."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino != _INITIAL_PID_NAMESPACE
    except OSError:
        return True


def wait_memory_returned(
    devices: Sequence[Device], baseline: Mapping[str, int], pids: Iterable[int], timeout_s: float
) -> float:
    """Wait until none of `pids` is on the devices any more and their memory is back to `baseline`.

    Args:
        devices: those that the server had.
        baseline: UUID -> bytes used before the server started, such as `Lease.baseline`.
        pids: every process that the server ever had.
        timeout_s: how long to wait.

    Returns:
        Seconds waited.

    Raises:
        MemoryNotReturned: if processes or memory are still there after that time.
    """
    ours = set(pids)
    start = time.monotonic()
    while True:
        late = _not_returned(devices, baseline, ours)
        waited = time.monotonic() - start
        if not late:
            return waited
        if waited >= timeout_s:
            raise MemoryNotReturned(f"GPU memory did not come back within {timeout_s:g} s of the server's end: {late}")
        time.sleep(RETURN_POLL_S)


def _not_returned(devices: Sequence[Device], baseline: Mapping[str, int], ours: set[int]) -> str:
    complaints = []
    for seen in map(occupancy_of, devices):
        mine = [process for process in seen.processes or () if process.pid in ours]
        if mine:
            complaints.append(f"{seen.device.label} still has {', '.join(process.describe() for process in mine)}")
            continue
        used, before = seen.memory_used_bytes, baseline.get(seen.device.uuid)
        if used is not None and before is not None and used > before + RETURN_SLACK_BYTES:
            complaints.append(
                f"{seen.device.label} has {used / GIB:.1f} GiB in use, {before / GIB:.1f} GiB before the server; "
                + (seen.describe() if seen.processes else "NVML names no process")
            )
    return "; ".join(complaints)
