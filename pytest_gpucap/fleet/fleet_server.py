"""A fleet as one server: requests go to its router, or to each replica in turn, and everything else to all of them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pytest_gpucap.engines.pages import labelled
from pytest_gpucap.engines.protocol import Capabilities, Server, ServerLog
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.fleet.router import Router
from pytest_gpucap.routing import Routing
from pytest_gpucap.telemetry.probes import read_metrics
from pytest_gpucap.telemetry.sampler import SERVER_FIELDS, Telemetry
from pytest_gpucap.telemetry.time_series import TimeSeries

if TYPE_CHECKING:
    from pytest_gpucap.fleet.fleet_telemetry import FleetTelemetry

_Found = TypeVar("_Found")


class FleetServer(HttpServer):
    """The replicas of a fleet that are ready, and their router.

    Args:
        replicas: all of them, with the same name, key and model.
        router: in front of them; None: the load generator spreads requests.
        routing: which router, with which policy.
        on_close: called once all replicas have ended.
        host_check: what a disturbed host of a node does to a measurement.
    """

    def __init__(
        self,
        replicas: Sequence[Server],
        router: Router | None,
        routing: Routing,
        *,
        on_close: Callable[[], None] | None = None,
        host_check: str = "warn",
    ) -> None:
        first = replicas[0]
        super().__init__("", first.model, first.api_key)
        self.started = tuple(replicas)
        """As started, in the order of their devices."""
        self.replicas = list(replicas)
        """Those that serve."""
        self.lost: list[str] = []
        """Why the others do not, a line each."""
        self.router, self.routing = router, routing
        self._on_close, self._host_check = on_close, host_check
        self.software = getattr(first, "software", "")
        self._names = first.capabilities().metrics
        self.readings = tuple(TimeSeries(SERVER_FIELDS) for _ in replicas)
        """What each replica's page of metrics said, whenever it was read; by place in `started`."""
        self.latencies = tuple(TimeSeries(("sum_s", "count")) for _ in replicas)
        """Sum and number of the end-to-end latencies that each replica tells; NaN where it does not."""

    @property
    def base_url(self) -> str:
        """Of the router, or of the first replica that serves."""
        return (self.replicas[0] if self.router is None else self.router).base_url

    @property
    def log(self) -> ServerLog | None:
        """The log of a replica, or of the router, that has ended; while all run, that of the first."""
        parts: list[Server] = [*self.started, *([] if self.router is None else [self.router])]
        return next((each.log for each in parts if _ended(each)), self.started[0].log)

    @property
    def version(self) -> str | None:
        """See `Server.version`."""
        return self.started[0].version

    @property
    def startup_s(self) -> float | None:
        """Seconds of the slowest replica's start; None unless all tell."""
        told = [getattr(each, "startup_s", None) for each in self.started]
        return None if None in told else max(each for each in told if each is not None)

    @property
    def start_phases_s(self) -> Mapping[str, float]:
        """Those of the replica that took longest to start, since all start at once; empty where it does not tell."""
        slowest = max(self.started, key=lambda each: getattr(each, "startup_s", 0.0))
        found: Mapping[str, float] = getattr(slowest, "start_phases_s", {})
        return found

    @property
    def nodes(self) -> list[str]:
        """The node of each replica that was started; empty where they are processes of this machine."""
        found = [str(getattr(each, "node", "")) for each in self.started]
        return found if all(found) else []

    @property
    def urls(self) -> list[str]:
        """Where requests go: to the router, or to the replicas."""
        return [self.base_url] if self.router is not None else [each.base_url for each in self.replicas]

    def capabilities(self) -> Capabilities:
        """Those of one replica, with what all of them hold together."""
        known = [each.capabilities() for each in self.replicas]
        return replace(
            known[0],
            max_num_seqs=_sum(each.max_num_seqs for each in known),
            kv_tokens=_sum(each.kv_tokens for each in known),
            max_num_batched_tokens=_sum(each.max_num_batched_tokens for each in known),
            replicas=len(known),
            loopback=all(each.loopback for each in known),
            simulated=self.simulated,
        )

    @property
    def simulated(self) -> bool:
        """Whether a replica is a simulation."""
        return any(each.capabilities().simulated for each in self.started)

    def facts(self) -> Mapping[str, object]:
        """Those of one replica, and how many there are behind what."""
        told = dict(self.started[0].facts())
        told.pop("node", None)
        if self.nodes:
            told["nodes"] = ", ".join(dict.fromkeys(self.nodes))
        return told | {"replicas": len(self.started), "router": str(self.routing)}

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        timeout_s: float | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> str:
        """See `Server.request`. The page of metrics is that of all replicas, one after the other."""
        if path.partition("?")[0] == "/metrics":
            return self._pages(path, timeout_s)
        return super().request(path, method=method, timeout_s=timeout_s, content=content)

    def _pages(self, path: str, timeout_s: float | None) -> str:
        """The pages of all replicas as one, whose lines say which replica they are from."""
        pages = self._all(lambda each: (each, each.request(path, timeout_s=timeout_s), time.monotonic()))
        for server, page, read_s in pages:
            place = self.started.index(server)
            self.readings[place].append(read_s, astuple(read_metrics(page, self._names)))
            self.latencies[place].append(read_s, _latency(page))
        return "\n".join(labelled(page, self.started.index(server) + 1) for server, page, _ in pages)

    def reset_caches(self) -> bool:
        """See `Server.reset_caches`; True if every replica could."""
        return all(self._all(lambda each: each.reset_caches()))

    def pids(self) -> set[int]:
        """The processes of all replicas and of the router."""
        routers = set() if self.router is None else self.router.pids()
        return routers.union(*(each.pids() for each in self.started))

    def ended(self, patience_s: float = 0.0) -> str:
        """Which replica, or the router, can no longer answer, and why; empty while all can."""
        if self.router is not None and (why := self.router.ended()):
            return why
        lost = [(each, why) for each, why in zip(self.replicas, self._all(_ended), strict=True) if why]
        if not lost and patience_s > 0:
            lost = [
                (each, why)
                for each, why in zip(self.replicas, self._all(lambda one: _ended(one, patience_s)), strict=True)
                if why
            ]
        if not lost:
            return ""
        server, why = lost[0]
        more = f" ({len(lost)} replicas are lost)" if len(lost) > 1 else ""
        return f"replica {self.started.index(server) + 1} of {len(self.started)}: {why}{more}"

    def drop_lost(self, patience_s: float = 0.0) -> bool:
        """Go on without the replicas that can no longer answer, and without the router: it may still ask them.

        Args:
            patience_s: as for `ended`.

        Returns:
            Whether any replica was lost and any is left.
        """
        why = self._all(lambda each: _ended(each, patience_s))
        living = [each for each, reason in zip(self.replicas, why, strict=True) if not reason]
        if not living or len(living) == len(self.replicas):
            return False
        self.lost += [
            f"replica {self.started.index(each) + 1} of {len(self.started)}: {reason}"
            for each, reason in zip(self.replicas, why, strict=True)
            if reason
        ]
        self.replicas = living
        return True

    def take_router(self, router: Router) -> None:
        """Let another router stand before the replicas that are left; ends the one before."""
        before, self.router = self.router, router
        if before is not None:
            before.close()

    def close(self) -> None:
        """End the router, then all replicas at once."""
        super().close()
        with ExitStack() as closing:
            if self._on_close is not None:
                closing.callback(self._on_close)
            closing.callback(_at_once, _close, self.started)
            if self.router is not None:
                closing.callback(self.router.close)

    def node_telemetry(self) -> FleetTelemetry | None:
        """What watches the replicas on their nodes; None where they are processes of this machine."""
        from pytest_gpucap.fleet.fleet_telemetry import FleetTelemetry

        parts = [each.telemetry(self._host_check) for each in self.started if hasattr(each, "telemetry")]
        if len(parts) < len(self.started):
            return None
        here = Telemetry((), tuple, lambda: self.request("/metrics"), names=self._names)
        return FleetTelemetry(parts, here, lambda place: self.started[place] in self.replicas)

    def _all(self, ask: Callable[[Server], _Found]) -> list[_Found]:
        return _at_once(ask, self.replicas)


