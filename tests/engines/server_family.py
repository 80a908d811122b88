"""The processes of one test, found by a mark in their environment whatever became of their parents."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from typing import TypeVar

import psutil

MARK = "GPUCAP_TEST_MARK"
TREE = 4
"""Processes of a stand-in server: main, child, child in a session of its own, orphaned daemon in another."""

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = 60.0) -> T:
    """What the condition gives as soon as that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.02)
    return value


class Family:
    """Every process that was started with this environment, and what they started."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.env = {MARK: self.mark}

    def alive(self) -> list[psutil.Process]:
        """Those that live now, zombies left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def survivors(self, timeout_s: float = 30.0) -> list[str]:
        """What still lives after the time; empty as soon as nothing does."""
        deadline = time.monotonic() + timeout_s
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                names.append(f"{process.pid} {' '.join(process.cmdline())}")
        return names
