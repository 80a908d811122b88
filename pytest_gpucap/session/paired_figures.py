"""Watches the limits beside the rate on base and head, while both are measured in alternation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_gpucap.decisions.paired_figures import compared_figures
from pytest_gpucap.decisions.secondary import tokens_per_request
from pytest_gpucap.markers.declaration import Declaration
from pytest_gpucap.options.table import Options
from pytest_gpucap.results.telemetry import TelemetrySummary
from pytest_gpucap.session.secondary import SecondaryWatch, Summary, counted, summary_of
from pytest_gpucap.session.server_manager import SystemUnderTest

if TYPE_CHECKING:
    from pytest_gpucap.load.protocol import LoadRunner
    from pytest_gpucap.measure.comparing import Paired
    from pytest_gpucap.results.comparison import FigureComparison
    from pytest_gpucap.results.measured import Sample


class PairedFigures:
    """Base and head, watched from its making until `close`.

    Args:
        declared: the test's.
        targets: base and head, with their servers ready; the head's telemetry watches the devices of both.
        runners: of base and head.
        options: the session's.
    """

    def __init__(
        self,
        declared: Declaration,
        targets: tuple[SystemUnderTest, SystemUnderTest],
        runners: tuple[LoadRunner, LoadRunner],
        options: Options,
    ) -> None:
        self._declared, self._targets = declared, targets
        self._open = ExitStack()
        self._watches: tuple[SecondaryWatch, ...] = ()
        if not declared.secondary:
            return
        base, head = targets
        # What is read of a simulated server comes from its runner.
        watched = (replace(base, runner=runners[0]), replace(head, runner=runners[1]))
        of_base, of_head = (
            summary_of(target, runner, self._open, counters=counted(declared))
            for target, runner in zip(watched, runners, strict=True)
        )
        if head.telemetry is not None and base.telemetry is None and of_base is not None and of_head is not None:
            of_base = _with_energy(of_base, of_head)
        self._watches = (
            SecondaryWatch(declared, watched[0], of_base, options),
            SecondaryWatch(declared, watched[1], of_head, options),
        )

    def compare(self, found: Paired) -> tuple[FigureComparison, ...]:
        """What both showed; call it while both still run."""
        if not self._watches:
            return ()
        equal = found.equal_rate
        windows: tuple[Sequence[Sample], Sequence[Sample]] = ((), ()) if equal is None else (equal.base, equal.head)
        base, head = (watch.figures(each) for watch, each in zip(self._watches, windows, strict=True))
        first, second = (getattr(target.endpoint, "start", None) for target in self._targets)
        return compared_figures(
            self._declared.secondary,
            base,
            head,
            rates=(found.base_rate, found.head_rate, found.ratio),
            tokens=tokens_per_request(self._declared.workload, [*windows[0], *windows[1]]),
            starts=(first, second),
        )

    def close(self) -> None:
        """Read nothing any more."""
        self._open.close()


def _with_energy(server: Summary, devices: Summary) -> Summary:
    """What one server told, with the energy of the devices that it shares."""

    def summary(start_s: float, end_s: float) -> TelemetrySummary:
        return TelemetrySummary(
            start_s, end_s, server=server(start_s, end_s).server, energy_j=devices(start_s, end_s).energy_j
        )

    return summary
