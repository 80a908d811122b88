"""How the load generator spreads requests over the replicas of a fleet, as a client or a load balancer would."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Spread(StrEnum):
    """Which replica gets the next request."""

    ROUND_ROBIN = "round_robin"
    """Each in turn."""
    LEAST_OUTSTANDING = "least_outstanding"
    """One with the fewest requests in flight. Each load worker knows of its own requests only."""


def next_replica(spread: Spread, number: int, outstanding: Sequence[int]) -> int:
    """The replica for request `number`, where `outstanding` requests are in flight at each.

    Of several with the fewest requests, they take turns: otherwise an idle fleet would send everything to its first.
    """
    replicas = len(outstanding)
    if replicas == 1 or spread is Spread.ROUND_ROBIN:
        return number % replicas
    least = min(outstanding)
    return next(place for step in range(replicas) if outstanding[place := (number + step) % replicas] == least)
