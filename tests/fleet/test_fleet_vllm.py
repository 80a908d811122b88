"""Two tiny real vLLM servers as a fleet, behind vLLM's router and spread over by the load generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.protocol import LoadRequest, ServerRequest
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.fleet.fleet_engine import FleetEngine
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.fleet.router import missing_router
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.routing import Routing
from tests.whole_characters import WHOLE_CHARACTERS

WORKLOAD = Workload(Length.fixed(64), Length.fixed(4), extra_body=WHOLE_CHARACTERS)
FOREVER_S = 900.0


def answered(replica: HttpServer) -> float:
    return sum(each.value for each in replica.metrics().find("vllm:request_success_total"))


@pytest.mark.vllm_cpu
def test_the_router_of_vllm_in_front_of_two_real_servers(tmp_path: Path, vllm_python: str) -> None:
    """One start serves both: the router first, then the same replicas without it."""
    routing = Routing.parse("vllm:round_robin")
    assert not missing_router(routing)
    request = ServerRequest(model="synthetic:tiny", python=vllm_python, log_dir=tmp_path / "logs")
    engine = FleetEngine(VllmEngine(request), 2, routing)
    fleet = engine.start([], lambda _: None)
    assert isinstance(fleet, FleetServer)
    with fleet:
        replicas = [each for each in fleet.replicas if isinstance(each, HttpServer)]
        before = [answered(each) for each in replicas]
        runner = engine.runner(fleet, LoadRequest(workload=WORKLOAD, seed=1, workers=1))
        runner.run(open_loop(WORKLOAD, 10.0, 2.0, 1, 0))
        assert runner.settle(FOREVER_S)
        status = runner.journal().status
        runner.close()
        assert (status == Status.OK).all()
        parts = np.subtract([answered(each) for each in replicas], before)
        # The probes of calibration go through the router too.
        assert parts.min() >= status.size // 2 - 1, parts
        for replica in replicas:
            stranger = HttpServer(replica.base_url, replica.model, "no")
            assert stranger.request("/health") == "", "vLLM's router asks without the key"
            for path in ("/version", "/metrics", "/v1/models"):
                with pytest.raises(EndpointError, match="401"):
                    stranger.request(path)
        assert fleet.capabilities().kv_tokens == sum(each.capabilities().kv_tokens or 0 for each in replicas)
        assert fleet.capabilities().replicas == 2
        pids = fleet.pids()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
