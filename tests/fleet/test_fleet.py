"""A fleet of real processes: started together, answering as one, ended together, and told apart when one is lost."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from pytest_gpucap.engines.errors import EndpointError, ServerStartError
from pytest_gpucap.engines.protocol import LoadRequest
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.errors import MeasurementInvalid
from pytest_gpucap.fleet.fleet_engine import FleetEngine
from pytest_gpucap.fleet.fleet_server import FleetServer
from pytest_gpucap.fleet.router import missing_router
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import Length, Workload
from pytest_gpucap.routing import Routing
from pytest_gpucap.session.harness import check_adapters
from tests.fleet.replicas import engine_of, fleet_of
from tests.waiting import until

WORKLOAD = Workload(Length.fixed(64), Length.fixed(4))
FOREVER_S = 600.0
ROUTERS = ["client:round_robin", "client:least_outstanding", "vllm:round_robin", "nginx:least_conn"]


def answered(server: HttpServer) -> float:
    """Requests that a replica has answered."""
    return sum(each.value for each in server.metrics().find("vllm:request_success_total"))


@pytest.mark.parametrize("routing", ROUTERS)
def test_every_replica_answers_its_part_and_all_end_together(tmp_path: Path, routing: str) -> None:
    if why := missing_router(Routing.parse(routing)):
        pytest.skip(why)
    with fleet_of(tmp_path, 3, routing) as fleet:
        pids = fleet.pids()
        before = [answered(each) for each in fleet.replicas if isinstance(each, HttpServer)]
        engine = FleetEngine(engine_of(tmp_path), 3, Routing.parse(routing))
        runner = engine.runner(fleet, LoadRequest(workload=WORKLOAD, seed=1, workers=1))
        try:
            runner.run(open_loop(WORKLOAD, 100.0, 0.9, 1, 0))
            assert runner.settle(FOREVER_S)
            journal = runner.journal()
        finally:
            runner.close()
        assert (journal.status == Status.OK).all()
        after = [answered(each) for each in fleet.replicas if isinstance(each, HttpServer)]
        parts = np.subtract(after, before)
        assert parts.min() > 0.15 * journal.status.size, parts
        assert (journal.replica is None) == (not routing.startswith("client"))
        assert len(fleet.request("/metrics").split("# TYPE vllm:num_requests_running")) == 4
        assert fleet.capabilities().replicas == 3
        one = fleet.replicas[0].capabilities().max_num_seqs
        assert fleet.capabilities().max_num_seqs == (None if one is None else 3 * one)
        assert fleet.facts()["replicas"] == 3
        assert fleet.ended() == ""
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    fleet.close()  # safe to call twice


@pytest.mark.parametrize("routing", ["client", "vllm", "nginx"])
def test_a_request_without_the_key_is_refused_whichever_way_it_comes(tmp_path: Path, routing: str) -> None:
    if why := missing_router(Routing.parse(routing)):
        pytest.skip(why)
    with fleet_of(tmp_path, 2, routing) as fleet:
        chat = {"model": fleet.model, "messages": [{"role": "user", "content": "hello"}]}
        for url in {*fleet.urls, *(each.base_url for each in fleet.replicas)}:
            with pytest.raises(EndpointError, match="401"):
                HttpServer(url, fleet.model, "no").request("/v1/chat/completions", method="POST", content=chat)
        arguments = [" ".join(psutil.Process(pid).cmdline()) for pid in fleet.pids()]
        assert not any(str.__str__(fleet.api_key) in each for each in arguments)


@pytest.mark.parametrize(("number", "routing"), [(0, "client"), (1, "nginx")])
def test_a_replica_that_is_killed_is_named(tmp_path: Path, number: int, routing: str) -> None:
    if why := missing_router(Routing.parse(routing)):
        pytest.skip(why)
    with fleet_of(tmp_path, 2, routing) as fleet:
        killed = fleet.replicas[number]
        os.kill(min(killed.pids()), signal.SIGKILL)
        until(fleet.ended)
        assert fleet.ended().startswith(f"replica {number + 1} of 2: the vLLM server ended by SIGKILL"), fleet.ended()
        assert killed.log is not None
        assert fleet.log is not None
        assert fleet.log.path == killed.log.path
        engine = FleetEngine(engine_of(tmp_path), 2, Routing.parse(routing))
        assert engine.go_on_without_lost(fleet, lambda _: None)
        assert fleet.ended() == ""
        assert fleet.lost[0].startswith(f"replica {number + 1} of 2: ")
        assert not engine.go_on_without_lost(fleet, lambda _: None), "nobody else was lost"
        assert fleet.client.models.list().data
        assert fleet.replicas == [fleet.started[1 - number]]
        if routing == "client":
            assert fleet.urls == [fleet.started[1 - number].base_url]


def test_a_router_that_is_killed_is_named(tmp_path: Path) -> None:
    if why := missing_router(Routing.parse("nginx")):
        pytest.skip(why)
    with fleet_of(tmp_path, 2, "nginx") as fleet:
        assert fleet.router is not None
        os.kill(fleet.router._process.pid or 0, signal.SIGKILL)
        until(fleet.ended)
        assert fleet.ended().startswith("nginx ended by SIGKILL")
        assert fleet.router._folder is not None
        folder = Path(fleet.router._folder.name)
        assert folder.is_dir()
    assert not folder.exists()


def test_every_replica_is_asked_for_the_adapters_of_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a router, or with the first one alone, it would show only in failed requests."""
    workload = replace(WORKLOAD, adapters={"sql": 1.0})
    with fleet_of(tmp_path, 2) as fleet:
        with pytest.raises(MeasurementInvalid, match=r"^it was not measured: replica 1 of 2 has no adapter 'sql'; "):
            check_adapters(fleet, workload, "it")
        first = fleet.replicas[0]
        monkeypatch.setattr(first, "models", lambda: [first.model, "sql"])
        with pytest.raises(MeasurementInvalid, match="replica 2 of 2 has no adapter 'sql'"):
            check_adapters(fleet, workload, "it")
        fleet.replicas.pop()
        check_adapters(fleet, workload, "it")


