"""Waiting for what must happen.

A busy machine may take any time for anything, so no wait has a limit of its own: the one limit is pytest-timeout's, for
a whole test (pyproject.toml). Its report shows where a test was waiting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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
