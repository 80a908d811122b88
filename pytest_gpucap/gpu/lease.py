"""Leases: the devices one measurement has to itself.

Each device has a lock file, named by its UUID, in a directory that all users of the machine share. The kernel holds the
lock (``flock``), so it ends with its holders, however they end: this process, and whatever ends the servers that it has
started, which may need longer. NVML tells of processes that do not use these locks; a device that one of them uses is
not leased.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.gpu.classes import GIB
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.kept import END_COMMAND, holders_of
from pytest_gpucap.gpu.occupancy import IDLE_OPTION, IdleMemory, Neighbours, Occupancy, occupancy_of, user_of

LOCK_POLL_S = 0.25
CPU: Final = "cpu"
"""The name of the lock that stands for the machine's CPU."""
MACHINE_DIRECTORY = Path("/tmp/gpucap-leases")  # noqa: S108 - one place for all users; see `machine_directory`
"""Fixed, and not below TMPDIR: jobs with temporary directories of their own still share the GPUs."""
GRACE_S = 5.0
"""A device counts as shared when it is in use for this long: memory of an ended process may take a while to return."""


MakeRoom = Callable[[Sequence[str]], bool]
"""Asked while a lease waits, with the names of locks that would help: whether one of them was freed just now."""


class LeaseError(GpuCapError):
    """No lease can be had; the message says why."""

    needs_traceback = False


class LeaseTimeout(LeaseError):  # noqa: N818 - reads as what is wrong
    """Other leases held the devices for as long as the caller was ready to wait."""


class GpuShared(LeaseError):  # noqa: N818 - reads as what is wrong
    """Processes without a lease use the devices: a measurement there would be invalid."""


@dataclass
class Lease:
    """Devices held until `release`, the end of the ``with`` block, or the end of the process.

    Attributes:
        devices: those held; empty for the CPU.
        baseline: UUID -> bytes of memory used when the lease began, or allowed to be; see
            `occupancy.wait_memory_returned`.
        others: UUID -> what was on the device when the lease began and was allowed to be, beyond a driver's own memory.
        descriptors: of the lock files. A process that has them open too holds the lease until it ends or `release`.
    """

    devices: tuple[Device, ...]
    baseline: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, Occupancy] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    _held: ExitStack = field(default_factory=ExitStack, repr=False)

    @property
    def cuda_devices(self) -> tuple[str, ...]:
        """The entries of ``CUDA_VISIBLE_DEVICES`` under ``CUDA_DEVICE_ORDER=PCI_BUS_ID``; empty for the CPU.

        Whole GPUs go by their index: up to 0.20 at least, vLLM itself turned every entry into an integer
        (vllm-project/vllm#20939). MIG slices have no index, and go by their UUID.
        """
        return tuple(device.uuid if device.mig_profile else str(device.index) for device in self.devices)

    @property
    def locks(self) -> tuple[str, ...]:
        """The names of its lock files."""
        return tuple(device.uuid for device in self.devices) or (CPU,)

    @property
    def tolerated(self) -> frozenset[int]:
        """Pids of other programs that were allowed on the devices."""
        return frozenset(process.pid for other in self.others.values() for process in other.processes or ())

    def remarks(self) -> list[str]:
        """What else used the devices when the lease began, a line each."""
        return [
            f"not empty before the measurement, as {IDLE_OPTION} allows: {other.device.label} had "
            f"{(other.memory_used_bytes or 0) / GIB:.1f} GiB in use"
            + (f", by {', '.join(each.describe() for each in other.processes)}" if other.processes else "")
            for other in self.others.values()
        ]

    def release(self) -> None:
        """Give the devices back. Safe to call twice."""
        self._held.close()

    def leave(self) -> None:
        """Leave the devices to the other processes that have the locks open; `release` then does nothing."""
        self._held.pop_all()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = ()

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
    idle: IdleMemory | None = None,
    on_wait: Callable[[str], None] | None = None,
    make_room: MakeRoom | None = None,
    directory: Path | None = None,
) -> Lease:
    """Hold `count` of `devices`, each free of other leases and of other processes.

    Processes that want the same devices queue up, and only the first in the queue takes devices. So tests that need one
    GPU do not starve a test that needs four.

    Args:
        devices: the candidates, best first.
        count: how many are needed.
        wait_s: how long to wait for other leases to end.
        idle: memory that a device may have in use and still count as free; None: what an idle driver keeps.
        on_wait: told once, in one line, that it waits and for whom.
        make_room: see `MakeRoom`.
        directory: of the lock files; one for the whole machine by default.

    Raises:
        LeaseTimeout: if other leases held too many of them for that long.
        GpuShared: if processes without a lease use too many of them.
        LeaseError: if there are fewer than `count` candidates, or the lock files cannot be used.
    """
    if count < 1 or count > len(devices):
        raise LeaseError(f"{count} GPUs are needed and {len(devices)} of the class are here")
    names = [device.uuid for device in devices]
    queue = "queue-" + hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
    locks = _LockFiles(directory or machine_directory())
    deadline = time.monotonic() + wait_s
    tell_once = _TellOnce(on_wait)
    with ExitStack() as waiting:
        waiting.enter_context(_first_in_queue(locks, queue, deadline, tell_once))
        shared_since: float | None = None
        while True:
            attempt = _collect(locks, devices, count, idle)
            now = time.monotonic()
            if attempt.lease is not None:
                return attempt.lease
            if make_room is not None and make_room(names):
                continue
            taken, shared = attempt.taken, attempt.shared
            why = "; ".join([*taken, *shared, *attempt.how_to_allow])
            if len(devices) - len(shared) < count:  # not enough even if every lease ended
                shared_since = now if shared_since is None else shared_since
                if now - shared_since >= min(GRACE_S, wait_s):
                    raise GpuShared("; ".join([*shared, *attempt.how_to_allow]))
            else:
                shared_since = None
            if now >= deadline:
                raise LeaseTimeout(f"no {count} free of {len(devices)} GPUs within {wait_s:g} s: {why}")
            tell_once(f"waiting for {count} of {len(devices)} GPUs: {why}")
            time.sleep(min(LOCK_POLL_S, max(0.0, deadline - now)))


