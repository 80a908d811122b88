"""Two simulated servers on one machine, in virtual time: one clock, and one drift that both suffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_gpucap.load.adapters import AdapterDraw
from pytest_gpucap.load.protocol import LoadPhase, PhaseSpan, Progress
from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner, VirtualClock


@dataclass(slots=True)
class Machine:
    """What servers on it share.

    Attributes:
        clock: of all of them.
        drift: of the logarithm of all times, as the server that ran last left it; None before the first.
        drift_at_s: up to when that drift is known.
    """

    clock: VirtualClock = field(default_factory=VirtualClock)
    drift: float | None = None
    drift_at_s: float = 0.0


class SharedRunner(SimRunner):
    """A `SimRunner` that stands on a machine beside others, of which one at a time is driven.

    While another is driven, its clock goes on and its warm-up does not: a server warms up by working.

    Args:
        model: the engine.
        machine: shared with the others.
        seed: of its noise, its stalls and, where it is the first to run, of the machine's drift.
        adapters: see `SimRunner`.
    """

    def __init__(
        self, model: EngineModel, machine: Machine, seed: int = 0, adapters: AdapterDraw | None = None
    ) -> None:
        super().__init__(model, seed, adapters=adapters)
        self._machine = machine
        self._left_s = self.clock.time_s
        self.clock = machine.clock

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`."""
        self._resume()
        try:
            return super().run(phase, should_stop)
        finally:
            self._leave()

    def settle(self, timeout_s: float, *, cancel: bool = False) -> bool:
        """See `LoadRunner.settle`."""
        if cancel:
            super().settle(timeout_s, cancel=True)  # takes no time
            # What the engine had made and not yet shown is not in flight when the next phase begins at this same time.
            for name in ("first", "last", "end"):
                times = self._columns[name][: self._rows]
                times[times > self.clock.time_s] = self.clock.time_s
            return True
        self._resume()
        try:
            return super().settle(timeout_s)
        finally:
            self._leave()

    def _resume(self) -> None:
        now_s = self.clock.time_s
        self._real[engine.STARTED] += now_s - self._left_s
        self._real[engine.TIME] = max(self._real[engine.TIME], now_s)
        if self._machine.drift is not None:
            self._real[engine.DRIFT] = self._machine.drift
            self._real[engine.DRIFT_AT] = self._machine.drift_at_s

    def _leave(self) -> None:
        self._left_s = self.clock.time_s
        self._machine.drift = float(self._real[engine.DRIFT])
        self._machine.drift_at_s = float(self._real[engine.DRIFT_AT])
