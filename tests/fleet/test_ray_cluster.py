"""Replicas on a real Ray cluster of three nodes: placed, started, watched and ended, whatever ends first."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_gpucap.engines.errors import EndpointError, ServerStartError
from pytest_gpucap.engines.protocol import Server, ServerRequest
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.fleet.fleet_telemetry import FleetTelemetry
from pytest_gpucap.fleet.ray_cluster import RayCluster
from pytest_gpucap.fleet.ray_library import RayUnavailable
from pytest_gpucap.fleet.ray_placement import RayPlacementError
from pytest_gpucap.fleet.ray_server import RayServer
from pytest_gpucap.fleet.ray_telemetry import RayTelemetry
from pytest_gpucap.gpu.classes import GpuClass, find_class
from pytest_gpucap.results.problems import ProblemKind
from pytest_gpucap.telemetry.sampler import Telemetry
from tests.engines.server_family import TREE, Family, new_family
from tests.fleet.ray_cluster import TestCluster, all_free, new_cluster
from tests.gpu.fake_nvml import answers
from tests.namespaces import unshared
from tests.waiting import FOREVER_S, until

pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.one_process]

TESTS = Path(__file__).parents[1]
NODES = 3
CPU, A10G = find_class("cpu"), find_class("a10g")

ray_cluster = pytest.fixture(new_cluster, name="ray_cluster", scope="module")
family = pytest.fixture(new_family, name="family")

Start = Callable[..., list[RayServer]]


@pytest.fixture
def driver(ray_cluster: TestCluster) -> Iterator[RayCluster]:
    """This process as a driver."""
    handler = signal.getsignal(signal.SIGTERM)
    with RayCluster.connect(ray_cluster.address) as made:
        assert signal.getsignal(signal.SIGTERM) is handler
        until(lambda: all_free(made) and len(made.nodes()) == NODES)
        yield made


@pytest.fixture
def start(driver: RayCluster, tmp_path: Path, family: Family) -> Start:
    """Starts replicas of a simulated server, or of a stand-in with a tree of processes."""

    def make(
        count: int = NODES,
        program: str = "plugin/fast_vllm.py",
        *,
        gpu_class: GpuClass | None = A10G,
        env: Mapping[str, str] | None = None,
        heard: Callable[[str], None] = lambda _: None,
        **arguments: Any,
    ) -> list[RayServer]:
        engine = engine_of(program, tmp_path, **arguments)
        found = driver.start(engine, count, gpu_class=gpu_class, on_wait=heard, env={**family.env, **(env or {})})
        assert all(isinstance(each, RayServer) for each in found)
        return found  # type: ignore[return-value] # as was just seen

    return make


def engine_of(program: str, folder: Path, **arguments: Any) -> VllmEngine:
    """vLLM's engine with an interpreter that runs another program, whatever it is told to run."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {TESTS / program} "$@"\n')
    python.chmod(0o755)
    request = ServerRequest(
        model="/models/stand-in",
        arguments=arguments,
        python=str(python),
        startup_timeout_s=FOREVER_S,
        log_dir=folder / "logs",
    )
    return VllmEngine(request)


def worker_of(server: RayServer) -> psutil.Process:
    """The process of Ray that owns a server."""
    return psutil.Process(server.ask("pid"))


def test_three_nodes_have_one_replica_each_and_share_one_key(
    ray_cluster: TestCluster, driver: RayCluster, start: Start, family: Family
) -> None:
    assert driver.has() == "3 nodes; GPUs: 3x A10G, 3 free; CPUs: 6, 6 free"
    heard: list[str] = []
    servers = start(heard=heard.append)
    assert driver.has() == "3 nodes; GPUs: 3x A10G, 0 free; CPUs: 6, 3 free"
    assert len({each.base_url for each in servers}) == len({each.node_id for each in servers}) == NODES
    assert len({each.model for each in servers}) == len({f"{each.api_key}" for each in servers}) == 1
    for server in servers:
        assert any(node.address in server.base_url for node in ray_cluster.nodes)
        answer = server.client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=3
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        with pytest.raises(EndpointError, match="401"):
            HttpServer(server.base_url, server.model, "another key").models()
        known = server.capabilities()
        assert known.simulated
        assert not known.loopback
        facts = server.facts()
        assert list(facts)[:2] == ["server", "node"]
        assert facts["node"] == server.node
        assert server.pids() == set()
        assert server.ended() == ""
        assert server.software == "vLLM"
        assert server.devices == ("GPU 0, as Ray says",)
    # What Ray sets for its own workers does not reach a server.
    assert all("OMP_NUM_THREADS" not in process.environ() for process in family.alive())
    for server in servers:
        server.close()
        server.close()
    assert family.alive() == []
    until(lambda: all_free(driver))