def lease_cpu(
    *,
    wait_s: float,
    on_wait: Callable[[str], None] | None = None,
    make_room: MakeRoom | None = None,
    directory: Path | None = None,
) -> Lease:
    """Hold the machine's CPU. There is one lease of it: two measurements on class ``cpu`` would disturb each other.

    Args:
        wait_s: how long to wait for another lease to end.
        on_wait: told once, in one line, that it waits and for whom.
        make_room: see `MakeRoom`.
        directory: of the lock files; one for the whole machine by default.

    Raises:
        LeaseTimeout: if another lease held it for `wait_s`.
        LeaseError: if the lock file cannot be used.
    """
    locks = _LockFiles(directory or machine_directory())
    return _lease_of(_first_in_queue(locks, CPU, time.monotonic() + wait_s, _TellOnce(on_wait), make_room))


def passed_on(
    devices: Sequence[Device],
    descriptors: Sequence[int],
    *,
    baseline: Mapping[str, int],
    server_pids: Iterable[int],
    tolerated: Iterable[int] = (),
    idle: IdleMemory | None = None,
    contained: bool | None = None,
) -> Lease:
    """A lease that another process had, with its locks.

    Args:
        devices: of the lease, in its order; empty for the CPU.
        descriptors: of its lock files, which are locked.
        baseline: of the lease.
        server_pids: processes of the server that is on the devices.
        tolerated: of the lease.
        idle: memory that others may use there; None: they may use none.
        contained: whether our pids may differ from the driver's; None: find out.

    Raises:
        GpuShared: if others use the devices. The locks are let go.
    """
    own, allowed = frozenset(server_pids), frozenset(tolerated)
    with ExitStack() as held:
        for descriptor in descriptors:
            held.enter_context(_Lock(descriptor))
        others: dict[str, Occupancy] = {}
        for device in devices:
            seen = occupancy_of(device)
            listed = seen.processes or ()
            strangers = Neighbours(contained=contained, tolerated=allowed).strangers(listed, own)
            rest = (*(each for each in listed if each.pid in allowed), *strangers)
            if not rest:
                continue
            used_bytes = sum(each.memory_bytes or 0 for each in rest)
            others[device.uuid] = other = Occupancy(device, rest, used_bytes, seen.memory_bytes)
            if not other.free_within(idle):
                raise GpuShared(other.describe())
        return Lease(tuple(devices), baseline, others, tuple(descriptors), _held=held.pop_all())


