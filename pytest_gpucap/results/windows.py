"""Identifies a window of a measurement: its phase, cycle and slice. Only reports turn it into text."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Phase(StrEnum):
    """The purpose of a window."""

    WARM_UP = "warm-up"
    """The first hold, at low concurrency. It also warms the server up."""
    RAMP = "ramp"
    """A hold at the next higher concurrency, as long as throughput rises."""
    RAMP_AGAIN = "ramp, again"
    """The same concurrency once more, because throughput seemed to fall."""
    BELOW_PEAK = "below the peak"
    """A hold at a lower concurrency than the one where throughput fell."""
    EXTENDED = "extended hold"
    """A longer hold, because throughput was not steady yet."""
    HOLD = "hold"
    """A closed loop at the critical concurrency."""
    DESIGN_RATE = "design rate"
    """An open loop at the design rate."""
    OPEN_LOOP = "open loop"
    """An open loop at the rate estimated so far."""
    DIRECT = "direct run"
    """A long open loop that decides without the model."""
    SEARCH = "search"
    """A short hold on the way to the critical concurrency."""
    ALONE = "one at a time"
    APPROACH = "approach"
    """From one rate to the next; too short to be a point of a curve."""
    POINT = "point"
    """One rate of a sweep."""
    SATURATION = "saturation"
    """A hold at the highest concurrency of a sweep."""
    ALTERNATION = "alternation"
    """One server's turn of a base and a head that are measured in alternation."""
    EQUAL_RATE = "equal rate"
    """An open loop at one rate for a base and a head."""
    STEADY = "steady"
    """A long open loop after the decision, for figures that are not about the rate."""
    SAMPLE = "sample"
    """What `sample()` was asked for."""


ON_THE_WAY: Final = frozenset({Phase.SEARCH, Phase.APPROACH})
"""Windows between two loads, too short to be a point of a curve."""
JUDGED: Final = frozenset({Phase.DESIGN_RATE, Phase.OPEN_LOOP, Phase.DIRECT, Phase.STEADY})
"""Open loops at the rate that is judged, or as near to it as is known."""
LEADING_UP: Final = ON_THE_WAY | {Phase.WARM_UP}
"""The least important windows in a report."""


class WindowId(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which window a sample is of.

    Attributes:
        phase: its purpose.
        cycle: its number among those of its phase, from 1; 0 where there is only one.
        concurrency: requests held in flight, if that distinguishes it from its neighbours.
        rate_rps: the rate, if that distinguishes it.
        server: ``base`` or ``head`` if two servers are measured in alternation.
        slice: number of the recorded slice, from 1; 0: the sample is of the whole window.
        slices: number of slices.
    """

    phase: Phase
    cycle: int = 0
    concurrency: int | None = None
    rate_rps: float | None = None
    server: str = ""
    slice: int = 0
    slices: int = 0

    def __post_init__(self) -> None:
        if self.rate_rps is None and self.phase in {Phase.POINT, Phase.APPROACH}:
            raise ValueError(f"a window of phase {self.phase.value!r} needs rate_rps")

    @property
    def whole(self) -> WindowId:
        """The window that this is a slice of."""
        return msgspec.structs.replace(self, slice=0, slices=0)

    def part(self, number: int, slices: int) -> WindowId:
        """Slice `number`, from 1, of `slices`."""
        return msgspec.structs.replace(self, slice=number, slices=slices)

    @property
    def text(self) -> str:
        """For people: ``hold 2``, ``hold at 64``, ``3.2 req/s``; slices add ``(1/3)``."""
        part = f" ({self.slice}/{self.slices})" if self.slice else ""
        return f"{self._name()}{part}"

    def _name(self) -> str:
        number = f" {self.cycle}" if self.cycle else ""
        match self.phase:
            case Phase.WARM_UP:
                name = "warm-up and low hold"
            case Phase.RAMP:
                name = f"hold at {self.concurrency}"
            case Phase.RAMP_AGAIN:
                name = f"hold at {self.concurrency}, again"
            case Phase.BELOW_PEAK:
                name = "hold below the peak"
            case Phase.EXTENDED:
                name = "hold, extended"
            case Phase.APPROACH:
                name = f"to {self.rate_rps:.3g} req/s"
            case Phase.POINT:
                name = f"{self.rate_rps:.3g} req/s"
            case Phase.SAMPLE:
                name = f"{self.concurrency} in flight" if self.rate_rps is None else f"{self.rate_rps:g} req/s"
            case Phase.ALTERNATION:
                return f"{self.server}{number}"
            case _:
                name = f"{self.phase.value}{number}"
        return f"{self.server}: {name}" if self.server else name
