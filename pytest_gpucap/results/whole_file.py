"""Every file that the plugin writes, whole or not at all: written beside under another name, and renamed.

So a full disk, a kill or a crash leaves the file of before, and never half of a new one.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pytest_gpucap.user_files import open_to_write

_PID_DIGITS: Final = 10
"""Fewer than these has the id of any process (``/proc/sys/kernel/pid_max`` is 2**22 at most)."""


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file, whole or not at all. A missing folder is made. Behind a link, what it points to is replaced.

    Raises:
        OSError: if it cannot be written. The file of before is kept.
    """
    _make_folder(path.parent)
    path = _behind_links(path)
    if path.exists() and not path.is_file():  # a device or a pipe is written to, and stays
        with io.BufferedWriter(open_to_write(path)) as file:
            file.writelines(pieces)
        return
    partial = _partial(path, str(os.getpid()))
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
        if path.exists():
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _behind_links(path: Path) -> Path:
    """The file that a path leads to.

    Raises:
        OSError: if its links lead in a circle. `Path.resolve` raises another error for that, or none at all.
    """
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return found


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text in UTF-8; a character that UTF-8 cannot have becomes its escape."""
    write_whole(path, [text.encode("utf-8", errors="backslashreplace")])


def append_text(path: Path, text: str) -> None:
    """Add a text in UTF-8 to the end of a file that others write to as well: all of it or nothing.

    Raises:
        OSError: if it cannot be written. What was there before is kept.
    """
    _make_folder(path.parent)
    with open_to_write(path, append=True) as file:
        before = file.tell()
        left = memoryview(text.encode("utf-8", errors="backslashreplace"))
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except OSError:
            if path.is_file():
                file.truncate(before)
            raise


def clear_partial(path: Path) -> None:
    """Remove what sessions that were killed while they wrote this file have left beside it."""
    import psutil

    path = _behind_links(path)
    for partial in path.parent.glob(_partial(Path(glob.escape(path.name)), "*").name):
        process = partial.name.rpartition(".tmp")[0].rpartition(".")[2]
        # A longer number is of no process, and so of no file of ours.
        if process.isdecimal() and len(process) < _PID_DIGITS and not psutil.pid_exists(int(process)):
            partial.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    if not folder.exists():  # a file there is an error of the writing, which says so
        folder.mkdir(parents=True, exist_ok=True)


def _partial(path: Path, process: str) -> Path:
    """The temporary name."""
    return path.with_name(f".{path.name}.{process}.tmp")