class OwnEngine(VllmEngine):
    """An engine of a test suite, whose module no node has."""

    name = "own"

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:
        os.environ["OWN_ENGINE_ON"] = ",".join(devices)
        return super().start(devices, on_wait)


def test_the_engine_of_a_test_suite_goes_along(driver: RayCluster, tmp_path: Path, family: Family) -> None:
    engine = OwnEngine(engine_of("plugin/fast_vllm.py", tmp_path).request)
    (server,) = driver.start(engine, 1, gpu_class=A10G, on_wait=print, env=family.env)
    assert {each.environ().get("OWN_ENGINE_ON") for each in family.alive()} == {"0"}
    server.close()


def test_on_class_cpu_replicas_take_no_gpu(driver: RayCluster, start: Start) -> None:
    servers = start(gpu_class=CPU)
    assert driver.has() == "3 nodes; GPUs: 3x A10G, 3 free; CPUs: 6, 3 free"
    assert len({each.node_id for each in servers}) == NODES
    assert {each.devices for each in servers} == {()}


def test_a_log_is_copied_and_has_no_secret(start: Start, family: Family) -> None:
    secret = "hf_" + "a1" * 12
    words = {"STAND_IN": "useless", "STAND_IN_LOG": f"the token is {secret}\nand so on\n"}
    (server,) = start(1, "engines/stand_in.py", env=words)
    until(lambda: "and so on" in server.log.text())
    written = server.log.path.read_text()
    assert secret not in written
    assert "the token is ***" in written
    assert server.log.path.stat().st_mode & 0o77 == 0
    server.close()
    assert family.alive() == []


def test_a_server_that_does_not_start_ends_all(driver: RayCluster, start: Start, family: Family) -> None:
    words = {"STAND_IN": "die", "STAND_IN_LOG": "RuntimeError: the engine fell over"}
    with pytest.raises(ServerStartError, match=r"the vLLM server did not start: on \S+ \([0-9.]+\): ") as caught:
        start(env=words, program="engines/stand_in.py")
    assert "the engine fell over" in caught.value.log_tail
    assert caught.value.log_path is not None
    assert "the engine fell over" in caught.value.log_path.read_text()
    assert family.alive() == []
    until(lambda: all_free(driver))


def test_a_start_that_is_given_up_leaves_nothing(driver: RayCluster, start: Start, family: Family) -> None:
    def stop(line: str) -> None:
        if "replicas are ready" in line and len(family.alive()) >= NODES:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(env={"STAND_IN": "hang"}, program="engines/stand_in.py", heard=stop)
    assert family.alive() == []
    until(lambda: all_free(driver))


def test_what_the_cluster_lacks_is_refused_in_one_line(driver: RayCluster, tmp_path: Path) -> None:
    engine = engine_of("plugin/fast_vllm.py", tmp_path)
    has = r"3 nodes; GPUs: 3x A10G, 3 free; CPUs: 6, 6 free"
    for count, gpu_class, asked in (
        (4, A10G, r"4 replicas of 1 GPU of class a10g each \(accelerator_type:A10G\)"),
        (1, find_class("h100-sxm"), r"1 replica of 1 GPU of class h100-sxm \(accelerator_type:H100\)"),
        (7, CPU, r"7 replicas of 1 CPU and no GPU each"),
    ):
        heard: list[str] = []
        with pytest.raises(RayPlacementError) as caught:
            driver.start(engine, count, gpu_class=gpu_class, on_wait=heard.append, place_s=1.5)
        assert str(caught.value).count("\n") == 0
        assert caught.match(rf"^{asked} could not be placed within 1.5 s; the cluster has {has}$")
        assert all(line.startswith("waiting for room for") for line in heard)
        until(lambda: all_free(driver))


