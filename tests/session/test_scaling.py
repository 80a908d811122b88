"""What is told of a fleet beside its rate."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.results.telemetry import BottleneckKind, ProcessSummary, TelemetrySummary
from pytest_gpucap.routing import Routing
from pytest_gpucap.session.scaling import router_limit

CORES = len(os.sched_getaffinity(0))


def fleet(routing: str) -> FleetServer:
    """Two replicas of whom nobody asks anything, and a router with two processes."""
    router: Any = SimpleNamespace(
        pids=lambda: {1, 2}, title="the router", base_url="http://127.0.0.1:1/v1", ended=lambda: ""
    )
    replicas = [HttpServer("http://127.0.0.1:2/v1", "m"), HttpServer("http://127.0.0.1:3/v1", "m")]
    return FleetServer(replicas, None if routing == "client" else router, Routing.parse(routing))


def used(*cores: float) -> TelemetrySummary:
    return TelemetrySummary(
        0.0, 10.0, processes=tuple(ProcessSummary(pid, "helper", each, each) for pid, each in enumerate(cores, 1))
    )


@pytest.mark.parametrize(
    ("routing", "cores", "limited"),
    [
        ("nginx", [0.95, 0.1, 2.0], True),
        ("nginx", [0.6, 0.6, 2.0], False),
        ("vllm", [0.95 * CORES, 0.0], True),
        ("vllm", [0.5 * CORES, 0.0], False),
        ("client", [3.0, 3.0], False),
        ("nginx", [], False),
    ],
)
def test_a_router_out_of_processor_time_is_the_bottleneck(routing: str, cores: list[float], limited: bool) -> None:
    found = router_limit(fleet(routing), used(*cores))
    assert (found is not None) == limited
    if found is not None:
        assert found.kind is BottleneckKind.ROUTER
        assert "cores" in found.evidence[0]


def test_one_server_has_no_router() -> None:
    assert router_limit(HttpServer("http://127.0.0.1:1/v1", "m"), used(9.0)) is None
