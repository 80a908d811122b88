"""The processes of one test, found by a mark in their environment whatever became of their parents."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import psutil

from tests.waiting import until

MARK = "GPUCAP_TEST_MARK"
TREE = 4
"""Processes of a stand-in server: main, child, child in a session of its own, orphaned daemon in another."""


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

    def wait_until_gone(self) -> None:
        """Wait until none of them lives."""
        until(lambda: not self.alive())


def new_family() -> Iterator[Family]:
    """For a fixture: a family whose last members end with the test."""
    made = Family()
    yield made
    for process in made.alive():  # left by a test that failed
        with contextlib.suppress(psutil.Error):
            process.kill()
