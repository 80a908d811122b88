"""What open loops kept: a bound for every scenario that few observations leave open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pytest_gpucap.estimate.queue_model import LONG_STOP_S, ServerModel
from pytest_gpucap.load.protocol import OpenLoop
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.observed import side
from pytest_gpucap.measure.run import MeasuringRun, Window


@dataclass(frozen=True, slots=True)
class Kept:
    """Open loops in which every limit was kept.

    Attributes:
        rate_rps: the lowest of their rates.
        seconds: of all of them.
    """

    rate_rps: float
    seconds: float

    def rules_out(self, model: ServerModel) -> bool:
        """Whether so many long stops would have come in them that it was no chance that they broke no limit."""
        long = sum(each > LONG_STOP_S for each in model.stall_s) / len(model.stall_s)
        return model.stall_per_s * long * self.seconds > c.NONE_SEEN


NOTHING_KEPT: Final = Kept(0.0, 0.0)


def kept_by(run: MeasuringRun, windows: list[Window]) -> Kept:
    """What all open loops of some windows kept together. Nothing, where they broke a limit or say too little."""
    open_loops = [w for w in windows if isinstance(w.span.phase, OpenLoop) and w.rate_rps is not None]
    limits = run.requirement.slo.limits
    if not open_loops or not limits or any(w.span.stopped for w in open_loops):
        return NOTHING_KEPT
    if any(side(run.journal, open_loops, limit) <= 0 for limit in limits):
        return NOTHING_KEPT
    rate = min(w.rate_rps for w in open_loops if w.rate_rps is not None)
    return Kept(rate, sum(w.end_s - w.start_s for w in open_loops))
