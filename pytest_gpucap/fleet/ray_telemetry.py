"""Telemetry of a server on a node of a Ray cluster, on this machine's clock.

A `Telemetry` samples on the node and stamps its readings with the node's `time.monotonic`. The windows of a measurement
are on this machine's. How far the two are apart is bounded by an exchange of timestamps (F. Cristian, "Probabilistic
clock synchronization", Distributed Computing 3, 1989): the node reads its clock somewhere between question and answer,
so half of the round trip bounds the error, and the shortest of several round trips gives the best bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from msgspec.structs import replace

from pytest_gpucap.engines.protocol import Capabilities
from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
from pytest_gpucap.results.telemetry import TelemetrySummary

EXCHANGES: Final = 8
"""Round trips per comparison of the clocks; one takes about a millisecond."""
MOST_DRIFT: Final = 1e-3
"""Seconds a second that two clocks may drift apart: adjtimex(2) corrects each by at most 500 parts in a million."""
AGREED_S: Final = 5.0
"""Clocks that were compared so lately are not compared again."""


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a node's clock is ahead of this machine's.

    Attributes:
        at_s: when they were compared, on this machine's clock.
        ahead_s: the node's clock less this machine's.
        bound_s: the greatest error of `ahead_s`.
    """

    at_s: float
    ahead_s: float
    bound_s: float

    def bound_at(self, time_s: float) -> float:
        """The greatest error at another time, on this machine's clock."""
        return self.bound_s + MOST_DRIFT * abs(time_s - self.at_s)


def compare_clocks(
    their_now: Callable[[], float], our_now: Callable[[], float] = time.monotonic, exchanges: int = EXCHANGES
) -> Offset:
    """Compare two clocks by several exchanges of timestamps.

    Args:
        their_now: asks for the other clock's time, in seconds.
        our_now: this machine's, in seconds.
        exchanges: round trips; the shortest counts.
    """
    found = []
    for _ in range(exchanges):
        asked = our_now()
        theirs = their_now()
        answered = our_now()
        found.append(Offset((asked + answered) / 2, theirs - (asked + answered) / 2, (answered - asked) / 2))
    return min(found, key=lambda each: each.bound_s)


class Clocks:
    """The offsets of a node's clock over time.

    Args:
        their_now: asks the node for its `time.monotonic`.
        our_now: this machine's.
    """

    def __init__(self, their_now: Callable[[], float], our_now: Callable[[], float] = time.monotonic) -> None:
        self._their_now, self._our_now = their_now, our_now
        self._lock = threading.Lock()
        self._known: list[Offset] = []

    def compare(self) -> None:
        """Compare the clocks, unless that was done just now."""
        with self._lock:
            if not self._known or self._our_now() - self._known[-1].at_s > AGREED_S:
                self._known.append(compare_clocks(self._their_now, self._our_now))

    def at(self, time_s: float) -> Offset:
        """The comparison that says most about a time on this machine's clock."""
        with self._lock:
            return min(self._known, key=lambda each: each.bound_at(time_s))

    @property
    def bound_s(self) -> float:
        """The greatest error at the latest comparison."""
        with self._lock:
            return self._known[-1].bound_s


class OnNode(Protocol):
    """What this needs of a `RayServer`."""

    node: str

    def ask(self, what: str, *words: object) -> Any:
        """The answer of the node to one question."""
        ...

    def perhaps_gone(self) -> AbstractContextManager[None]:
        """A context in which a node may fail to answer."""
        ...

    def ended(self) -> str:
        """Why it can no longer answer; empty while it can."""
        ...

    def capabilities(self) -> Capabilities:
        """See `Server.capabilities`."""
        ...


class RayTelemetry:
    """What session code asks of a `Telemetry`, for a server on a node. All times are this machine's `time.monotonic`.

    A node that no longer answers gives empty figures; `problems` then says why.

    Args:
        server: what is watched.
        host: ``error``, ``warn`` or ``off``; see `--gpucap-host-check`.

    Attributes:
        devices: empty: the readings are on the node.
        host: None: so is the watch of the host.
    """

    devices: Sequence[Any] = ()
    host: None = None

    def __init__(self, server: OnNode, host: str = "warn") -> None:
        self._server, self._host = server, host
        self._clocks = Clocks(lambda: float(server.ask("now")))

    @property
    def clock_bound_s(self) -> float:
        """The greatest error, in seconds, of the node's times as they are given here, when the clocks were compared."""
        return self._clocks.bound_s

    @property
    def faults(self) -> dict[str, str]:
        """What could not be sampled, and the last reason."""
        found: dict[str, str] = self._ask("faults", {})
        return found

    def start(self) -> None:
        """Begin to sample on the node, in its own threads."""
        self._clocks.compare()
        self._server.ask("begin_telemetry", self._server.capabilities().metrics, self._host)

    def stop(self) -> None:
        """Stop sampling; what was sampled stays. Safe to call twice."""
        self._ask("end_telemetry", None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def now(self) -> float:
        """Seconds on this machine's clock."""
        return time.monotonic()

    def summary(self, start_s: float, end_s: float) -> TelemetrySummary:
        """See `Telemetry.summary`."""
        ahead_s = self._ahead_s(end_s)
        found: TelemetrySummary | None = self._ask("summary", None, start_s + ahead_s, end_s + ahead_s)
        if found is None:
            return TelemetrySummary(start_s, end_s)
        return replace(found, start_s=start_s, end_s=end_s)

    def series(self, start_s: float = 0.0, end_s: float = float("inf"), points: int = 600) -> dict[str, Any]:
        """See `Telemetry.series`."""
        ahead_s = self._ahead_s(min(end_s, self.now()))
        found: dict[str, Any] = self._ask("series", {}, start_s + ahead_s, end_s + ahead_s, points)
        shifted: dict[str, Any] = _shifted(found, -ahead_s)
        return {"devices": {}, "server": {"time_s": []}, "processes": {}, "host": {}} | shifted

    def problems(self, start_s: float, end_s: float) -> list[Problem]:
        """See `Telemetry.problems`; each says which node it is about."""
        ahead_s = self._ahead_s(end_s)
        found: list[Problem] | None = self._ask("problems", None, start_s + ahead_s, end_s + ahead_s)
        if found is None:
            why = self._server.ended() or f"the node {self._server.node} does not answer"
            return [Problem(ProblemSource.SERVER, ProblemKind.ENDED, why)]
        return [replace(each, text=f"{each.text} (on {self._server.node})") for each in found]

    def remarks(self) -> list[str]:
        """See `Telemetry.remarks`; each says which node it is about."""
        return [f"{said} (on {self._server.node})" for said in self._ask("remarks", [])]

    def _ahead_s(self, time_s: float) -> float:
        if not self._server.ended():
            with self._server.perhaps_gone():
                self._clocks.compare()
        return self._clocks.at(time_s).ahead_s

    def _ask(self, what: str, otherwise: Any, *words: object) -> Any:
        """The node's answer; `otherwise` if none comes."""
        if self._server.ended():
            return otherwise
        with self._server.perhaps_gone():
            return self._server.ask(what, *words)
        return otherwise


def _shifted(found: Any, by_s: float) -> Any:
    """The same columns, with every ``time_s`` on another clock."""
    if not isinstance(found, dict):
        return found
    return {
        name: [None if time_s is None else time_s + by_s for time_s in value]
        if name == "time_s"
        else _shifted(value, by_s)
        for name, value in found.items()
    }
