"""Starts a fleet: all replicas at once, each on its share of the leased GPUs, then the router."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.protocol import Engine, EnginePair, LoadRequest, Server, ServingIdentity
from pytest_gpucap.fleet.router import missing_router, start_router
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.occupancy import IdleMemory
from pytest_gpucap.masking import Secret
from pytest_gpucap.requirement import Workload
from pytest_gpucap.routing import RouterKind, Routing

if TYPE_CHECKING:  # every collection of tests with a fleet imports this file
    from pytest_gpucap.fleet.fleet_server import FleetServer
    from pytest_gpucap.load.protocol import LoadRunner


DYING_S: Final = 10.0
"""A replica whose requests fail has ended, or is seen to end, within this time."""


HERE: Final = "here"


@dataclass(frozen=True, slots=True)
class OnRay:
    """Where replicas are placed on a Ray cluster.

    Attributes:
        address: ``auto``, or ``HOST:PORT`` of the cluster's head.
        gpu_class: of every node; None: any GPU.
        idle: memory that a GPU may have in use and still count as free.
        host_check: what a disturbed host of a node does to a measurement.
        load_from: where the load comes from: ``here``, ``replicas``, or a number of nodes without a replica.
    """

    address: str
    gpu_class: GpuClass | None = None
    idle: IdleMemory | None = None
    host_check: str = "warn"
    load_from: str = HERE


class FleetEngine(Engine):
    """Several replicas of what one engine starts, measured as one server.

    Args:
        one: the engine of each replica.
        replicas: how many.
        routing: how requests reach them.
        ray: where to start them on a Ray cluster; None: on this machine.

    Raises:
        ValueError: one line, if the router cannot be started here.
    """

    name = "fleet"

    def __init__(self, one: Engine, replicas: int, routing: Routing, ray: OnRay | None = None) -> None:
        super().__init__(one.request)
        self.one, self.replicas, self.routing, self._ray = one, replicas, routing, ray
        self.title, self.restarts = one.title, one.restarts
        self.leases_devices = one.leases_devices and ray is None  # nodes lease their own
        if why := missing_router(routing):
            raise ValueError(f"--gpucap-router={routing}: {why}")

    @property
    def gpus(self) -> int:
        """GPUs that the whole fleet occupies."""
        return self.replicas * self.one.gpus

    @property
    def max_model_len(self) -> int | None:
        """See `Engine.max_model_len`."""
        return self.one.max_model_len

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self.one.name, self.one.key, self.replicas, self.routing, self._ray and self._ray.address

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:
        """See `Engine.start`. The devices are dealt out in their order, so that neighbours on the bus stay together.

        Raises:
            ServerStartError: if a replica or the router does not become ready. Nothing is left running.
        """
        from pytest_gpucap.fleet.fleet_server import FleetServer

        open_health = self.routing.kind is RouterKind.VLLM
        identity = ServingIdentity.new(str(self.request.model), open_health=open_health)
        if self._ray is None:
            share = len(devices) // self.replicas
            shares = [devices[place * share : (place + 1) * share] for place in range(self.replicas)]
            server = FleetServer(_start_all(self._named(identity), shares, on_wait), None, self.routing)
        else:
            server = self._start_on_ray(self._ray, identity, on_wait)
        try:
            self._route(server, on_wait)
        except BaseException:
            server.close()
            raise
        return server

    def _start_on_ray(self, ray: OnRay, identity: ServingIdentity, on_wait: Callable[[str], None]) -> FleetServer:
        """Start the replicas on nodes of a cluster, which is left when the fleet is closed."""
        from pytest_gpucap.fleet.fleet_server import FleetServer
        from pytest_gpucap.fleet.ray_cluster import RayCluster

        cluster = RayCluster.connect(ray.address)
        try:
            replicas = cluster.start(
                self.one, self.replicas, gpu_class=ray.gpu_class, on_wait=on_wait, idle=ray.idle, identity=identity
            )
            return FleetServer(replicas, None, self.routing, on_close=cluster.close, host_check=ray.host_check)
        except BaseException:
            cluster.close()
            raise

    def go_on_without_lost(self, server: FleetServer, on_wait: Callable[[str], None]) -> bool:
        """Whether replicas were lost and others are left; then requests go only to those.

        Raises:
            ServerStartError: if a router for them does not become ready.
        """
        if not server.drop_lost(DYING_S):
            return False
        self._route(server, on_wait)
        return True

    def _route(self, server: FleetServer, on_wait: Callable[[str], None]) -> None:
        """Start the router, where there is one, in front of the replicas that serve."""
        if self.routing.kind is RouterKind.CLIENT:
            return
        router = start_router(
            self.routing,
            [each.base_url for each in server.replicas],
            ServingIdentity(name=server.model, api_key=Secret(server.api_key)),
            log_dir=self.request.log_dir,
            timeout_s=self.request.startup_timeout_s,
            on_wait=on_wait,
        )
        server.take_router(router)

    def counted(self, server: Server, workload: Workload) -> Workload:
        """By the first replica: all have the same model."""
        from pytest_gpucap.fleet.fleet_server import FleetServer

        return self.one.counted(server.replicas[0] if isinstance(server, FleetServer) else server, workload)

    def runner(self, server: Server, load: LoadRequest) -> LoadRunner:
        """One load for all replicas: through the router, or spread by the load generator."""
        from pytest_gpucap.fleet.fleet_server import FleetServer

        assert isinstance(server, FleetServer)  # noqa: S101 - what `start` has returned
        router_url = None if server.router is None else server.router.base_url
        return self._runner(server, server.replicas, load, router_url)

    def runner_of_one(self, server: FleetServer, load: LoadRequest) -> LoadRunner:
        """The same load for a single replica, while the others idle."""
        return self._runner(server, server.replicas[:1], load, None)

    def _runner(
        self, server: FleetServer, replicas: Sequence[Server], load: LoadRequest, router_url: str | None
    ) -> LoadRunner:
        server.reset_caches()
        if self._ray is None or self._ray.load_from == HERE:
            return self.one.fleet_runner(replicas, load, self.routing, router_url)
        from pytest_gpucap.fleet.ray_load import load_from_nodes

        urls = [each.base_url for each in replicas] if router_url is None else [router_url]
        return load_from_nodes(server, load, self._ray.load_from, urls)

    def with_base(self, base_args: str, base_python: str | None) -> EnginePair[Engine]:
        """See `Engine.with_base`.

        Raises:
            ValueError: always: a base would need GPUs for a second fleet.
        """
        del base_args, base_python
        raise ValueError("--gpucap-base-...: base and head are compared on one replica: leave replicas= out")

    def _named(self, identity: ServingIdentity) -> Engine:
        return self.one.with_request(replace(self.request, identity=identity))


class _CalledOff(Exception):  # noqa: N818 - an event, seen nowhere outside
    """Another replica did not start."""


def _start_all(engine: Engine, shares: Sequence[Sequence[str]], on_wait: Callable[[str], None]) -> list[Server]:
    """Start a replica on each share of the devices, all at once.

    Raises:
        ServerStartError: that of the first replica that did not start. The others are ended.
    """
    count = len(shares)
    called_off, lock = threading.Event(), threading.Lock()

    def start(number: int, devices: Sequence[str]) -> Server:
        def waiting(text: str) -> None:
            if called_off.is_set():
                raise _CalledOff
            with lock:  # the live line has one writer
                on_wait(f"replica {number} of {count}: {text}")

        return engine.start(devices, waiting)

    starts: list[Future[Server]] = []
    try:
        with ThreadPoolExecutor(max_workers=count, thread_name_prefix="gpucap-replica") as threads:
            # Each in its own copy of the context, which says what must outlive the servers' processes.
            starts += [
                threads.submit(copy_context().run, start, number, devices) for number, devices in enumerate(shares, 1)
            ]
            try:
                wait(starts, return_when=FIRST_EXCEPTION)
            finally:
                if not _all_ready(starts):  # after Ctrl-C, too
                    called_off.set()
    finally:
        if called_off.is_set():
            for each in starts:
                if each.exception() is None:
                    each.result().close()
    if (failed := _first_error(starts)) is not None:
        raise _of_replica(*failed, count, engine.title)
    return [each.result() for each in starts]


def _all_ready(starts: Sequence[Future[Server]]) -> bool:
    return all(each.done() and each.exception() is None for each in starts)


def _of_replica(number: int, error: BaseException, count: int, title: str) -> BaseException:
    """The error that says which replica it is about."""
    if not isinstance(error, ServerStartError):
        return error
    cause = f"replica {number} of {count}: {error.cause}"
    return ServerStartError(cause, error.log_tail, error.log_path, title=title, known_as=error.known_as)


def _first_error(starts: Sequence[Future[Server]]) -> tuple[int, BaseException] | None:
    """Number and error of the first replica that failed by itself."""
    found = [(number, each.exception()) for number, each in enumerate(starts, 1) if each.done()]
    errors = [(number, error) for number, error in found if error is not None]
    own = [each for each in errors if not isinstance(each[1], _CalledOff)]
    return next(iter(own or errors), None)
