"""How well the replicas of a fleet add up: what each did under load, and what one of them sustains alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import structs

from pytest_gpucap.engines.protocol import Server
from pytest_gpucap.fleet.efficiency import scaling_efficiency
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.fleet.shares import outside_share, shares_of, weakest
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.measure import procedure
from pytest_gpucap.results.build import Context
from pytest_gpucap.results.fleet import FleetResult
from pytest_gpucap.results.measured import Measurement, Sample
from pytest_gpucap.results.telemetry import Bottleneck, BottleneckKind, TelemetrySummary
from pytest_gpucap.routing import RouterKind

if TYPE_CHECKING:
    from pytest_gpucap.session.harness import Harness
    from pytest_gpucap.session.server_manager import SystemUnderTest


def fleet_of(
    target: SystemUnderTest, samples: Sequence[Sample], watched: TelemetrySummary | None
) -> FleetResult | None:
    """What the replicas did where the load was highest; None for one server."""
    server = target.server
    if not isinstance(server, FleetServer) or len(server.started) == 1:
        return None
    found = FleetResult(replicas=len(server.started), router=str(server.routing), lost=tuple(server.lost))
    if not samples:
        return found
    hardest = max(samples, key=lambda sample: sample.in_flight_mean)
    journal = None if target.runner is None else target.runner.journal()
    shares = shares_of(
        server,
        hardest.start_s,
        hardest.end_s,
        journal=journal,
        processes=() if watched is None else watched.processes,
        places=_places(target, len(server.started)),
    )
    number, why = weakest(shares)
    return structs.replace(
        found,
        shares=shares,
        weakest=number,
        weakest_why=why,
        outside_share=_outside(server, journal, hardest.start_s, hardest.end_s),
    )


ROUTER_LIMIT: Final = 0.9
"""Of one core: a worker of a router that takes more has no room for a burst, as a load worker has none."""


def router_limit(server: Server, watched: TelemetrySummary) -> Bottleneck | None:
    """The router as the bottleneck, if one of its processes was out of processor time; None if none was.

    A process with one thread that counts (nginx) is at its limit with a core. One with many (vLLM's router) is at its
    limit where it takes nearly all cores that it may.
    """
    if not isinstance(server, FleetServer) or server.router is None:
        return None
    pids = server.router.pids()
    found = [each for each in watched.processes if each.pid in pids]
    many = server.routing.kind is RouterKind.VLLM
    most = len(os.sched_getaffinity(0)) if many else 1
    busiest = max(found, key=lambda each: each.cores, default=None)
    if busiest is None or busiest.cores < ROUTER_LIMIT * most:
        return None
    return Bottleneck(
        BottleneckKind.ROUTER,
        (f"{server.router.title} used {busiest.cores:.2f} of the {most} cores that one of its processes can use",),
        "a router with more workers or on a machine of its own, or several routers",
    )


def with_efficiency(context: Context, measurement: Measurement, harness: Harness) -> tuple[Context, Measurement]:
    """The context of a fleet's measurement with the efficiency, for which one replica is measured alone.

    The seconds that it takes are added to the measurement's.
    """
    fleet = context.fleet
    if fleet is None or harness.skips_efficiency:
        return context, measurement
    each = measurement.sustainable_rate
    if measurement.problems or each is None or measurement.at_least_rps is not None:
        why = "the fleet has no rate" if each is None or measurement.problems else "the fleet's rate is a bound"
        return replace(context, fleet=structs.replace(fleet, note=f"{why}, so it cannot be compared")), measurement
    if fleet.lost:
        note = "a replica was lost, so the fleet cannot be compared with one that is whole"
        return replace(context, fleet=structs.replace(fleet, note=note)), measurement
    harness.live.say("measuring one replica alone, for the scaling efficiency")
    with harness.driven_alone() as (runner, settings):
        alone = procedure.measure(runner, replace(harness.requirement, fleet=1), settings, harness.live)
    spent_s = {**measurement.spent_s, "one replica alone": sum(alone.spent_s.values())}
    rate = alone.sustainable_rate
    if alone.problems or rate is None or alone.at_least_rps is not None:
        reason = "; ".join(problem.text for problem in alone.problems) or alone.reason or "it gave only a bound"
        fleet = structs.replace(fleet, note=f"one replica alone was not measured: {reason}")
    elif (found := scaling_efficiency(each, rate)).low > 1:
        note = "replicas cannot sustain more together than alone, so one of the two rates is wrong"
        fleet = structs.replace(fleet, alone=rate, note=note)
    else:
        fleet = structs.replace(fleet, alone=rate, efficiency=found)
    return replace(context, fleet=fleet), replace(measurement, spent_s=spent_s)


def _places(target: SystemUnderTest, replicas: int) -> list[str]:
    """The devices of each replica, or its node, as reports name them."""
    if isinstance(target.server, FleetServer) and (nodes := target.server.nodes):
        return nodes
    devices = [] if target.lease is None else list(target.lease.devices)
    share = len(devices) // replicas
    if not share:
        return []
    return [
        ", ".join(device.label for device in devices[place * share : (place + 1) * share]) for place in range(replicas)
    ]


def _outside(server: FleetServer, journal: Journal | None, start_s: float, end_s: float) -> float | None:
    if journal is None:
        return None
    ended = (journal.end_s >= start_s) & (journal.end_s < end_s) & np.isfinite(journal.last_s)
    if not ended.any():
        return None
    client_s = float((journal.last_s[ended] - journal.sent_s[ended]).mean())
    return outside_share(server, client_s, start_s, end_s)
