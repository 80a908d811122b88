"""After the server: its memory must come back before anybody else measures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.classes import GIB
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.occupancy import look_all

SLACK_BYTES = 64 * 2**20
"""Memory that the driver may keep after a first use."""
POLL_S = 0.25


class MemoryNotReturned(GpuCapError):  # noqa: N818 - reads as what is wrong
    """The server ended and its memory did not come back in time; the message names who has it."""

    needs_traceback = False


def memory_in_use(devices: Sequence[Device]) -> dict[str, int]:
    """UUID -> bytes used now, of the devices that tell."""
    return {
        seen.device.uuid: seen.memory_used_bytes for seen in look_all(devices) if seen.memory_used_bytes is not None
    }


def wait_memory_returned(
    devices: Sequence[Device], baseline: Mapping[str, int], pids: Iterable[int], timeout_s: float
) -> float:
    """Wait until none of `pids` is on the devices any more and their memory is back to `baseline`.

    Args:
        devices: those that the server had.
        baseline: UUID -> bytes used before the server started, such as `Lease.baseline`.
        pids: the server's own processes, all that it ever had.
        timeout_s: how long to wait.

    Returns:
        Seconds waited.

    Raises:
        MemoryNotReturned: if they are not back in time.
    """
    ours = set(pids)
    start = time.monotonic()
    while True:
        late = _late(devices, baseline, ours)
        waited = time.monotonic() - start
        if not late:
            return waited
        if waited >= timeout_s:
            raise MemoryNotReturned(f"GPU memory did not come back within {timeout_s:g} s of the server's end: {late}")
        time.sleep(POLL_S)


def _late(devices: Sequence[Device], baseline: Mapping[str, int], ours: set[int]) -> str:
    complaints = []
    for seen in look_all(devices):
        mine = [process for process in seen.processes or () if process.pid in ours]
        if mine:
            complaints.append(f"{seen.device.label} still has {', '.join(process.describe() for process in mine)}")
            continue
        used, before = seen.memory_used_bytes, baseline.get(seen.device.uuid)
        if used is not None and before is not None and used > before + SLACK_BYTES:
            complaints.append(
                f"{seen.device.label} has {used / GIB:.1f} GiB in use, {before / GIB:.1f} GiB before the server; "
                + (seen.describe() if seen.processes else "NVML names no process")
            )
    return "; ".join(complaints)
