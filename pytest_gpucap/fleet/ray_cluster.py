"""Replicas on a Ray cluster: where they are placed, how they start, and how they end.

Each replica is an actor in a bundle of one placement group. The actor owns the server on its node (`ray_node.py`), and
Ray ends the actor when this process, the driver, ends in whatever way. So no server outlives its measurement.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pytest_gpucap
from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.protocol import Engine, Server, ServerRequest, ServingIdentity
from pytest_gpucap.fleet.ray_library import RayUnavailable, connected, ray_module, reason
from pytest_gpucap.fleet.ray_node import Failed, NodeFacts, ReplicaOnNode, Started
from pytest_gpucap.fleet.ray_placement import Need, Node, RayPlacementError, check_size, cluster_line
from pytest_gpucap.fleet.ray_server import LogStream, RayServer, Remote, end_replica, own_signals
from pytest_gpucap.foreign_text import on_one_line
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.occupancy import IdleMemory
from pytest_gpucap.installing import pip_install

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

PLACE_S: Final = 60.0
"""Longest wait for a placement."""
WORKER_S: Final = 300.0
"""Longest wait for a worker process on a node, which first fetches this package."""
_PERIOD_S: Final = 1.0
_CALLS: Final = 8
"""Of one actor at once: a start takes minutes, and its log is read meanwhile."""
_KEEP_CHILDREN: Final = "RAY_kill_child_processes_on_worker_exit"


@dataclass(slots=True)
class _Replica:
    """A replica on its way to a server."""

    remote: Remote
    log: LogStream
    where: NodeFacts | None = None
    start: Any = None
    started: Started | None = None

    @property
    def node(self) -> str:
        return "a node" if self.where is None else f"{self.where.name} ({self.where.address})"


@dataclass(slots=True)
class _Reservation:
    """A placement group, given back when the last of its replicas has ended."""

    group: PlacementGroup
    users: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def leave(self) -> None:
        """One replica less."""
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.release()

    def release(self) -> None:
        """Give everything back. Safe to call twice."""
        from ray.exceptions import RayError
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(RayError):
            remove_placement_group(self.group)


class RayCluster:
    """A Ray cluster of which this process is a driver. Made by `connect`."""

    def __init__(self) -> None:
        self._quiet = contextlib.ExitStack()
        self._servers: list[RayServer] = []
        self._reservations: list[_Reservation] = []
        self._closed = False

    @classmethod
    def connect(cls, address: str) -> RayCluster:
        """Become a driver of a cluster.

        This package goes with the driver: Ray copies it to every node that runs one of its workers, once per content.
        So both sides run the same code, also where another version or a working copy is installed. What the package
        needs must be installed on the nodes.

        Args:
            address: ``auto``, for the cluster that this machine is a node of, or ``HOST:PORT`` of its head.

        Raises:
            RayUnavailable: one line: Ray is not installed, no cluster is there, it has another version of Ray or of
                Python, or this process is a driver already.
        """
        ray = ray_module()
        if ray.is_initialized():
            raise RayUnavailable("this process is connected to a Ray cluster already: call ray.shutdown() first")
        if "://" in address:
            raise RayUnavailable(
                f"{address}: a driver stands on a node of the cluster, so give auto or HOST:PORT, without a scheme"
            )
        _check_answers(address)
        package = Path(pytest_gpucap.__file__).parent
        try:
            with own_signals():
                ray.init(
                    address=address,
                    namespace=f"gpucap-{secrets.token_hex(6)}",
                    log_to_driver=False,
                    configure_logging=False,
                    runtime_env={"py_modules": [str(package)], "excludes": ["**/__pycache__"]},
                )
        except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError, ray.exceptions.RayError) as error:
            with contextlib.suppress(Exception):
                ray.shutdown()
            raise RayUnavailable(_why_not(address, error)) from None
        made = cls()
        made._quiet.enter_context(_quiet(ray))
        return made

    def close(self) -> None:
        """End every server that is left, give everything back, and leave the cluster. Safe to call twice.

        Raises:
            ServerStopError: if a process outlived SIGKILL, or GPU memory did not come back.
        """
        if self._closed:
            return
        self._closed = True
        with contextlib.ExitStack() as closing:
            closing.callback(self._quiet.close)
            closing.callback(ray_module().shutdown)
            for reservation in self._reservations:
                closing.callback(reservation.release)
            closing.callback(all_at_once, [server.close for server in self._servers])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has(self) -> str:
        """One line: nodes, GPUs by accelerator type and CPUs, and how many of them are free."""
        return cluster_line(self.nodes())

    def nodes(self) -> list[Node]:
        """The living nodes."""
        ray = connected()
        free = ray._private.state.available_resources_per_node()  # noqa: SLF001 - nothing public tells it without a dashboard
        return [
            Node(
                each["NodeID"],
                each["NodeManagerHostname"],
                each["NodeManagerAddress"],
                each["Resources"],
                free.get(each["NodeID"], {}),
            )
            for each in ray.nodes()
            if each["Alive"]
        ]

    def start(
        self,
        engine: Engine,
        count: int,
        *,
        gpu_class: GpuClass | None,
        on_wait: Callable[[str], None],
        env: Mapping[str, str] | None = None,
        idle: IdleMemory | None = None,
        place_s: float = PLACE_S,
        identity: ServingIdentity | None = None,
    ) -> list[Server]:
        """Place so many replicas and start their servers, all with one name and one key.

        Args:
            engine: of every replica. What it starts, its node must have: the interpreter, the model, vLLM.
            count: of replicas.
            gpu_class: that each node must have; None: any GPU. On class ``cpu``, replicas take no GPU.
            on_wait: called about once a second with what is waited for. What it raises ends the start.
            env: variables for the servers, laid over their nodes' own. They are no part of Ray's runtime environment,
                so its dashboard does not show them.
            idle: memory that a GPU may have in use and still count as free; see `lease`.
            place_s: longest wait for the placement, in seconds.
            identity: that all share; None: a new one.

        Returns:
            The servers, all ready: `RayServer`.

        Raises:
            RayPlacementError: one line, if the cluster cannot take them, or not in time. Nothing is reserved then.
            ServerStartError: if one of them does not become ready. None of them is left running.
        """
        need = Need.of(engine, gpu_class)
        nodes = self.nodes()
        check_size(need, count, nodes)
        reserved = self._reserve(need, count, nodes, on_wait, place_s)
        self._reservations.append(reserved)
        replicas: list[_Replica] = []
        try:
            identity = identity or ServingIdentity.new(engine.request.model or engine.name)
            for index in range(count):  # one by one: those that were placed are ended if one cannot be
                replicas.append(_placed(engine, reserved.group, index, need, env or {}))  # noqa: PERF401
            self._wait_for_workers(replicas, on_wait)
            for replica in replicas:
                _begin(replica, engine, identity, need, idle)
            _wait_for_servers(replicas, engine, on_wait)
        except BaseException:
            _give_up(replicas)
            reserved.release()
            raise
        servers = [_served(replica, identity, reserved) for replica in replicas]
        self._servers += servers
        return list[Server](servers)

    def _reserve(
        self, need: Need, count: int, nodes: Sequence[Node], on_wait: Callable[[str], None], place_s: float
    ) -> _Reservation:
        from ray.util.placement_group import placement_group

        bundle = need.bundle(nodes)
        # Replicas that share nothing but a node's processor disturb one another there. GPUs are kept together instead,
        # so that a bigger replica of somebody else still finds room.
        group = placement_group([bundle] * count, strategy="PACK" if need.gpus else "SPREAD")
        reserved = _Reservation(group, count)
        asked = need.describe(count)
        deadline = time.monotonic() + place_s
        try:
            while not group.wait(min(_PERIOD_S, max(0.05, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    label = need.label(nodes)
                    known_as = f" (accelerator_type:{label})" if need.gpus and label else ""
                    raise RayPlacementError(  # noqa: TRY301 - released below like every other way out
                        f"{asked}{known_as} could not be placed within {place_s:g} s; the cluster has {self.has()}"
                    )
                on_wait(f"waiting for room for {asked}; the cluster has {self.has()}")
        except BaseException:
            reserved.release()
            raise
        return reserved

    @staticmethod
    def _wait_for_workers(replicas: Sequence[_Replica], on_wait: Callable[[str], None]) -> None:
        """Wait until every replica has a worker process that has loaded this package."""
        ray = ray_module()
        deadline = time.monotonic() + WORKER_S
        for replica in replicas:
            asked = replica.remote.actor.where.remote()
            while replica.where is None:
                try:
                    replica.where = ray.get(asked, timeout=_PERIOD_S)
                except ray.exceptions.GetTimeoutError:
                    if time.monotonic() > deadline:
                        text = f"Ray has started no worker process for it within {WORKER_S:g} s"
                        raise ServerStartError(text) from None
                    on_wait("waiting for Ray's worker processes")
                except ray.exceptions.RayError as error:
                    raise ServerStartError(_why_no_worker(error)) from None


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Keep Ray from printing what becomes of workers and nodes, with the ends of their logs, to standard output.

    That may be the terminal in the middle of a report. `RayServer.ended` tells it in one line. Ray has no option for
    this.
    """
    where, name = ray._private.worker, "print_to_stdstream"  # noqa: SLF001 - see above
    kept = getattr(where, name, None)
    if kept is None:
        yield
        return
    setattr(where, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(where, name, kept)


def _check_answers(address: str) -> None:
    """Ray itself would try for a minute."""
    import socket

    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port):
        raise RayUnavailable(f"{address} is no address of a Ray cluster: give auto or HOST:PORT")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10.0):
            pass
    except (OSError, OverflowError) as error:
        raise RayUnavailable(f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}") from None


