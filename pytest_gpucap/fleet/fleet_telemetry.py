"""The telemetry of replicas on several nodes as one: of each node what it saw, of the server what all replicas say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from pytest_gpucap.results.problems import Problem
from pytest_gpucap.results.telemetry import HostSummary, TelemetrySummary
from pytest_gpucap.telemetry.sampler import Telemetry
from pytest_gpucap.telemetry.summary import worst_shares

if TYPE_CHECKING:
    from pytest_gpucap.fleet.ray_telemetry import RayTelemetry


class FleetTelemetry:
    """What session code asks of a `Telemetry`, for replicas on nodes of a cluster.

    Args:
        nodes: what watches each replica on its node.
        here: reads the replicas' pages of metrics, from this machine.
        serves: whether the replica of that place still serves. What was lost and is counted is no problem any more.
    """

    devices: Sequence[Any] = ()
    host: None = None

    def __init__(self, nodes: Sequence[RayTelemetry], here: Telemetry, serves: Callable[[int], bool]) -> None:
        self._nodes, self._here, self._serves = tuple(nodes), here, serves
        self._open = ExitStack()

    @property
    def clock_bound_s(self) -> float:
        """The greatest error, in seconds, of any node's times as they are given here."""
        return max((each.clock_bound_s for each in self._nodes), default=0.0)

    @property
    def faults(self) -> dict[str, str]:
        """What could not be sampled, and the last reason."""
        return self._here.faults | {name: why for each in self._nodes for name, why in each.faults.items()}

    def start(self) -> None:
        """Begin to sample everywhere."""
        self._open.enter_context(self._here)
        for each in self._nodes:
            self._open.enter_context(each)

    def stop(self) -> None:
        """Stop sampling; what was sampled stays. Safe to call twice."""
        self._open.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def now(self) -> float:
        """Seconds on this machine's clock."""
        return self._here.now()

    def summary(self, start_s: float, end_s: float) -> TelemetrySummary:
        """See `Telemetry.summary`. The host is the node whose cores were taken most."""
        parts = [each.summary(start_s, end_s) for each in self._nodes]
        energies = [part.energy_j for part in parts]
        energy_j = sum(each for each in energies if each is not None) if energies and None not in energies else None
        found = self._here.summary(start_s, end_s)
        tokens = found.server.output_tokens
        return msgspec.structs.replace(
            found,
            devices=tuple(device for part in parts for device in part.devices),
            processes=tuple(process for part in parts for process in part.processes),
            energy_j=energy_j,
            energy_per_1000_tokens_j=energy_j / tokens * 1000 if energy_j is not None and tokens else None,
            slowdowns=worst_shares(part.slowdowns for part in parts),
            host=max((part.host for part in parts if part.host is not None), key=_taken, default=None),
        )

    def series(self, start_s: float = 0.0, end_s: float = float("inf"), points: int = 600) -> dict[str, Any]:
        """See `Telemetry.series`. A process is named by its node as well: two nodes may have the same number."""
        found = self._here.series(start_s, end_s, points)
        for number, each in enumerate(self._nodes):
            part = each.series(start_s, end_s, points)
            found["devices"] |= part["devices"]
            found["processes"] |= {f"{number}/{pid}": columns for pid, columns in part["processes"].items()}
            found["host"] = found["host"] or part["host"]
        return found

    def problems(self, start_s: float, end_s: float) -> list[Problem]:
        """See `Telemetry.problems`; each says which node it is about."""
        serving = [each for place, each in enumerate(self._nodes) if self._serves(place)]
        return [problem for each in serving for problem in each.problems(start_s, end_s)]

    def remarks(self) -> list[str]:
        """See `Telemetry.remarks`; each says which node it is about, once for all replicas on it."""
        return list(dict.fromkeys(remark for each in self._nodes for remark in each.remarks()))


def _taken(host: HostSummary) -> float:
    return (host.busy_cores or 0.0) / max(host.cores or 1, 1)
