"""Kept servers: they hold a lease for the next run of their user, though no run uses them now.

Each has a note and a socket in a folder of its user beside the lock files. The note is for everybody: it says who holds
the devices and for how long. It has no secret. The socket is the user's alone. A note is believed only if the
folder and the file are its user's, and if the process that it names lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.foreign_text import harmless, on_one_line
from pytest_gpucap.gpu.occupancy import user_of

NOTE, SOCKET = ".json", ".socket"
END_COMMAND: Final = "gpucap servers --end"
"""The command that ends kept servers."""
PATIENCE_S: Final = 120.0
"""Longest wait for the end of a kept server: its grace, and SIGKILL that is repeated for a minute."""
_PREFIX: Final = "kept-"
_MOST_BYTES: Final = 1 << 16
_MOST_NOTES: Final = 1000
_LATEST_S: Final = 1e11
"""Some thousand years."""
_HUNG_UP_S: Final = 1.0
"""A keeper ends within this time after it has hung up."""
_SIGKILL_PATIENCE_S: Final = 10.0


class KeptError(GpuCapError):
    """A kept server cannot be ended, or servers cannot be kept here; one line says why."""

    needs_traceback = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptServer:
    """A kept server, as its note tells.

    Attributes:
        id: in messages and commands.
        folder: of its note and its socket.
        user: who owns it (uid).
        keeper: the pid of the process that keeps it.
        keeper_began: that process's start, in ticks of the kernel's clock since the machine began.
        pid: of its main process.
        engine: what it is, for people: ``vLLM 0.11.0``.
        model: that it serves.
        gpu_class: such as ``h200`` or ``cpu``.
        devices: labels of its devices; empty for the CPU.
        locks: names of the locks that it holds.
        spec: equal for servers with the same model, arguments and interpreter.
        plugin: version of this plugin that kept it.
        port: that it listens on, at loopback.
        key_digest: beginning of the SHA-256 of its key.
        started_at: when it was started, in seconds since the epoch.
        until_s: end of its time, on the clock that counts suspended time too; None while a run uses it.
        used_by: the pid of the run that uses it; None: none does.
    """

    id: str
    folder: Path
    user: int
    keeper: int
    keeper_began: int
    pid: int
    engine: str
    model: str
    gpu_class: str
    devices: tuple[str, ...]
    locks: tuple[str, ...]
    spec: str
    plugin: str
    port: int
    key_digest: str
    started_at: float
    until_s: float | None = None
    used_by: int | None = None

    @property
    def socket(self) -> Path:
        """Of the process that keeps it."""
        return self.folder / f"{self.id}{SOCKET}"

    @property
    def note(self) -> Path:
        """What it is read from."""
        return self.folder / f"{self.id}{NOTE}"

    @property
    def is_mine(self) -> bool:
        """Whether it is this user's."""
        return self.user == os.getuid()

    @property
    def left_s(self) -> float | None:
        """Seconds until it is ended; None while a run uses it."""
        return None if self.until_s is None else max(0.0, self.until_s - boot_s())

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return max(0.0, time.time() - self.started_at)

    @property
    def place(self) -> str:
        """``GPU 0, GPU 1`` or ``the CPU``."""
        return ", ".join(self.devices) or "the CPU"

    def describe(self) -> str:
        """``kept server 1a2b3c4d (MODEL, pid 12, ended in 540 s at the latest)``, in one line."""
        left = f"used by pid {self.used_by}" if self.left_s is None else f"ended in {self.left_s:.0f} s at the latest"
        return f"kept server {self.id} ({self.model}, pid {self.pid}, {left})"

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The server of a note; None if it is none, is not its folder's user's, or its keeper has ended."""
        try:
            user = _owner(path.parent)
            told = _json(path, user)
            found = cls(id=path.name.removesuffix(NOTE), folder=path.parent, user=user, **_checked(told))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return found if began(found.keeper) == found.keeper_began else None


_TEXTS: Final = ("engine", "model", "gpu_class", "spec", "plugin", "key_digest")
_COUNTS: Final = ("keeper", "keeper_began", "pid", "port")


def _checked(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a note tells, each of its type.

    Raises:
        ValueError: if something is not.
        KeyError: if something is missing.
    """
    found: dict[str, Any] = {name: harmless(on_one_line(_of(str, told[name]))) for name in _TEXTS}
    found |= {name: _of(int, told[name]) for name in _COUNTS}
    for name in ("devices", "locks"):
        found[name] = tuple(harmless(on_one_line(_of(str, each))) for each in _of(list, told[name]))
    found["started_at"] = _time(told["started_at"])
    until_s, used_by = told.get("until_s"), told.get("used_by")
    found["until_s"] = None if until_s is None else _time(until_s)
    found["used_by"] = None if used_by is None else _of(int, used_by)
    if (until_s is None) == (used_by is None):
        raise ValueError("neither kept nor used")
    return found


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no {kind}")  # noqa: TRY004 - callers treat all as one
    return value


def _time(value: Any) -> float:
    seconds = _of((int, float), value)
    if not -_LATEST_S <= seconds <= _LATEST_S:
        raise ValueError("no time")
    return float(seconds)


