"""Processes on a leased device that are not the server's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_gpucap.gpu.classes import GIB
from pytest_gpucap.gpu.occupancy import GpuProcess, user_of

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Inode of the first PID namespace (PROC_PID_INIT_INO in the kernel's proc_ns.h)."""


class Neighbours:
    """Tells the server's processes on one device from others.

    Inside a container the driver may name processes by the host's pids, under which the server cannot be known. The
    device was free when it was leased, so the first processes seen there under unknown pids are taken for the server's,
    as long as they are no more than the server has; whatever comes later is a neighbour.
    """

    def __init__(self, *, contained: bool | None = None) -> None:
        self._contained = in_container() if contained is None else contained
        self._adopted: frozenset[int] | None = None

    def strangers(self, listed: Sequence[GpuProcess], ours: frozenset[int]) -> list[GpuProcess]:
        """Those of `listed` that are not the server's, whose pids (in our namespace) are `ours`."""
        pids = {process.pid for process in listed}
        if self._adopted is None and pids and self._contained and not pids & ours and len(pids) <= len(ours):
            self._adopted = frozenset(pids)
        known = ours | (self._adopted or frozenset())
        return [process for process in listed if process.pid not in known]


def in_container() -> bool:
    """True where our pids are not the machine's, or where that cannot be told."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino != _INITIAL_PID_NAMESPACE
    except OSError:
        return True


def describe(process: GpuProcess) -> str:
    """``pid 123 of alice with 12.3 GiB``."""
    memory = "" if process.memory_bytes is None else f" with {process.memory_bytes / GIB:.1f} GiB"
    user = user_of(process.pid)
    return f"pid {process.pid}{f' of {user}' if user else ''}{memory}"
