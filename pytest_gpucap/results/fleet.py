"""What a fleet showed beyond its rate: how well its replicas add up, and what each of them did."""

from __future__ import annotations

import msgspec

from pytest_gpucap.results.encoding import Figure
from pytest_gpucap.results.measured import Interval


class ReplicaShare(msgspec.Struct, frozen=True):
    """What one replica did in the window with the most requests in flight. None for what nobody told.

    Attributes:
        number: from 1, in the order of the devices.
        place: its devices, or its node.
        requests: that it was sent; None behind a router.
        running, waiting: mean requests in its engine, decoded and queued.
        output_tokens_per_s: that it made.
        tpot_s: mean seconds between two tokens of a request: running requests over tokens a second.
        cores: processor cores that its processes used.
    """

    number: int
    place: str = ""
    requests: int | None = None
    running: Figure | None = None
    waiting: Figure | None = None
    output_tokens_per_s: Figure | None = None
    tpot_s: Figure | None = None
    cores: Figure | None = None


class FleetResult(msgspec.Struct, frozen=True):
    """A fleet against its replicas.

    Attributes:
        replicas: that were started.
        router: what spread the requests, and its policy.
        together: requests a second of all of them.
        alone: requests a second of one replica while the others idled; None where it was not measured.
        efficiency: `together` over `replicas` times `alone`, with the interval of both; None without `alone`.
        shares: of each replica; empty where nothing was told.
        weakest: number of the replica that was clearly the slowest; None where they were alike.
        weakest_why: one line on it; empty where there is none.
        outside_share: of a request's time, what it spent outside of the replicas, in the router and on the way; None
            where the replicas do not tell their own latency.
        lost: one line for each replica that was lost in the middle.
        note: why there is no efficiency; empty where there is one.
    """

    replicas: int
    router: str
    together: Interval | None = None
    alone: Interval | None = None
    efficiency: Interval | None = None
    shares: tuple[ReplicaShare, ...] = ()
    weakest: int | None = None
    weakest_why: str = ""
    outside_share: Figure | None = None
    lost: tuple[str, ...] = ()
    note: str = ""