def test_a_replica_bigger_than_every_node_is_refused_at_once(driver: RayCluster, tmp_path: Path) -> None:
    engine = engine_of("plugin/fast_vllm.py", tmp_path, tensor_parallel_size=2)
    with pytest.raises(RayPlacementError, match=r'no node has that many .*distributed_executor_backend="ray"'):
        driver.start(engine, 1, gpu_class=A10G, on_wait=print)
    engine = engine_of("plugin/fast_vllm.py", tmp_path, tensor_parallel_size=4, distributed_executor_backend="ray")
    with pytest.raises(RayPlacementError, match="the cluster is too small"):
        driver.start(engine, 1, gpu_class=A10G, on_wait=print)


def test_a_replica_over_several_nodes_leaves_its_gpus_to_vllm(
    ray_cluster: TestCluster, driver: RayCluster, start: Start, family: Family
) -> None:
    (server,) = start(1, tensor_parallel_size=2, distributed_executor_backend="ray")
    assert driver.has() == "3 nodes; GPUs: 3x A10G, 3 free; CPUs: 6, 5 free"
    assert {each.environ().get("RAY_ADDRESS") for each in family.alive()} == {ray_cluster.address}
    server.close()


def test_a_server_killed_says_so(driver: RayCluster, start: Start, family: Family) -> None:
    (server,) = start(1, "engines/stand_in.py")
    assert len(family.alive()) == TREE + 1  # and its watchdog
    (main,) = [each for each in family.alive() if "--served-model-name" in each.cmdline() and watched(each)]
    main.kill()
    why = until(server.ended)
    assert why == f"the replica on {server.node} ended by SIGKILL in the middle of the measurement"
    family.wait_until_gone()
    server.close()
    until(lambda: all_free(driver))


def watched(process: psutil.Process) -> bool:
    """Whether it is a watchdog's child."""
    parent = process.parent()
    return parent is not None and any(word.endswith("watchdog.py") for word in parent.cmdline())


