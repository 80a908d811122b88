"""XID errors: what an NVIDIA driver reports of a GPU under a number, and what such a report makes of a measurement.

Numbers, names and usual causes are those of NVIDIA's catalog, https://docs.nvidia.com/deploy/xid-errors/. The driver
reports what it saw, and not always why: nearly every number may come of failing hardware, so each has its usual cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource

AFTERMATH_S: Final = 60.0
"""A phase that begins so soon after an XID error is not trusted either. Nobody judges the time between two phases, when
requests are in flight as well, and what the driver cleans up takes its time."""


class Cause(StrEnum):
    """Whose error it usually is, with what to do."""

    APPLICATION = "usually an error of the application, here the server: look at its log"
    FOLLOWS = "a consequence: an application ended, or another error came before it"
    DRIVER = "usually an error of the driver or of the GPU's firmware: reset the GPU, and try another driver"
    HARDWARE = "an error of the hardware: reset the GPU, and replace it if that comes again"
    LINK = "an error of the hardware, here of a link or of what is at its other end: look at NVLink and its switches"
    UNKNOWN = "whether of the application, the driver or the hardware is not known: look at dmesg"


@dataclass(frozen=True, slots=True)
class Xid:
    """What a number means.

    Attributes:
        name: NVIDIA's.
        cause: the usual one.
    """

    name: str
    cause: Cause


_A, _F, _D, _H, _L = Cause.APPLICATION, Cause.FOLLOWS, Cause.DRIVER, Cause.HARDWARE, Cause.LINK
KNOWN: Final[Mapping[int, Xid]] = {
    8: Xid("GPU stopped processing", _A),
    11: Xid("invalid or corrupted push buffer stream", _A),
    13: Xid("graphics engine exception", _A),
    31: Xid("GPU memory page fault", _A),
    32: Xid("invalid or corrupted push buffer stream", Cause.UNKNOWN),
    38: Xid("driver firmware error", _D),
    43: Xid("GPU stopped processing", _A),
    44: Xid("graphics engine fault during context switch", _D),
    45: Xid("preemptive cleanup, due to previous errors", _F),
    46: Xid("GPU stopped processing", _D),
    48: Xid("double-bit ECC error", _H),
    61: Xid("internal microcontroller breakpoint or warning", _D),
    62: Xid("internal microcontroller halt", _D),
    63: Xid("ECC page retirement or row remapping recorded", _H),
    64: Xid("ECC page retirement or row remapping failed", _H),
    68: Xid("NVDEC exception", _A),
    69: Xid("graphics engine class error", _A),
    74: Xid("NVLink error", _L),
    79: Xid("GPU has fallen off the bus", _H),
    92: Xid("high single-bit ECC error rate", _H),
    94: Xid("contained ECC error", _H),
    95: Xid("uncontained ECC error", _H),
    109: Xid("context switch timeout", _A),
    110: Xid("security fault", _H),
    119: Xid("GSP RPC timeout", _D),
    120: Xid("GSP error", _D),
    121: Xid("C2C link error", _L),
    136: Xid("NVLink training failed", _L),
    137: Xid("NVLink privilege error", _A),
    140: Xid("unrecovered ECC error", _H),
    143: Xid("GPU initialization error", _D),
    154: Xid("GPU recovery action changed", _F),
}


def described(number: int) -> str:
    """``XID 31, GPU memory page fault (usually an error of the application, ...)``."""
    known = KNOWN.get(number)
    return f"XID {number} ({Cause.UNKNOWN})" if known is None else f"XID {number}, {known.name} ({known.cause})"


@dataclass(frozen=True, slots=True)
class Reported:
    """One report of the driver. When it was made is known as far as somebody looked.

    Attributes:
        number: of the XID.
        after_s: the last look without it, on the measurement's clock.
        by_s: the look that found it.
    """

    number: int
    after_s: float
    by_s: float

    def spoils(self, start_s: float, end_s: float) -> bool:
        """Whether a window is not to be trusted for it."""
        return self.after_s <= end_s and start_s <= self.by_s + AFTERMATH_S


def problems_of(label: str, reports: Iterable[Reported], start_s: float, end_s: float) -> list[Problem]:
    """What the reports on one GPU make of a window: a problem for each number.

    Args:
        label: of the GPU.
        reports: on it.
        start_s: of the window.
        end_s: of the window.
    """
    numbers = dict.fromkeys(each.number for each in reports if each.spoils(start_s, end_s))
    return [
        Problem(ProblemSource.GPU, ProblemKind.XID, f"the driver reported an error of {label}: {described(number)}")
        for number in numbers
    ]
