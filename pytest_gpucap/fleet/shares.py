"""What each replica of a fleet did in a window, and which was the slowest."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from pytest_gpucap.engines.protocol import Server
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.load.protocol import Journal, Status
from pytest_gpucap.results.fleet import ReplicaShare
from pytest_gpucap.results.telemetry import ProcessSummary
from pytest_gpucap.telemetry.summary import server_summary

SLOWER: Final = 0.05
"""A replica is called slow where its tokens take so much longer than those of the median replica. Replicas that are
alike differ by less, from drift and from the requests that each happens to get."""


def shares_of(
    server: FleetServer,
    start_s: float,
    end_s: float,
    *,
    journal: Journal | None,
    processes: Iterable[ProcessSummary] = (),
    places: Sequence[str] = (),
) -> tuple[ReplicaShare, ...]:
    """What each replica did between two times of the load generator's clock.

    Args:
        server: whose page of metrics was read meanwhile.
        start_s: beginning of the window.
        end_s: its end.
        journal: of the load; it tells who got which request, unless a router decided.
        processes: of all replicas, with the cores that they used.
        places: of the replicas, in their order: devices or nodes.
    """
    counts = _requests(journal, start_s, end_s, len(server.started))
    cores = {each.pid: each.cores for each in processes}
    found = []
    for place, replica in enumerate(server.started):
        told = server_summary(server.readings[place], start_s, end_s)
        running, tokens = told.running, told.output_tokens_per_s
        found.append(
            ReplicaShare(
                number=place + 1,
                place=places[place] if place < len(places) else "",
                requests=None if counts is None else counts[place],
                running=running,
                waiting=told.waiting,
                output_tokens_per_s=tokens,
                tpot_s=running / tokens if running and tokens else None,
                cores=_cores(replica, cores),
            )
        )
    return tuple(found)


def weakest(shares: Sequence[ReplicaShare]) -> tuple[int | None, str]:
    """Number of the replica that was clearly the slowest, and one line on it; None and empty where all are alike."""
    paces = {share.number: share.tpot_s for share in shares if share.tpot_s}
    if len(paces) < 2:  # noqa: PLR2004 - one has nobody to be slower than
        return None, ""
    slowest = max(paces, key=lambda number: paces[number] or 0.0)
    others = statistics.median(pace for number, pace in paces.items() if number != slowest and pace is not None)
    excess = (paces[slowest] or 0.0) / others - 1
    if excess < SLOWER:
        return None, ""
    share = next(each for each in shares if each.number == slowest)
    at = f" on {share.place}" if share.place else ""
    return slowest, f"replica {slowest}{at}: its tokens took {excess:.0%} longer than those of the others"


def outside_share(server: FleetServer, client_e2e_s: float, start_s: float, end_s: float) -> float | None:
    """Share of a request's time that passed outside of the replicas: in the router, and on the way.

    Args:
        server: whose replicas tell the sum and the number of their latencies, as vLLM does.
        client_e2e_s: mean end-to-end latency at the load generator.
        start_s: beginning of the window.
        end_s: its end.
    """
    totals, counts = 0.0, 0.0
    for series in server.latencies:
        columns = series.window(start_s, end_s)
        if columns["time_s"].size < 2 or np.isnan(columns["count"]).any():  # noqa: PLR2004 - growth needs two readings
            return None
        totals += float(columns["sum_s"][-1] - columns["sum_s"][0])
        counts += float(columns["count"][-1] - columns["count"][0])
    if counts <= 0 or not client_e2e_s > 0:
        return None
    return max(0.0, 1 - totals / counts / client_e2e_s)


def _requests(journal: Journal | None, start_s: float, end_s: float, replicas: int) -> list[int] | None:
    if journal is None or journal.replica is None:
        return None
    rows = (journal.due_s >= start_s) & (journal.due_s < end_s) & (journal.status != Status.DROPPED)
    return [int(count) for count in np.bincount(journal.replica[rows], minlength=replicas)]


def _cores(replica: Server, cores: Mapping[int, float]) -> float | None:
    found = [cores[pid] for pid in replica.pids() if pid in cores]
    return sum(found) if found else None
