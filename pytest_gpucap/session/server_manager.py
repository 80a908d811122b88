"""What is measured: the leased GPU, the server on it, and the telemetry that watches both.

`ServerManager` holds at most one server at a time. It starts the server when a test first asks. Tests that declare the
same server share it. It ends the server before it starts another, or as soon as no later test needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_gpucap.engines.protocol import Engine, MetricNames, Server, ServerLog
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.inventory import (
    WITHOUT_ONE,
    Inventory,
    NoGpu,
    WrongGpuClass,
    detect_class,
    devices_of_class,
    take_inventory,
)
from pytest_gpucap.gpu.lease import Lease, lease, lease_cpu, lease_server
from pytest_gpucap.gpu.occupancy import wait_memory_returned
from pytest_gpucap.options.table import Options
from pytest_gpucap.session.compiling import CompileAhead
from pytest_gpucap.session.declared import gpu_absent
from pytest_gpucap.session.placement import Placement, own_classes
from pytest_gpucap.session.reuse import Reuse
from pytest_gpucap.session.session_time import SessionTime

if TYPE_CHECKING:  # a test file may import `SystemUnderTest` for its annotations
    from pytest_gpucap.fleet.fleet_telemetry import FleetTelemetry
    from pytest_gpucap.load.protocol import LoadRunner
    from pytest_gpucap.results.problems import Problem
    from pytest_gpucap.session.live_line import LiveLine
    from pytest_gpucap.telemetry.dcgm import DcgmExporter
    from pytest_gpucap.telemetry.host_watch import HostWatch
    from pytest_gpucap.telemetry.sampler import Telemetry

MEMORY_RETURN_S = 60.0
"""GPU memory of a killed server is free within seconds. If it takes a minute, the driver has a fault."""


@dataclass(slots=True)
class SystemUnderTest:
    """What is measured, in its present state.

    Attributes:
        placement: where the test is measured: its GPU class, its engine, and the server's arguments.
        gpu_class: that it is measured on; None where that is not known.
        inventory: the GPUs of this machine, as they were read; None where none was asked for.
        lease: of the GPUs, or of the CPU, that the server has to itself; None without one, as of a server elsewhere.
        server: that is measured; None before it is ready.
        telemetry: watches the devices, the server and the host; None where nothing is watched.
        startup_s: from the start of the server until it was ready; 0 for one that ran already, or is simulated.
        start_phases_s: what these seconds were spent on, by phase (``imports``, ``weights``, ``compile`` ...), as far
            as the server's log tells.
        runner: sends the load; None before there is any.
    """

    placement: Placement
    gpu_class: GpuClass | None = None
    inventory: Inventory | None = None
    lease: Lease | None = None
    server: Server | None = None
    telemetry: Telemetry | FleetTelemetry | None = None
    startup_s: float = 0.0
    start_phases_s: Mapping[str, float] = field(default_factory=dict)
    runner: LoadRunner | None = None
    reused: Server | None = None
    """A server that an earlier run has left, which `ServerManager.server` makes the server."""
    _closing: ExitStack = field(default_factory=ExitStack)

    @property
    def endpoint(self) -> Server:
        """The server, which `ServerManager.server` or `ServerManager.pair` has made ready."""
        assert self.server is not None  # noqa: S101 - what those two are for
        return self.server

    @property
    def engine(self) -> Engine:
        """What starts the server."""
        assert self.placement.engine is not None  # noqa: S101 - a placement without one has no server to ask for
        return self.placement.engine

    def close(self) -> None:
        """Close everything, last started first."""
        self._closing.close()


Pair = tuple[SystemUnderTest, SystemUnderTest]
Trust = Callable[[float, float], "Sequence[Problem]"]
"""Reasons to distrust the span [start, end] on the machine's monotonic clock."""


