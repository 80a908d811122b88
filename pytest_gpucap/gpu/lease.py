"""Leases: the devices one measurement has to itself.

One lock file a device, named by its UUID, in a directory that all users of the machine share. The lock is the kernel's
(``flock``), so it goes when its holder does, however that ends. Processes that know nothing of these locks are found by
asking NVML, and a device they use is not handed out.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.occupancy import describe_pid, look

POLL_S = 0.25
MACHINE_DIRECTORY = Path("/tmp/gpucap-leases")  # noqa: S108 - one place for all users; see `machine_directory`
"""Fixed, and not below TMPDIR: jobs with temporary directories of their own still share the GPUs."""
GRACE_S = 5.0
"""How long memory of a process that has just ended may take to come back before a device counts as shared."""


class LeaseError(GpuCapError):
    """No lease can be had; the message says of what and why."""

    needs_traceback = False


class LeaseTimeout(LeaseError):  # noqa: N818 - reads as what is wrong
    """Others held the devices for as long as the caller would wait."""


class GpuShared(LeaseError):  # noqa: N818 - reads as what is wrong
    """Somebody who takes no leases uses the devices: a measurement there would be invalid."""


@dataclass
class Lease:
    """Devices held until `release`, the end of the ``with`` block, or the end of the process.

    Attributes:
        devices: those held; empty for the CPU.
        baseline: UUID -> bytes of memory used when the lease began; see `memory.wait_memory_returned`.
        waited_s: how long it took to get them.
    """

    devices: tuple[Device, ...]
    baseline: Mapping[str, int] = field(default_factory=dict)
    waited_s: float = 0.0
    _held: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUIDs of the devices."""
        return tuple(device.uuid for device in self.devices)

    @property
    def environment(self) -> dict[str, str]:
        """What a server's environment must hold, so that it sees these devices and no others; empty for the CPU."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.uuids)} if self.devices else {}

    def release(self) -> None:
        """Give the devices back. Safe to call twice."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lease(
    devices: Sequence[Device],
    count: int,
    *,
    wait_s: float,
    on_wait: Callable[[str], None] | None = None,
    directory: Path | None = None,
) -> Lease:
    """Hold `count` of `devices`, each free of other leases and of other processes.

    Those who want the same devices queue up, and only the first in the queue collects, so that a test that needs four
    GPUs is not starved by tests that need one.

    Args:
        devices: the candidates, best first.
        count: how many are needed.
        wait_s: how long to wait for other leases to end.
        on_wait: told once, in one line, that and for whom there is waiting.
        directory: of the lock files; one for the whole machine by default.

    Raises:
        LeaseTimeout: if others held too many of them for that long.
        GpuShared: if processes without a lease use too many of them.
        LeaseError: if there are fewer than `count` candidates, or the lock files cannot be used.
    """
    if count < 1 or count > len(devices):
        raise LeaseError(f"{count} GPUs are needed and {len(devices)} of the class are here")
    names = [device.uuid for device in devices]
    queue = "queue-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
    room = _Room(directory or machine_directory())
    start = time.monotonic()
    deadline = start + wait_s
    told = _Once(on_wait)
    with ExitStack() as waiting:
        waiting.enter_context(_first_in_queue(room, queue, deadline, told))
        shared_since: float | None = None
        while True:
            attempt = _collect(room, devices, count)
            now = time.monotonic()
            if attempt.lease is not None:
                return replace(attempt.lease, waited_s=now - start)
            taken, shared = attempt.taken, attempt.shared
            if len(devices) - len(shared) < count:  # even the end of every lease would not do
                shared_since = now if shared_since is None else shared_since
                if now - shared_since >= min(GRACE_S, wait_s):
                    raise GpuShared("; ".join(shared))
            else:
                shared_since = None
            if now >= deadline:
                raise LeaseTimeout(
                    f"no {count} free of {len(devices)} GPUs within {wait_s:g} s: " + "; ".join(taken + shared)
                )
            told(f"waiting for {count} of {len(devices)} GPUs: " + "; ".join(taken + shared))
            time.sleep(min(POLL_S, max(0.0, deadline - now)))


def lease_cpu(*, wait_s: float, on_wait: Callable[[str], None] | None = None, directory: Path | None = None) -> Lease:
    """Hold the machine's CPU, of which there is one lease: two measurements on class ``cpu`` would measure each other.

    Raises:
        LeaseTimeout: if another held it for `wait_s`.
        LeaseError: if the lock file cannot be used.
    """
    room = _Room(directory or machine_directory())
    start = time.monotonic()
    held = ExitStack()
    held.enter_context(_first_in_queue(room, "cpu", start + wait_s, _Once(on_wait)))
    return Lease((), waited_s=time.monotonic() - start, _held=held)