def lease_server(
    name: str, *, wait_s: float, on_wait: Callable[[str], None] | None = None, directory: Path | None = None
) -> Lease:
    """Hold a server that somebody else runs: two loads from this machine would disturb each other.

    Args:
        name: of the server, the same for every way to write its address.
        wait_s: how long to wait for another lease to end.
        on_wait: told once, in one line, that it waits and for whom.
        directory: of the lock files; one for the whole machine by default.

    Raises:
        LeaseTimeout: if another lease held it for `wait_s`.
        LeaseError: if the lock file cannot be used.
    """
    locks = _LockFiles(directory or machine_directory())
    lock = "server-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return _lease_of(_first_in_queue(locks, lock, time.monotonic() + wait_s, _TellOnce(on_wait)))


def _lease_of(held: _Lock) -> Lease:
    """A lease of what one lock stands for."""
    stack = ExitStack()
    stack.enter_context(held)
    return Lease((), descriptors=(held.descriptor,), _held=stack)


def machine_directory() -> Path:
    """The directory of the lock files, made on first use, for every user of the machine.

    The directory has no sticky bit on purpose. In a sticky directory that all may write to, Linux refuses to open
    another user's file for creation (``fs.protected_regular``), and sharing a lock needs exactly that. A hostile user
    could remove a lock file, so that two measurements run on one device; the check for foreign processes finds that.
    Lock files are never read and never truncated, and symbolic links are not followed.

    Raises:
        LeaseError: if something else has that name, or it cannot be made.
    """
    directory = MACHINE_DIRECTORY
    try:
        directory.mkdir(mode=0o777)
        directory.chmod(0o777)  # the umask removed bits
    except FileExistsError:
        pass
    except OSError as error:
        raise LeaseError(f"cannot make the directory of GPU leases {directory}: {error.strerror or error}") from None
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise LeaseError(f"{directory} is no directory, and GPU leases need it: remove it")
    return directory


class _Lock:
    """A lock that is held until `close`, or until every process that has the descriptor open has ended."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Let go, for every process. Safe to call twice."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _LockFiles:
    """The lock files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"

    def hold(self, name: str, timeout_s: float = 0.0, make_room: MakeRoom | None = None) -> _Lock | None:
        """The lock; None if another process holds it for that long.

        Raises:
            LeaseError: if the file cannot be used.
        """
        deadline = time.monotonic() + timeout_s
        path = self.path(name)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise LeaseError(f"cannot lock {path}: {error.strerror or error}") from None
        try:
            with contextlib.suppress(PermissionError):  # another user's, who has done it
                os.fchmod(descriptor, 0o666)  # the umask removed bits
            while not _locked(descriptor):
                if make_room is not None and make_room((name,)):
                    continue
                if (left_s := deadline - time.monotonic()) <= 0:
                    os.close(descriptor)
                    return None
                time.sleep(min(LOCK_POLL_S, left_s))
        except OSError as error:
            os.close(descriptor)
            raise LeaseError(f"cannot lock {path}: {error.strerror or error}") from None
        except BaseException:
            os.close(descriptor)
            raise
        return _Lock(descriptor)

    def holder(self, name: str) -> str:
        """``pid 123 (alice)``, as far as the kernel tells, or the kept server that has it."""
        for kept in holders_of(name, self._directory):
            if kept.used_by is not None:
                return f"{_describe_pid(kept.used_by)} with a {kept.describe()}"
            user = user_of(kept.keeper) or f"uid {kept.user}"
            return f"the {kept.describe()} of {user}, whose {END_COMMAND} {kept.id} ends it"
        return _describe_holder(self.path(name))