class ServerManager:
    """Starts and ends the systems under test."""

    def __init__(
        self,
        options: Options,
        session_time: SessionTime | None = None,
        starts_limited: Container[Hashable] = frozenset(),
    ) -> None:
        self._options = options
        self._reuse = Reuse(options, starts_limited)
        self._live: LiveLine | None = None
        self._compiling = CompileAhead()
        self.time = session_time or SessionTime(None)
        """What the session has spent, and what is left of it."""
        self._target: SystemUnderTest | None = None

    @property
    def running(self) -> Hashable | None:
        """The key of the placement whose server runs; None if none does."""
        target = self._target
        return None if target is None or target.server is None else target.placement.key

    def target(self, placement: Placement, live: LiveLine) -> SystemUnderTest:
        """The target of a test, without its server. The present target is reused if it is the same."""
        self._live = live
        if self._target is not None and self._target.placement.key != placement.key:
            self.keep_only(None)
        if self._target is None:
            self._target = self._open(placement, live)
        return self._target

    def server(self, placement: Placement, live: LiveLine) -> SystemUnderTest:
        """The target of a test with its server ready."""
        target = self.target(placement, live)
        if target.server is not None and target.engine.restarts and (why := _ended(target.server)):
            live.say(f"{why}: starting another")
            self.keep_only(None)
            target = self.target(placement, live)
        if target.server is None:
            try:
                self._serve(target, live)
            except BaseException:
                # A server that failed to start must not keep the GPU from the next test.
                self.keep_only(None)
                raise
        return target

    def wait_compiled(self, live: LiveLine) -> None:
        """Wait for what is compiled while servers start: it would disturb a measurement."""
        self._compiling.finish(self.time.while_left(live.waiting, "compiled code was not ready in time"))

    def log(self) -> ServerLog | None:
        """The log of the server that runs or ran last, if it can be read."""
        server = None if self._target is None else self._target.server
        return None if server is None else server.log

    def has_ended(self) -> bool:
        """Whether there is a server, and it can no longer answer."""
        server = None if self._target is None else self._target.server
        return server is not None and bool(_ended(server))

    @contextmanager
    def pair(
        self, base: Placement, head: Placement, live: LiveLine, *, fresh: bool
    ) -> Iterator[tuple[Pair, Trust | None]]:
        """Two servers on the same devices. The base ends with the context; the head stays for tests that share it.

        Args:
            base: where to start the base.
            head: where the head runs or is started.
            live: shows what is waited for.
            fresh: restart the head as well.

        Yields:
            The targets of base and head with their servers ready, and a function that finds problems in a span of time.
        """
        if fresh:
            self.keep_only(None)
        target = self.server(head, live)
        lease = target.lease
        # The base ends while the head keeps its memory, which may grow meanwhile. So only the base's processes can be
        # checked then. Whether all memory is free again is checked when the head ends.
        beside = None if lease is None else replace(lease, baseline={})
        other = SystemUnderTest(base, target.gpu_class, target.inventory, beside)
        from pytest_gpucap.telemetry.sampler import Telemetry

        try:
            first, second = self._start(other, live), target.endpoint
            # The head's watch of the host sees the base as well: both descend from this process.
            host = None if target.telemetry is None else target.telemetry.host
            if lease is None:
                yield (other, target), None if host is None else host.problems
                return
            tolerated = lease.tolerated
            with Telemetry(lease.devices, lambda: first.pids() | second.pids(), tolerated=tolerated) as watched:
                yield (
                    (other, target),
                    lambda since_s, until_s: [
                        *watched.problems(since_s, until_s),
                        *([] if host is None else host.problems(since_s, until_s)),
                    ],
                )
        finally:
            other.close()

    def keep_only(self, key: Hashable | None) -> None:
        """Close the target unless it has that key."""
        if self._target is not None and (key is None or self._target.placement.key != key):
            target, self._target = self._target, None
            target.close()

    def finish(self) -> None:
        """No later test needs a server: leave it to the next run if the session says so, else close the target."""
        target = self._target
        if target is not None and target.lease is not None and target.gpu_class is not None and self._live is not None:
            server = target.server or target.reused
            self._reuse.keep(server, target.placement, target.lease, target.gpu_class, self._live)
        self.keep_only(None)

    def _open(self, placement: Placement, live: LiveLine) -> SystemUnderTest:
        target = SystemUnderTest(placement)
        if placement.engine is not None and not placement.engine.leases_devices:
            target.gpu_class = placement.gpu_class  # as declared
            if (running := placement.engine.running_server) is not None:
                held = lease_server(running, wait_s=self._options.gpu_wait_s, on_wait=live.waiting)
                target._closing.callback(held.release)  # noqa: SLF001 - one object in two classes' hands
            return target
        own = own_classes(self._options)
        target.inventory = take_inventory()
        try:
            target.gpu_class = placement.gpu_class or detect_class(target.inventory, own)
            devices = devices_of_class(target.inventory, target.gpu_class, own)
        except (NoGpu, WrongGpuClass) as error:
            hint = f"; {WITHOUT_ONE}" if isinstance(error, NoGpu) and placement.gpu_class is None else ""
            raise self._absent(f"{error}{hint}") from None
        reused = self._reuse.take(placement, target.gpu_class, devices, live)
        if reused is not None:
            target.reused, target.lease = reused
            target._closing.callback(target.lease.release)  # noqa: SLF001 - one object in two classes' hands
            target._closing.callback(self._stop, target.reused, target.lease)  # noqa: SLF001 - see above
            return target
        wait_s, make_room = self._options.gpu_wait_s, partial(self._reuse.make_room, live)
        if target.gpu_class.is_cpu:
            target.lease = lease_cpu(wait_s=wait_s, on_wait=live.waiting, make_room=make_room)
        else:
            target.lease = lease(
                devices,
                placement.devices,
                wait_s=wait_s,
                idle=self._options.gpu_idle,
                on_wait=live.waiting,
                make_room=make_room,
            )
        target._closing.callback(target.lease.release)  # noqa: SLF001 - see above
        return target

    def _absent(self, reason: str) -> BaseException:
        return pytest.fail.Exception(reason, pytrace=False) if self._options.require else gpu_absent(reason)

    def _serve(self, target: SystemUnderTest, live: LiveLine) -> None:
        from pytest_gpucap.fleet.fleet_server import FleetServer

        server = self._start(target, live)
        if isinstance(server, FleetServer) and (nodes := server.node_telemetry()) is not None:
            target.telemetry = target._closing.enter_context(nodes)  # noqa: SLF001 - one object in two classes' hands
            return
        host = self._host_watch(server, here=target.lease is not None)
        exporters: tuple[DcgmExporter, ...] = ()
        if target.lease is None:
            from pytest_gpucap.session.gpus_elsewhere import gpus_elsewhere

            exporters, target.gpu_class = gpus_elsewhere(server, target.gpu_class, self._options)
        names = server.capabilities().metrics
        told = target.lease is None and names != MetricNames()
        if target.lease is None and host is None and not exporters and not told:
            return
        from pytest_gpucap.telemetry.sampler import Telemetry

        if target.lease is None:  # what is not on this machine shows on pages, if anywhere
            fetch = partial(server.request, "/metrics") if told else None
            target.telemetry = Telemetry((), tuple, fetch, names=names, host=host, exporters=exporters)
        else:
            fetch = None if names == MetricNames() else partial(server.request, "/metrics")
            devices, tolerated = target.lease.devices, target.lease.tolerated
            target.telemetry = Telemetry(devices, server.pids, fetch, names=names, tolerated=tolerated, host=host)
        target._closing.enter_context(target.telemetry)  # noqa: SLF001 - one object in two classes' hands

    def _host_watch(self, server: Server, *, here: bool) -> HostWatch | None:
        """What watches the host; None if nobody wants to know, or the server is not on it.

        With `here`, devices of this machine are leased for the server. A simulated server has no host. Of a server
        elsewhere only the load generator's host is known, and the load generator checks itself.
        """
        known = server.capabilities()
        if self._options.host_check == "off" or known.simulated or not (here or known.loopback):
            return None
        from pytest_gpucap.telemetry.host_watch import HostWatch

        return HostWatch(server.base_url, strict=self._options.host_check == "error")

    def _start(self, target: SystemUnderTest, live: LiveLine) -> Server:
        from pytest_gpucap.engines.process import held_until_gone
        from pytest_gpucap.report.formatting import shown

        engine, held = target.engine, target.lease
        waiting: Callable[[str], None] = live.waiting
        if target.placement.profile is None:  # a simulated server takes virtual time, while it is driven
            self.time.still("no server was started")
            waiting = self.time.while_left(waiting, "the server was not ready in time")
            target._closing.callback(self.time.end)  # noqa: SLF001 - one object in two classes' hands
            self.time.begin()
        if target.reused is not None:
            target.server = server = target.reused
            live.say(f"{engine.title} {server.version or '?'} is reused: an earlier run has left it")
            return server
        if held is None:
            target.server = server = engine.start((), waiting)
            target._closing.callback(server.close)  # noqa: SLF001 - see above
            return server
        started = time.monotonic()
        live.say(f"starting {engine.title} with {engine.request.model}")
        target._closing.callback(self._compiling.close)  # noqa: SLF001 - see above
        self._compiling.begin()
        with held_until_gone(held.descriptors):
            server = engine.start(held.cuda_devices, waiting)
        target._closing.callback(self._stop, server, held)  # noqa: SLF001 - see above
        self._reuse.started(server, engine)
        target.startup_s = time.monotonic() - started
        target.start_phases_s = getattr(server, "start_phases_s", {})  # only vLLM's log tells
        target.server = server
        log = "" if server.log is None else f", log {shown(server.log.path)}"
        live.say(f"{engine.title} {server.version or '?'} is ready after {target.startup_s:.0f} s{log}")
        return server

    @staticmethod
    def _stop(server: Server, held: Lease) -> None:
        if getattr(server, "left", False):
            server.close()  # our connections alone
            return
        pids = set(server.pids())
        server.close()
        if held.devices:
            wait_memory_returned(held.devices, held.baseline, pids, MEMORY_RETURN_S)


def _ended(server: Server) -> str:
    """Why a server can no longer answer; empty while it can, or does not tell."""
    asked: Callable[[], str] | None = getattr(server, "ended", None)
    return "" if asked is None else asked()