def test_one_replica_that_does_not_start_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    engine = FleetEngine(engine_of(tmp_path), 3, Routing())
    # The second one to start dies; the others would be ready.
    python.write_text(
        f"#!/bin/sh\nmkdir {tmp_path}/first 2>/dev/null || {{ mkdir {tmp_path}/second 2>/dev/null && "
        f'echo "torch.OutOfMemoryError: CUDA out of memory" && exit 1; }}\n' + python.read_text().split("\n", 1)[1]
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    with pytest.raises(ServerStartError, match=r"replica [123] of 3: ") as raised:
        engine.start([], lambda _: None)
    assert raised.value.log_path is not None
    until(lambda: {each.pid for each in psutil.Process().children(recursive=True)} <= before)


def test_the_news_of_a_start_say_which_replica(tmp_path: Path) -> None:
    heard: list[str] = []
    with fleet_of(tmp_path, 2, heard=heard):
        pass
    assert {line[:15] for line in heard} == {"replica 1 of 2:", "replica 2 of 2:"}


def test_devices_are_dealt_out_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []
    one = engine_of(tmp_path, tensor_parallel_size=2)

    class Started(HttpServer):
        def close(self) -> None:
            pass

    def start(_: object, devices: list[str], on_wait: object) -> Started:
        del on_wait
        given.append(tuple(devices))
        return Started("http://127.0.0.1:1/v1", "m")

    monkeypatch.setattr(type(one), "start", start)
    engine = FleetEngine(one, 2, Routing())
    assert engine.gpus == 4
    assert isinstance(engine.start(["a", "b", "c", "d"], lambda _: None), FleetServer)
    assert sorted(given) == [("a", "b"), ("c", "d")]