def test_a_killed_worker_takes_its_server_along(
    driver: RayCluster, start: Start, family: Family, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = start(2, "engines/stand_in.py")
    worker_of(first).kill()
    why = until(first.ended)
    assert why.startswith(f"the replica on {first.node} ended: its worker process has died")
    until(lambda: len(family.alive()) == TREE + 1)
    assert second.ended() == ""
    first.close()
    second.close()
    assert family.alive() == []
    until(lambda: all_free(driver))
    assert capfd.readouterr() == ("", "")  # Ray would print the end of a log


def test_what_a_killed_watchdog_left_goes_with_the_replica(start: Start, family: Family) -> None:
    (server,) = start(1, "engines/stand_in.py")
    (watchdog,) = [each for each in family.alive() if any(word.endswith("watchdog.py") for word in each.cmdline())]
    worker = worker_of(server)
    worker.suspend()  # so that it cannot clean up by itself
    watchdog.kill()
    worker.kill()
    until(server.ended)
    assert family.alive() != []
    server.close()
    assert family.alive() == []


def test_an_end_by_ray_itself_takes_the_server_along(driver: RayCluster, start: Start, family: Family) -> None:
    import ray

    (server,) = start(1, "engines/stand_in.py")
    ray.kill(server._remote.actor)
    assert until(server.ended) == f"the replica on {server.node} ended: it was killed by `ray.kill`."
    family.wait_until_gone()
    server.close()


def test_a_dead_node_takes_its_server_along(
    ray_cluster: TestCluster, driver: RayCluster, start: Start, family: Family
) -> None:
    servers = start(program="engines/stand_in.py")
    node = ray_cluster.nodes.pop()
    (lost,) = [each for each in servers if node.address in each.node]
    node.raylet.kill()
    until(lambda: len(family.alive()) == (NODES - 1) * (TREE + 1))
    why = until(lambda: lost.ended(1.0))
    assert why in {
        f"the node {lost.node} went away",
        f"the node {lost.node} does not answer, and neither does the server on it",
    }
    node.end()
    for server in servers:
        server.close()
    assert family.alive() == []
    ray_cluster.add()
    until(lambda: len(driver.nodes()) == NODES and all_free(driver))


DRIVER = """
import sys
from pathlib import Path
from pytest_gpucap.fleet.ray_cluster import RayCluster
from tests.fleet.test_ray_cluster import A10G, engine_of
cluster = RayCluster.connect(sys.argv[1])
env = dict(word.split("=") for word in sys.argv[3:])
cluster.start(engine_of("engines/stand_in.py", Path(sys.argv[2])), 3, gpu_class=A10G, on_wait=lambda _: None, env=env)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_takes_all_servers_along(
    driver: RayCluster, ray_cluster: TestCluster, family: Family, tmp_path: Path, number: signal.Signals
) -> None:
    words = [f"{name}={value}" for name, value in family.env.items()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, ray_cluster.address, str(tmp_path), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        assert len(family.alive()) == NODES * (TREE + 1)
        assert not all_free(driver)
        other.send_signal(number)
        other.wait()
        family.wait_until_gone()
        until(lambda: all_free(driver))


def test_telemetry_of_a_node_is_on_our_clock(start: Start) -> None:
    (server,) = start(1)
    with server.telemetry("warn") as watched:
        start_s = watched.now()
        until(lambda: len(watched.series(start_s, watched.now())["server"]["time_s"]) >= 2)
        until(lambda: watched.summary(start_s, watched.now()).host)
        end_s = watched.now()
        found, series = watched.summary(start_s, end_s), watched.series(start_s, end_s)
        assert (found.start_s, found.end_s) == (start_s, end_s)
        assert found.server.readings >= 2
        assert found.server.running == 0
        assert found.processes
        bound_s = watched.clock_bound_s
        assert all(start_s - bound_s <= at_s <= end_s + bound_s for at_s in series["server"]["time_s"])
        assert watched.problems(start_s, end_s) == []
        server.close()
        assert [each.kind.value for each in watched.problems(start_s, end_s)] == ["ended"]
        assert watched.summary(start_s, end_s).server.readings == 0


def said(server: Server, words: str) -> bool:
    """Whether a server's log has these words."""
    return server.log is not None and words in server.log.text()


def was_sampled(watched: RayTelemetry) -> bool:
    """Whether there are figures of the server and of its processes."""
    found = watched.summary(0.0, watched.now())
    return bool(found.processes) and found.server.readings > 0


@pytest.mark.vllm_cpu
def test_two_real_servers_share_name_and_key(
    driver: RayCluster, vllm_python: str, tmp_path: Path, family: Family
) -> None:
    request = ServerRequest(
        model="synthetic:tiny",
        arguments={"max_num_seqs": 4},
        python=vllm_python,
        startup_timeout_s=FOREVER_S,
        log_dir=tmp_path / "logs",
    )
    heard: list[str] = []
    first, second = driver.start(VllmEngine(request), 2, gpu_class=CPU, on_wait=heard.append, env=family.env)
    assert any("of 2 replicas are ready" in line for line in heard)
    assert first.base_url != second.base_url
    assert first.model == second.model
    for server in (first, second):
        answer = server.client.completions.create(model=first.model, prompt="Hello", max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        known = server.capabilities()
        assert known.started
        assert not known.loopback
        assert known.max_num_seqs == 4
        assert known.kv_tokens
        until(partial(said, server, "Application startup complete"))
        assert isinstance(server, RayServer)
        with server.telemetry() as watched:
            until(partial(was_sampled, watched))
            assert watched.faults == {}
    driver.close()
    assert family.alive() == []


def test_a_node_checks_what_its_gpus_are_and_watches_them(
    ray_cluster: TestCluster, driver: RayCluster, start: Start, family: Family
) -> None:
    h200 = find_class("h200")
    with answers("h200-x4") as nvml:
        for index in (1, 3):  # one of each replica's
            nvml.set(index, event_types={"error": 3})
        node = ray_cluster.add(gpus=4, kind="A10G", env=nvml.environment)
        try:
            until(lambda: len(driver.nodes()) == NODES + 1)
            assert "4x A10G/H200, 4 free" in driver.has()  # one label by hand, the other is Ray's own
            with pytest.raises(ServerStartError) as caught:
                start(1, gpu_class=A10G, tensor_parallel_size=4)
            assert "GPU class a10g: this machine has 4x NVIDIA H200" in str(caught.value)
            assert node.address in str(caught.value)
            until(lambda: "4x A10G/H200, 4 free" in driver.has())

            first, second = start(2, gpu_class=h200, tensor_parallel_size=2)
            visible = {each.environ().get("CUDA_VISIBLE_DEVICES") for each in family.alive()}
            assert sorted(filter(None, visible)) == ["0,1", "2,3"]
            assert first.devices == second.devices
            assert first.devices[0].startswith("2x NVIDIA H200, 140 GiB, driver ")
            with first.telemetry("off") as watched:
                until(lambda: all(each.readings for each in watched.summary(0.0, watched.now()).devices))
                assert len(watched.summary(0.0, watched.now()).devices) == 2
                series = watched.series()
                assert len(series["devices"]) == 2
                for columns in series["devices"].values():
                    assert all(0 < at_s <= watched.now() + watched.clock_bound_s for at_s in columns["time_s"])
                # What the driver reports there, and what it cannot, is said here.
                for index in (0, 2):
                    nvml.set(index, xids=[{"xid": 31}])
                (problem,) = watched.problems(0.0, watched.now())
                assert problem.kind is ProblemKind.XID
                assert problem.text.endswith(f" (on {first.node})")
                (remark,) = FleetTelemetry([watched, watched], Telemetry((), tuple), lambda _: True).remarks()
                assert re.match(
                    r"XID errors of GPU [13] \(NVIDIA H200\) could not be seen: NVML gives no events \(", remark
                )
                assert remark.endswith(f" (on {first.node})")
            first.close()
            second.close()
            assert family.alive() == []
        finally:
            node.end()
            ray_cluster.nodes.remove(node)
    until(lambda: len(driver.nodes()) == NODES)


def test_no_cluster_is_one_line(ray_cluster: TestCluster) -> None:
    host = ray_cluster.address.partition(":")[0]
    for address, text in (
        (f"{host}:1", f"no Ray cluster at {host}:1: Connection refused"),
        ("somewhere", "somewhere is no address of a Ray cluster: give auto or HOST:PORT"),
        ("here:\u00b2", "here:\u00b2 is no address of a Ray cluster"),
        (f"here:{'9' * 5000}", "here:9999"),
        ("ray://here:10001", "ray://here:10001: a driver stands on a node of the cluster"),
    ):
        with pytest.raises(RayUnavailable) as caught:
            RayCluster.connect(address)
        assert str(caught.value).startswith(text)
        assert "\n" not in str(caught.value)


def test_auto_is_the_cluster_of_this_machine(ray_cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", ray_cluster.env["RAY_TMPDIR"])
    with RayCluster.connect("auto") as found:
        until(lambda: len(found.nodes()) == NODES)
        with pytest.raises(RayUnavailable, match="connected to a Ray cluster already"):
            RayCluster.connect("auto")
    found.close()


def test_where_no_cluster_runs_auto_is_one_line() -> None:
    code = "from pytest_gpucap.fleet.ray_cluster import RayCluster; RayCluster.connect('auto')"
    # Ray looks for it among the processes that it can see.
    ran = unshared("--pid --fork --mount-proc", "env", "RAY_TMPDIR=/nowhere", sys.executable, "-c", code)
    text = "RayUnavailable: no Ray cluster runs on this machine: start one (ray start --head), or join one "
    assert text in ran.stderr.splitlines()[-1]


def test_another_version_of_ray_is_one_line(ray_cluster: TestCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.0.0")
    with pytest.raises(RayUnavailable, match=r"has another version of Ray or Python: .*2\.0\.0") as caught:
        RayCluster.connect(ray_cluster.address)
    assert "\n" not in str(caught.value)