def _at_once(ask: Callable[[Server], _Found], servers: Sequence[Server]) -> list[_Found]:
    """The answers of all servers, asked at the same time. Every one is asked, whichever fails.

    Raises:
        Exception: that of the first server that failed.
    """
    with ThreadPoolExecutor(max_workers=len(servers)) as threads:
        asked = [threads.submit(ask, each) for each in servers]
    return [each.result() for each in asked]


def _close(server: Server) -> None:
    server.close()


_E2E: Final = "vllm:e2e_request_latency_seconds"


def _latency(page: str) -> tuple[float, float]:
    """Sum and number of the end-to-end latencies that a page of vLLM tells; NaN where it tells none."""
    found = {"sum": math.nan, "count": math.nan}
    for match in re.finditer(rf"(?m)^{_E2E}_(sum|count)(?:\{{.*\}})? ([0-9.eE+-]{{1,40}})", page):
        before = found[match[1]]
        found[match[1]] = float(match[2]) + (0.0 if math.isnan(before) else before)
    return found["sum"], found["count"]


def _ended(server: Server, patience_s: float = 0.0) -> str:
    asked: Callable[[float], str] | None = getattr(server, "ended", None)  # servers of other plugins need not tell
    return "" if asked is None else asked(patience_s)


def _sum(figures: Iterable[int | None]) -> int | None:
    """The sum; None where one is not known."""
    known = list(figures)
    found = [each for each in known if each is not None]
    return sum(found) if len(found) == len(known) else None