def _why_not(address: str, error: BaseException) -> str:
    told = on_one_line(str(error))[:400] or type(error).__name__
    if "Version mismatch" in told:
        return f"the Ray cluster at {address} has another version of Ray or Python: {told}"
    if "Could not find any running Ray instance" in told:
        return (
            "no Ray cluster runs on this machine: start one (ray start --head), or join one (ray start --address=...)"
        )
    return (
        f"cannot connect to the Ray cluster at {address}: {told}; pytest must run on a node of it "
        "(ray start --address=HOST:PORT --num-gpus=0)"
    )


def _why_no_worker(error: BaseException) -> str:
    told = on_one_line(str(error))
    missing = re.search(r"No module named '([\w.]+)'", told)
    if missing is not None:
        return f"a node of the Ray cluster lacks {missing[1]}: {pip_install('ray')} in its Python"
    return f"Ray could not start its worker process: {reason(error)}"


def _placed(engine: Engine, group: PlacementGroup, index: int, need: Need, env: Mapping[str, str]) -> _Replica:
    """A replica's actor in its bundle. Its worker process may not have started yet."""
    ray = ray_module()
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    mark = secrets.token_hex(8)
    actor = (
        ray.remote(ReplicaOnNode)
        .options(
            num_cpus=need.cpus,
            num_gpus=0 if need.spans_nodes else need.gpus,
            max_concurrency=_CALLS,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=place,
            # Ray's worker would send SIGKILL to its children as it ends. One of them is the watchdog, which then could
            # no longer end what the server has started.
            runtime_env={"env_vars": {_KEEP_CHILDREN: "false"}},
        )
        .remote(mark, dict(env))
    )
    remote = Remote(actor, mark)
    path = engine.request.new_log(f"{engine.request.model or engine.name}-replica-{index + 1}")
    return _Replica(remote, LogStream(path, remote.read_log))