def kept_servers(leases: Path) -> list[KeptServer]:
    """The kept servers of all users of this machine, the oldest first.

    Args:
        leases: the directory of the lock files.
    """
    try:
        folders = [each for each in leases.iterdir() if each.name.startswith(_PREFIX)]
        notes = [note for folder in folders for note in _notes(folder)][:_MOST_NOTES]
    except OSError:
        return []
    found = [kept for note in notes if (kept := KeptServer.read(note)) is not None]
    return sorted(found, key=lambda each: (each.started_at, each.id))


def _notes(folder: Path) -> Iterable[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.name.endswith(NOTE))
    except OSError:
        return ()


def holders_of(lock: str, leases: Path) -> list[KeptServer]:
    """The kept servers that hold a lock, or their runs do."""
    return [each for each in kept_servers(leases) if lock in each.locks]


def own_folder(leases: Path) -> Path:
    """The folder of this user's kept servers, made on first use. Others may read what it tells, and write nothing.

    Raises:
        KeptError: if it cannot be made, or somebody else has made it.
    """
    folder = leases / f"{_PREFIX}{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o755)
        folder.chmod(0o755)  # the umask removed bits
        if _owner(folder) == os.getuid():
            for note in _notes(folder):
                if KeptServer.read(note) is None:  # left by a keeper and a sentinel that were both killed
                    for path in (note, note.with_suffix(SOCKET)):
                        path.unlink(missing_ok=True)
            return folder
    except OSError as error:
        raise KeptError(f"cannot make {folder}: {error.strerror or error}") from None
    except ValueError:
        pass
    raise KeptError(f"{folder} is not a folder of yours: remove it")


def _owner(folder: Path) -> int:
    """The user of a folder of kept servers.

    Raises:
        OSError, ValueError: if it is none, or not the user's that it is named after.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or folder.name != f"{_PREFIX}{found.st_uid}" or found.st_mode & 0o022:
        raise ValueError(f"{folder} is no folder of kept servers")
    return found.st_uid


def _json(path: Path, user: int) -> Mapping[str, Any]:
    """What a note of this user holds.

    Raises:
        OSError, ValueError: if it is no such file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != user:
            raise ValueError(f"{path} is no note of its folder's user")
        return dict(json.loads(file.read(_MOST_BYTES)))


def end(kept: KeptServer, patience_s: float = PATIENCE_S) -> None:
    """End a kept server; returns when its processes have ended.

    Raises:
        KeptError: if it is another user's, a run uses it, or it did not end in time.
    """
    if not kept.is_mine:
        raise KeptError(f"{kept.describe()} is of {user_of(kept.keeper) or f'uid {kept.user}'}, who alone can end it")
    if kept.used_by is not None:
        raise KeptError(f"{kept.describe()}: end that run, and the server ends with it")
    try:
        keeper = os.pidfd_open(kept.keeper)
    except ProcessLookupError:
        return
    try:
        if began(kept.keeper) != kept.keeper_began:
            return
        _ask_to_end(kept, patience_s)
        if not _ends(keeper, _HUNG_UP_S):
            if (now := KeptServer.read(kept.note)) is not None and now.used_by is not None:
                raise KeptError(f"{now.describe()}: end that run, and the server ends with it")
            # It is stopped, or cannot be asked. What it leaves its sentinel ends.
            signal.pidfd_send_signal(keeper, signal.SIGKILL)
            _ends(keeper, _SIGKILL_PATIENCE_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(keeper)
    if not _gone(kept, patience_s):
        raise KeptError(f"{kept.describe()} did not end within {patience_s:g} s: look at pid {kept.pid} with ps")


def _ask_to_end(kept: KeptServer, patience_s: float) -> None:
    """Give the order, and wait until the keeper hangs up, as it does at its end."""
    asking = socket.socket(socket.AF_UNIX)
    try:
        asking.settimeout(patience_s)
        folder = os.open(kept.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            # The kernel takes names of 107 bytes at most.
            asking.connect(f"/proc/self/fd/{folder}/{kept.socket.name}")
        finally:
            os.close(folder)
        asking.sendall(b"end\n")
        asking.recv(1)
    except OSError:
        pass
    finally:
        asking.close()


def _ends(process: int, patience_s: float) -> bool:
    """Whether the process of this pidfd ends in time."""
    ended = select.poll()
    ended.register(process, select.POLLIN)
    return bool(ended.poll(patience_s * 1000))


def _gone(kept: KeptServer, patience_s: float) -> bool:
    """Whether the main process ends in time, and the note with the last of the others."""
    deadline = time.monotonic() + patience_s
    while kept.note.exists() or began(kept.pid) is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def began(pid: int) -> int | None:
    """When a process began, in ticks of the kernel's clock since the machine began; None if it does not live."""
    try:
        told = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses: the fields start after the last one.
    state, *fields = told.rpartition(b")")[2].split()
    return None if state in {b"Z", b"X"} else int(fields[18])


def boot_s() -> float:
    """Seconds since the machine began, those in which it was suspended too: the clock of `KeptServer.until_s`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