class _TellOnce:
    """Calls a function the first time only."""

    def __init__(self, call: Callable[[str], None] | None) -> None:
        self._call = call

    def __call__(self, message: str) -> None:
        if self._call is not None:
            self._call(message)
            self._call = None


def _first_in_queue(
    locks: _LockFiles, name: str, deadline: float, tell_once: _TellOnce, make_room: MakeRoom | None = None
) -> _Lock:
    held = locks.hold(name)
    if held is None and make_room is not None and make_room((name,)):
        held = locks.hold(name)
    if held is not None:
        return held
    tell_once(f"waiting for the lease that {locks.holder(name)} holds or waits for first")
    started = time.monotonic()
    held = locks.hold(name, max(0.0, deadline - started), make_room)
    if held is None:
        raise LeaseTimeout(f"{locks.holder(name)} came first and held its lease for {deadline - started:.0f} s")
    return held


class _Attempt(NamedTuple):
    """One attempt: a lease on enough devices, or None with nothing held; and why other devices could not be had."""

    lease: Lease | None
    taken: list[str]
    shared: list[str]
    how_to_allow: Sequence[str] = ()


def _collect(locks: _LockFiles, devices: Sequence[Device], count: int, idle: IdleMemory | None) -> _Attempt:
    taken: list[str] = []
    shared: list[str] = []
    needed: list[int] = []
    chosen: list[Device] = []
    baseline: dict[str, int] = {}
    others: dict[str, Occupancy] = {}
    descriptors: list[int] = []
    with ExitStack() as all_held:
        for device in devices:
            held = locks.hold(device.uuid)
            if held is None:
                taken.append(f"{device.label} is leased by {locks.holder(device.uuid)}")
                continue
            all_held.enter_context(held)
            occupancy = occupancy_of(device)
            if not occupancy.free_within(idle):
                held.close()
                shared.append(occupancy.describe())
                needed.append(occupancy.memory_used_bytes or 0)
                continue
            chosen.append(device)
            descriptors.append(held.descriptor)
            if occupancy.memory_used_bytes is not None:
                # A display server's memory comes and goes, so what is allowed before is allowed after.
                allowed = idle.of(occupancy.memory_bytes) if idle else None
                baseline[device.uuid] = max(occupancy.memory_used_bytes, allowed or 0)
            if not occupancy.free:
                others[device.uuid] = occupancy
            if len(chosen) == count:
                found = Lease(tuple(chosen), baseline, others, tuple(descriptors), _held=all_held.pop_all())
                return _Attempt(found, taken, shared)
    enough = max(needed, default=0) // GIB + 1
    hint = [f"if that is a desktop and no job, allow it with {IDLE_OPTION}={enough}GiB"] if needed else []
    return _Attempt(None, taken, shared, hint)


def _describe_holder(path: Path) -> str:
    pids = list(_holders(path))
    if not pids:
        return "another process"
    return " and ".join(map(_describe_pid, pids))


def _describe_pid(pid: int) -> str:
    """``pid 123 (alice: python -m pytest tests)``, as far as it is known."""
    user = user_of(pid)
    if user is None:
        return f"pid {pid}{' (it has ended, and its server not yet)' if _has_ended(pid) else ''}"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    return f"pid {pid} ({user}{': ' + command[:60] if command else ''})"


def _has_ended(pid: int) -> bool:
    """Whether there is no such process. A system may hide the processes of other users."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _holders(path: Path) -> Iterable[int]:
    """Pids that hold a ``flock`` on the file, from ``/proc/locks``; none where the kernel does not tell."""
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