def _begin(replica: _Replica, engine: Engine, identity: ServingIdentity, need: Need, idle: IdleMemory | None) -> None:
    """Start a replica's server. An engine's class that is no part of this package is sent to the node as a value."""
    ray = connected()
    assert replica.where is not None  # noqa: S101 - its worker has answered
    request = replace(
        engine.request,
        identity=replace(identity, host=replica.where.address),
        arguments=dict(engine.request.arguments),
        python=_interpreter(engine.request),
    )
    kind = type(engine)
    module = sys.modules.get(kind.__module__)
    by_value = module is not None and not kind.__module__.startswith("pytest_gpucap.")
    if by_value:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        replica.start = replica.remote.actor.start.remote(
            kind, request, need.gpus, need.gpu_class, spans_nodes=need.spans_nodes, idle=idle
        )
    finally:
        if by_value:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _interpreter(request: ServerRequest) -> str:
    """The interpreter as the nodes are told it: empty for their own, otherwise the same path as here."""
    if request.python in {"", sys.executable}:
        return ""
    return os.path.abspath(request.python) if os.sep in request.python else request.python  # noqa: PTH100 - a link of a virtual environment stays one


def _wait_for_servers(replicas: Sequence[_Replica], engine: Engine, on_wait: Callable[[str], None]) -> None:
    """Wait until every server answers.

    Raises:
        ServerStartError: if one does not.
    """
    ray = ray_module()
    waiting = {replica.start: replica for replica in replicas}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_PERIOD_S)
        for each in ready:
            replica = waiting.pop(each)
            try:
                found: Started | Failed = ray.get(each)
            except ray.exceptions.RayError as error:
                text = f"its worker process on {replica.node} ended: {reason(error)}"
                raise ServerStartError(text, title=engine.title) from None
            if isinstance(found, Failed):
                raise ServerStartError(
                    f"on {replica.node}: {found.cause}",
                    found.log_tail,
                    replica.log.log.path,
                    title=engine.title,
                    known_as=found.known_as,
                )
            replica.started = found
        if waiting and not ready:
            on_wait(f"{len(replicas) - len(waiting)} of {len(replicas)} replicas are ready{_news(waiting.values())}")


def _news(replicas: Any) -> str:
    """What one of them waits for."""
    from ray.exceptions import RayError

    for replica in replicas:
        with contextlib.suppress(RayError, TimeoutError):
            if news := replica.remote.ask("news", timeout_s=_PERIOD_S):
                return f"; {replica.node}: {news}"
    return ""


def _served(replica: _Replica, identity: ServingIdentity, reserved: _Reservation) -> RayServer:
    assert replica.where is not None  # noqa: S101 - both are known once it has started
    assert replica.started is not None  # noqa: S101
    return RayServer(replica.remote, replica.where, replica.started, identity.api_key, replica.log, reserved.leave)


def _give_up(replicas: Sequence[_Replica]) -> None:
    """End every replica, whatever state it is in."""

    def end(replica: _Replica) -> None:
        node_id = "" if replica.where is None else replica.where.node_id
        end_replica(replica.remote, node_id, replica.node, replica.log)

    with contextlib.suppress(Exception):  # the reason of the failed start is what must be told
        all_at_once([partial(end, replica) for replica in replicas])


def all_at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Make every call in a thread of its own. When all have ended, the first error of one is raised."""
    with ThreadPoolExecutor(max_workers=max(1, len(calls))) as pool:
        made = [pool.submit(call) for call in calls]
    for each in made:
        each.result()
