"""End what a killed watchdog leaves of a kept server.

It runs as a script with ``python -I -S``; the plugin never imports it. While no pytest run holds a server, its watchdog
(`watchdog.py`) is the only one that knows all its processes. If that is killed, the kernel ends the server's main
process, and this one ends the others, which it finds by their environment. If this one ends first, the watchdog ends
the server. So whichever process dies, nothing is left.

Usage: ``sentinel.py WATCHDOG_PID MARK PATH...``. It writes one line once it watches. `MARK` is the variable that all
processes of the server have (``NAME=VALUE``). The paths are removed at the end. Descriptors that it inherits, such as a
lease's lock, stay open until the last process has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

KILL_S = 60.0
"""SIGKILL is repeated for this long, as the watchdog does."""
POLL_S = 0.05


def marked(mark: bytes) -> list[int]:
    """Processes with this variable; a zombie has none any more."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def main(arguments: list[str]) -> None:
    """Run with these command line arguments."""
    pid, mark, *paths = arguments
    watched = select.poll()
    watched.register(os.pidfd_open(int(pid)), select.POLLIN)
    os.write(1, b"watching\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    watched.poll()
    deadline = time.monotonic() + KILL_S
    while (left := marked(mark.encode())) and time.monotonic() < deadline:
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(POLL_S)
    for path in paths:
        with contextlib.suppress(OSError):
            Path(path).unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
