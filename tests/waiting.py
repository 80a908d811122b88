"""Waiting for what must happen, and an address where nothing does.

A busy machine may take any time for anything, so no wait has a limit of its own: the one limit is pytest-timeout's, for
a whole test (pyproject.toml). Its report shows where a test was waiting.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

FOREVER_S: Final = math.inf
"""For calls that ask for a time limit."""
UNTIL_STOPPED_S: Final = 1e6
"""Duration of a phase that an event ends, and not the clock."""


def until(condition: Callable[[], T]) -> T:
    """Wait until the condition holds; what it then gave."""
    while not (value := condition()):
        time.sleep(0.01)
    return value


@contextmanager
def refused_url() -> Iterator[str]:
    """A URL of this machine that refuses connections: its port is taken, and nobody listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"
