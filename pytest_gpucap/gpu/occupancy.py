"""Who uses a device: processes and memory."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_gpucap.gpu.classes import GIB
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.nvml import NvmlUnavailable, Reader, handle_of, memory_used, process_list, session

IDLE_SHARE, IDLE_BYTES = 0.02, 512 * 2**20
"""An idle device uses less than 2% of its memory or 512 MiB, whichever is more: the driver's own."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute process on a device. The pid is the driver's, which in a container need not mean anything here."""

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
        """No process on it, and no more memory used than an idle driver keeps."""
        return not self.processes and not self._memory_in_use

    @property
    def _memory_in_use(self) -> bool:
        if self.memory_used_bytes is None or self.memory_bytes is None:
            return False
        return self.memory_used_bytes > max(IDLE_BYTES, IDLE_SHARE * self.memory_bytes)

    def describe(self) -> str:
        """One clause on who uses it, with pid, user and memory."""
        if self.processes:
            return f"{self.device.label} is used by " + ", ".join(process.describe() for process in self.processes)
        if self.memory_used_bytes is None:
            return f"{self.device.label}: NVML tells neither processes nor memory"
        in_use = f"{self.memory_used_bytes / GIB:.1f} GiB of its memory in use"
        return f"{self.device.label} has {in_use}, by nobody that NVML names (another container?)"


def look(device: Device) -> Occupancy:
    """Ask NVML who uses a device. Where NVML cannot be asked at all, nothing is known, and nothing is in the way."""
    try:
        with session() as pynvml:
            reader = Reader(pynvml)
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


def look_all(devices: Iterable[Device]) -> tuple[Occupancy, ...]:
    """`look` at each."""
    return tuple(look(device) for device in devices)


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


def describe_pid(pid: int) -> str:
    """``pid 123 (alice: python -m pytest tests)``, as far as it can be told."""
    user = user_of(pid)
    if user is None:
        return f"pid {pid}"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    return f"pid {pid} ({user}{': ' + command[:60] if command else ''})"
