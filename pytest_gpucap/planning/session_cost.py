"""What a session will cost before it runs: server time, GPU hours and money, by server and by test.

The types of this module are the document that ``--gpucap-estimate-json`` writes. Their fields are its keys, in order.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec

from pytest_gpucap.planning.prices import Prices
from pytest_gpucap.simulated import is_simulated

START_UP_S: Final = 96.0
"""Of a server that was never seen to start: the longest start on an H200 in ``benchmarks/RESULTS.md`` (69 to 96 s)."""
CHECK_S: Final = 68.0
"""Of a check that was never made: the median over simulated servers (``docs/statistics.md``)."""
MEASURE_S: Final = 137.0
"""Of a measurement without a verdict that was never made: the median of the 24 on an H200 in
``benchmarks/RESULTS.md`` (63 to 157 s)."""
_HOUR_S: Final = 3600.0


class Basis(StrEnum):
    """What a time was taken from."""

    EARLIER = "earlier result"
    DEFAULT = "default"
    NONE = "none"
    """It takes no time: a server that runs already or is simulated, a test that measures nothing."""


class TestCost(msgspec.Struct, frozen=True, kw_only=True):
    """Server time of one test.

    Attributes:
        test: pytest's node id.
        name: of the requirement.
        priority: as declared.
        measuring_s: seconds of measuring, over all starts.
        measuring_from: what that was taken from.
        own_starts: starts beside the one that the tests of the server share: repeats, and the base of a pair.
    """

    __test__ = False  # no test, whatever pytest thinks of the name

    test: str
    name: str
    priority: int
    measuring_s: float
    measuring_from: Basis
    own_starts: int = 0


class ServerCost(msgspec.Struct, frozen=True, kw_only=True):
    """Server time of one server and of the tests on it.

    Attributes:
        server: engine, model and arguments, in one line.
        gpu_class: None for whatever class the machine has, or where the class behind a URL is not given.
        gpus: that it occupies, all replicas together.
        starts: over all its tests; with several workers at most.
        startup_s: seconds of one start.
        startup_from: what that was taken from.
        server_s: seconds of all starts and all measuring.
        gpu_hours: `server_s` times `gpus`, in hours.
        cost: of the GPU hours; None where no price is known.
        tests: in the order in which they run.
    """

    server: str
    gpu_class: str | None
    gpus: int
    starts: int
    startup_s: float
    startup_from: Basis
    server_s: float
    gpu_hours: float
    cost: float | None
    tests: tuple[TestCost, ...]


class SessionCost(msgspec.Struct, frozen=True, kw_only=True):
    """The whole session.

    Attributes:
        servers: in the order in which they start.
        skipped: tests that collection already shows to be skipped, or not run.
        workers: processes of pytest-xdist that share the tests; 1 without it.
        server_s: seconds over all servers.
        gpu_hours: over all servers.
        cost: of the servers whose price is known; None where none is.
        currency: of all costs; empty if no price names one.
        unpriced: GPU classes without a price, where prices are given.
        limit_s: of ``--gpucap-max-total``; None without it.
        unfit: node ids of tests that this limit leaves no time for; empty with several workers, where it depends on
            which of them gets a test.
        sources: the files whose results were used, a line each.
        left_out: files that could not be read, a line each.
    """

    schema: Literal["pytest-gpucap-estimate"] = "pytest-gpucap-estimate"
    schema_version: Literal[1] = 1
    servers: tuple[ServerCost, ...]
    skipped: int
    workers: int
    server_s: float
    gpu_hours: float
    cost: float | None
    currency: str
    unpriced: tuple[str, ...]
    limit_s: float | None
    unfit: tuple[str, ...]
    sources: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def tests(self) -> list[TestCost]:
        """Of all servers."""
        return [test for server in self.servers for test in server.tests]


def server_cost(
    *,
    server: str,
    gpu_class: str | None,
    gpus: int,
    shared_starts: int,
    startup_s: float,
    startup_from: Basis,
    tests: Sequence[TestCost],
    prices: Prices,
    times: int = 1,
) -> ServerCost:
    """The cost of one server.

    Args:
        server: in one line.
        gpu_class: its name.
        gpus: that it occupies.
        shared_starts: starts that its tests share: one, or at most one for each worker.
        startup_s: of one start.
        startup_from: what that was taken from.
        tests: on it.
        prices: of GPUs.
        times: how often each test runs; more than once where every worker runs all of them.
    """
    starts = shared_starts + times * sum(test.own_starts for test in tests)
    server_s = starts * startup_s + times * sum(test.measuring_s for test in tests)
    gpu_hours = server_s * gpus / _HOUR_S
    price = None if gpu_class is None else prices.per_hour.get(gpu_class)
    return ServerCost(
        server=server,
        gpu_class=gpu_class,
        gpus=gpus,
        starts=starts,
        startup_s=startup_s,
        startup_from=startup_from,
        server_s=server_s,
        gpu_hours=gpu_hours,
        cost=None if price is None else gpu_hours * float(price),
        tests=tuple(tests),
    )


def session_cost(
    servers: Sequence[ServerCost],
    *,
    skipped: int,
    workers: int,
    prices: Prices,
    limit_s: float | None,
    unfit: Sequence[str],
    sources: Sequence[str],
    left_out: Sequence[str],
) -> SessionCost:
    """The costs of servers, summed up; see `SessionCost`."""
    costs = [server.cost for server in servers if server.cost is not None]
    # A simulated server costs nothing, so it has no price to miss.
    billed = [server.gpu_class or "unknown" for server in servers if server.cost is None and _is_billed(server)]
    return SessionCost(
        servers=tuple(servers),
        skipped=skipped,
        workers=workers,
        server_s=sum(server.server_s for server in servers),
        gpu_hours=sum(server.gpu_hours for server in servers),
        cost=sum(costs) if costs else None,
        currency=prices.currency,
        unpriced=tuple(dict.fromkeys(billed)) if prices.per_hour else (),
        limit_s=limit_s,
        unfit=tuple(unfit),
        sources=tuple(sources),
        left_out=tuple(left_out),
    )


def _is_billed(server: ServerCost) -> bool:
    return not is_simulated(server.gpu_class)


# What fits a session whose time is limited


@dataclass(frozen=True, slots=True)
class Need:
    """What one test needs of the session's time.

    Attributes:
        server: equal for tests that share a server.
        startup_s: seconds until it is ready, if it does not run.
        own_s: seconds of measuring, and of the starts that are the test's own.
        priority: as declared.
    """

    server: Hashable
    startup_s: float
    own_s: float
    priority: int = 0

    def seconds(self, running: Collection[Hashable]) -> float:
        """Seconds that it takes where these servers run."""
        return self.own_s + (0.0 if self.server in running else self.startup_s)


def fits(need: Need, later: Sequence[Need], left_s: float, running: Hashable | None) -> bool:
    """Whether a test fits what is left of the session's time.

    A later test of a higher priority comes first: its time is set aside, if it fits itself.

    Args:
        need: of the test.
        later: of those that run after it.
        left_s: seconds left.
        running: the server that runs; None if none does.
    """
    served: set[Hashable] = {need.server, running}
    for each in sorted(later, key=lambda other: -other.priority):  # stable: equals in their order
        if each.priority <= need.priority:
            break
        # A server that only this test starts is counted with this test, below.
        wanted_s = each.seconds(served)
        if wanted_s <= left_s:
            left_s -= wanted_s
            served.add(each.server)
    return need.seconds({running}) <= left_s


def unfit(needs: Sequence[Need], limit_s: float) -> list[int]:
    """The places of the tests that do not fit, if each takes what it needs.

    Args:
        needs: in the order in which they run.
        limit_s: of the session.
    """
    found = []
    running: Hashable | None = None
    left_s = limit_s
    for place, need in enumerate(needs):
        if fits(need, needs[place + 1 :], left_s, running):
            left_s -= need.seconds({running})
            running = need.server
        else:
            found.append(place)
    return found
