"""When data arrived, by the kernel: SO_TIMESTAMPNS turned into the monotonic clock.

The kernel stamps each packet with CLOCK_REALTIME as it is received, long before a busy process gets to read it. All
other times are CLOCK_MONOTONIC, which nobody sets; the difference of the two is sampled anew all the time, so clock
adjustments in between cost at most what the clock is slewed between two samples.
"""

from __future__ import annotations

import socket
import time

SO_TIMESTAMPNS = 35
"""Of Linux on every architecture but parisc and sparc (asm-generic/socket.h); the socket module has no name for it."""
ANCILLARY_BYTES = socket.CMSG_SPACE(16)

RESAMPLE_S = 0.02
"""The kernel slews a clock by at most 500 ppm: 10 us between two samples."""
STEP_NS = 1_000_000
"""A difference that moves by more was not slewed but set; stamps taken before it would be off by as much."""


def enable_timestamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what this socket receives; False where it does not."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


class Offset:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC, in nanoseconds."""

    __slots__ = ("ns", "steps")

    def __init__(self) -> None:
        self.ns = self._sample()
        self.steps = 0

    def resample(self) -> None:
        """Take the difference again; counts a step when the wall clock was set in between."""
        fresh = self._sample()
        if abs(fresh - self.ns) > STEP_NS:
            self.steps += 1
        self.ns = fresh

    @staticmethod
    def _sample() -> int:
        # The tightest of three: a preemption between the readings would spoil one of them.
        best_width, best = 1 << 62, 0
        for _ in range(3):
            before = time.monotonic_ns()
            real = time.time_ns()
            after = time.monotonic_ns()
            if after - before < best_width:
                best_width, best = after - before, real - (before + after) // 2
        return best
