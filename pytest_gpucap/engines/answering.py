"""Which process answers at an address, and whether it is still the one that answered first.

Two things tell. On this machine, the processes that listen at the port can be seen, and one of them may end. Anywhere,
``/metrics`` may tell when the process started: ``process_start_time_seconds``, as the Prometheus client libraries give
it (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics). Where neither is known, only the
requests that fail tell of a restart.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.process import alive

_STARTED: Final = re.compile(
    r"^process_start_time_seconds(?:\{[^\n]{0,1000}\})? +([0-9.e+]{1,40})(?: [0-9]{1,20})?\r?$", re.MULTILINE
)


def port_of(base_url: str) -> int:
    """The port of a URL, written or implied."""
    parts = urlsplit(base_url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def listeners(port: int) -> frozenset[int]:
    """The processes of this machine that listen at a TCP port; empty if one of them cannot be seen."""
    try:
        every: list[Any] = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return frozenset()
    found = {each.pid for each in every if each.status == psutil.CONN_LISTEN and each.laddr.port == port}
    return frozenset() if None in found else frozenset(pid for pid in found if pid is not None)


class Answering:
    """The process behind an address, as it was when this was made.

    Args:
        port: on this machine; None: it is on another, or not known.
        page: reads the server's ``/metrics``, and raises `EndpointError` if there is none.
        clock: seconds since the epoch.
    """

    def __init__(self, port: int | None, page: Callable[[], str], clock: Callable[[], float] = time.time) -> None:
        self._page = page
        self._since_s = clock()
        self._processes = [] if port is None else [*filter(None, map(_process, listeners(port)))]
        self._started = self._starts()

    def ended(self) -> str:
        """Why the process no longer answers, in one line: it has ended. Empty while it lives, or is not known."""
        if not self._processes or any(map(alive, self._processes)):
            return ""
        return f"the process {self._processes[0].pid} that answered has ended"

    def replaced(self) -> str:
        """Why it is another process that answers now, in one line; empty if it is the same, or is not known.

        A start counts if it is later than all that were told at first, and later than the first look. So a balancer
        that shows one replica's page after the other is no restart, nor is a clock that is set.
        """
        if ended := self.ended():
            return ended
        later = {each for each in self._starts() if each > self._since_s}
        if not self._started or not later or max(later) <= max(self._started):
            return ""
        return f"a process started {max(later) - self._since_s:.0f} s after the first answer, and now answers"

    def _starts(self) -> frozenset[float]:
        try:
            return frozenset(map(float, _STARTED.findall(self._page())))
        except (EndpointError, ValueError):
            return frozenset()


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
