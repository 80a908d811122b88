"""How far another node's clock is from ours, with a bound on the error.

One exchange of timestamps: we read our clock, the other side reads its own, and we read ours again when its answer
has come. The other side read its clock somewhere in between. So the middle is wrong by at most half the round trip,
whatever the delays of the two ways were (Cristian, "Probabilistic clock synchronization", 1989). Of several
exchanges the one with the shortest round trip has the smallest bound.

Between two readings the clocks may drift apart by `MOST_DRIFT`. The bound grows with the time from the nearest ones.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

ROUNDS: Final = 12
"""Exchanges behind one reading."""
MOST_DRIFT: Final = 1e-4
"""Seconds a second that two clocks drift apart at most: the oscillators of servers are within some 50 ppm of the truth.
A daemon that corrects a clock may add up to 500 ppm (adjtimex(2)) for a while; `OffsetTrack.strayed` shows that."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange of timestamps.

    Attributes:
        sent_s, received_s: on our clock, before the question and after the answer.
        told_s: on the other clock, in between.
    """

    sent_s: float
    told_s: float
    received_s: float

    @property
    def round_trip_s(self) -> float:
        """From question to answer."""
        return self.received_s - self.sent_s


@dataclass(frozen=True, slots=True)
class Reading:
    """The other clock minus ours, at one time.

    Attributes:
        at_s: on our clock.
        offset_s: of the other clock.
        bound_s: the offset is wrong by at most this.
    """

    at_s: float
    offset_s: float
    bound_s: float


def read_offset(exchange: Callable[[], Exchange], rounds: int = ROUNDS) -> Reading:
    """The offset from the shortest of `rounds` exchanges; half of its round trip is the bound (Cristian, 1989)."""
    best = min((exchange() for _ in range(rounds)), key=lambda each: each.round_trip_s)
    middle_s = (best.sent_s + best.received_s) / 2
    return Reading(middle_s, best.told_s - middle_s, best.round_trip_s / 2)


class OffsetTrack:
    """Readings of one other clock, in the order of their times, and what they say of the times between and after them.

    Args:
        most_drift: seconds a second; see `MOST_DRIFT`.
    """

    def __init__(self, most_drift: float = MOST_DRIFT) -> None:
        self._most_drift = most_drift
        self._readings: list[Reading] = []

    def add(self, reading: Reading) -> None:
        """Take in a reading that is later than those before.

        Raises:
            ValueError: if it is earlier.
        """
        if self._readings and reading.at_s < self._readings[-1].at_s:
            raise ValueError("readings of a clock must be added in the order of their times")
        self._readings.append(reading)

    @property
    def latest(self) -> Reading:
        """The last reading.

        Raises:
            IndexError: if there is none.
        """
        return self._readings[-1]

    def at(self, time_s: float) -> Reading:
        """The offset at a time on our clock: on a straight line between two readings, and as it was beyond the last.

        With d1 and d2 seconds to the readings on both sides and a drift of at most r, the line is wrong by at most
        2 r d1 d2 / (d1 + d2), beside the readings' own bounds. Beyond the last reading the offset moves by at most r a
        second.

        Raises:
            IndexError: if there is no reading.
        """
        readings, drift = self._readings, self._most_drift
        after = bisect.bisect_right(readings, time_s, key=lambda each: each.at_s)
        if after == 0 or after == len(readings):
            nearest = readings[0 if after == 0 else -1]
            return Reading(time_s, nearest.offset_s, nearest.bound_s + drift * abs(time_s - nearest.at_s))
        one, two = readings[after - 1], readings[after]
        d1, d2 = time_s - one.at_s, two.at_s - time_s
        share = d1 / (d1 + d2) if d1 + d2 > 0 else 0.0
        between_s = 2 * drift * d1 * d2 / (d1 + d2) if d1 + d2 > 0 else 0.0
        offset_s = one.offset_s + share * (two.offset_s - one.offset_s)
        return Reading(time_s, offset_s, (1 - share) * one.bound_s + share * two.bound_s + between_s)

    def strayed(self, since_s: float = -math.inf) -> float:
        """Seconds by which two readings in a row differ beyond their bounds and the drift; 0 where all agree.

        Args:
            since_s: on our clock; pairs whose later reading is older do not count.
        """
        found = 0.0
        for one, two in pairwise(self._readings):
            if two.at_s >= since_s:
                allowed_s = one.bound_s + two.bound_s + self._most_drift * (two.at_s - one.at_s)
                found = max(found, abs(two.offset_s - one.offset_s) - allowed_s)
        return found

    def skew_s(self, offset_s: float, start_s: float, end_s: float) -> float:
        """How far a clock that is taken to be `offset_s` from ours was from the truth at most, in a span on ours."""
        times = [start_s, *(each.at_s for each in self._readings if start_s < each.at_s < end_s), end_s]
        # Between two readings the bound is largest in the middle.
        times += [(one + two) / 2 for one, two in pairwise(times)]
        found = [self.at(each) for each in times]
        return max(abs(each.offset_s - offset_s) + each.bound_s for each in found)
