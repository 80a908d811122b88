"""What another GPU class would sustain, estimated from a measurement on one: an estimate, never a verdict.

Value: the share of the measured time that the physical limit explains scales as the limit does; the rest (launches, the
host's CPU, the network) is taken to stay as it is: ``1 / (share / ratio + 1 - share)``.

Band: which of its resources held the measured server back is taken as unknown. A token's time is a sum of parts that
scale with memory bandwidth, with arithmetic, with the limit itself (batch and memory included), or with none of them.
Whatever the parts are, the rate then scales by something between the least and the greatest of those ratios, for
``1 / sum(share_i / ratio_i)`` with shares that add up to 1 never leaves them. The measured interval widens the band at
both ends, and the other class's own limit caps it.

Not in the band: a slower host, kernels that the other architecture lacks, power limits. What a budget hangs on is to be
measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_gpucap.requirement import Slo
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.roofline.limits import Roofline


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """The sustainable rate to be expected on a class that was not measured.

    Attributes:
        rate: value and band. The band is bounds, no distribution: its confidence is NaN.
        ratios: of the other class over the measured one, by resource.
        text: how it came about, in one line.
    """

    rate: Interval
    ratios: dict[str, float]
    text: str


@dataclass(frozen=True, slots=True)
class Operation:
    """Where the measured server stood: requests in flight, and its tokens a second over the limit at that batch."""

    batch: float
    share: float


def what_if(
    measured: Interval, here: Roofline, there: Roofline, slo: Slo | None = None, operation: Operation | None = None
) -> ClassEstimate | None:
    """The rate of `there`, scaled from the rate `measured` on `here`; None where physics lets it sustain nothing.

    Neither can it be told where the arithmetic rate of one of them is not known: a resource would be missing.

    Args:
        measured: sustainable rate of one replica.
        here: limits of what was measured.
        there: limits of the other class, for the same model and workload.
        slo: latency limits, which bound the batches of both.
        operation: where the server stood; None: taken to be the largest batch that memory and limits allow.
    """
    known, other = here.best(slo), there.best(slo)
    if other is None or not math.isfinite(here.computed_rps() + there.computed_rps()):
        return None
    if operation is not None:
        limited = there.at(min(operation.batch, other.batch)).rate_rps / here.at(operation.batch).rate_rps
        share = operation.share
    elif known is not None:
        limited, share = other.rate_rps / known.rate_rps, measured.value / known.rate_rps
    else:
        limited, share = 1.0, 0.0
    share = min(1.0, share)
    ratios = {
        "host": 1.0,
        "bandwidth": _bandwidth(there) / _bandwidth(here),
        "limit": limited,
        "compute": there.computed_rps() / here.computed_rps(),
    }
    value = measured.value / (share / limited + 1 - share)
    high = min(max(ratios.values()) * measured.high, other.rate_rps)
    low = min(min(ratios.values()) * measured.low, high)
    shown = ", ".join(f"{name} x{ratio:.2f}" for name, ratio in ratios.items() if name != "host")
    return ClassEstimate(
        rate=Interval(min(max(value, low), high), low, high, math.nan),
        ratios=ratios,
        text=f"scaled from {here.hardware.name}, {share:.0%} of its limit: {shown}, host x1",
    )


def _bandwidth(roofline: Roofline) -> float:
    return roofline.hardware.bandwidth_bytes_per_s * roofline.hardware.gpus
