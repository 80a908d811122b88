"""When data arrived, by the kernel: receive timestamps (SO_TIMESTAMPNS) on the monotonic clock.

The kernel stamps each packet with CLOCK_REALTIME when it is received, long before a busy process reads it. All other
times are CLOCK_MONOTONIC, which nobody sets. The difference of the two clocks is sampled every `RESAMPLE_S`, so a clock
adjustment costs at most what the clock is slewed between two samples.
"""

from __future__ import annotations

import socket
import time

SO_TIMESTAMPNS = 35
"""Linux's number on every architecture but parisc and sparc (asm-generic/socket.h); the socket module lacks it."""
ANCILLARY_BYTES = socket.CMSG_SPACE(16)

RESAMPLE_S = 0.02
"""The kernel slews a clock by at most 500 ppm: 10 us between two samples."""
STEP_NS = 1_000_000
"""A difference that moves by more than this was set, not slewed; stamps taken before are off by as much."""


def enable_timestamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what this socket receives; False where it does not."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


class ClockOffset:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC.

    Attributes:
        ns: the difference in nanoseconds, at the last sample.
        steps: how often the wall clock was set.
    """

    __slots__ = ("ns", "steps")

    def __init__(self) -> None:
        self.ns = self._sample()
        self.steps = 0

    def resample(self) -> None:
        """Sample the difference again. Counts a step when the wall clock was set in between."""
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