def machine_directory() -> Path:
    """The directory of the lock files, made on first use, for every user of the machine.

    Without the sticky bit on purpose: Linux refuses to open a file for creation that another user owns in a sticky
    directory that all may write to (``fs.protected_regular``), which is exactly what sharing a lock is. What a hostile
    user could do here is to take away a lock file, and then two measurements would meet: the check for foreign
    processes finds that. Lock files are never read, never truncated, and symbolic links are not followed.

    Raises:
        LeaseError: if something else has that name, or it cannot be made.
    """
    directory = MACHINE_DIRECTORY
    try:
        directory.mkdir(mode=0o777)
        directory.chmod(0o777)  # the umask took bits away
    except FileExistsError:
        pass
    except OSError as error:
        raise LeaseError(f"cannot make the directory of GPU leases {directory}: {error.strerror or error}") from None
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise LeaseError(f"{directory} is no directory, and GPU leases need it: remove it")
    return directory


class _Room:
    """The lock files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"

    def hold(self, name: str, timeout_s: float = 0.0) -> ExitStack | None:
        """The lock, held until the stack closes; None if somebody else has it for that long."""
        from filelock import FileLock, Timeout  # loads asyncio

        lock = FileLock(self.path(name), mode=0o666, timeout=timeout_s, thread_local=False)
        try:
            lock.acquire(poll_interval=POLL_S)
        except Timeout:
            return None
        except OSError as error:
            raise LeaseError(f"cannot lock {self.path(name)}: {error.strerror or error}") from None
        stack = ExitStack()
        stack.callback(lock.release)
        return stack

    def holder(self, name: str) -> str:
        """``pid 123 (alice)``, as far as the kernel tells."""
        return _describe_holder(self.path(name))


class _Once:
    def __init__(self, call: Callable[[str], None] | None) -> None:
        self._call = call

    def __call__(self, message: str) -> None:
        if self._call is not None:
            self._call(message)
            self._call = None


def _first_in_queue(room: _Room, name: str, deadline: float, told: _Once) -> ExitStack:
    held = room.hold(name)
    if held is not None:
        return held
    told(f"waiting for the lease that {room.holder(name)} holds or waits for first")
    started = time.monotonic()
    held = room.hold(name, max(0.0, deadline - started))
    if held is None:
        raise LeaseTimeout(f"{room.holder(name)} came first and held its lease for {deadline - started:.0f} s")
    return held


class _Attempt(NamedTuple):
    """One go at the devices: a lease on enough of them, or nothing held, and why each could not be taken."""

    lease: Lease | None
    taken: list[str]
    shared: list[str]


def _collect(room: _Room, devices: Sequence[Device], count: int) -> _Attempt:
    taken: list[str] = []
    shared: list[str] = []
    chosen: list[Device] = []
    baseline: dict[str, int] = {}
    with ExitStack() as all_held:
        for device in devices:
            held = room.hold(device.uuid)
            if held is None:
                taken.append(f"{device.label} is leased by {room.holder(device.uuid)}")
                continue
            all_held.enter_context(held)
            occupancy = look(device)
            if not occupancy.free:
                held.close()
                shared.append(occupancy.describe())
                continue
            chosen.append(device)
            if occupancy.memory_used_bytes is not None:
                baseline[device.uuid] = occupancy.memory_used_bytes
            if len(chosen) == count:
                return _Attempt(Lease(tuple(chosen), baseline, _held=all_held.pop_all()), taken, shared)
    return _Attempt(None, taken, shared)


def _describe_holder(path: Path) -> str:
    pids = list(_holders(path))
    if not pids:
        return "another process"
    return " and ".join(describe_pid(pid) for pid in pids)


def _holders(path: Path) -> Iterable[int]:
    """Pids that hold a ``flock`` on the file, from ``/proc/locks``; nothing where the kernel does not tell."""
    try:
        inode = path.stat().st_ino
        device = path.stat().st_dev
        lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in lines:
        # 7: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF; one that waits has "->" after the number.
        parts = line.split()
        if len(parts) > 5 and parts[1] == "FLOCK" and parts[5] == wanted and int(parts[4]) > 0:  # noqa: PLR2004
            yield int(parts[4])
