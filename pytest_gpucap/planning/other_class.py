"""The rate that another GPU class would sustain, estimated from a measurement on one class.

Value: the physical limit explains a share of the measured time. This share scales with the limit. The rest (kernel
launches, the host's CPU, the network) is assumed to stay the same. The factor is ``1 / (share / ratio + 1 - share)``.

Band: the resource that held the measured server back is not known. The time of a token is a sum of parts. Each part
scales with memory bandwidth, with arithmetic, with the limit itself (batch and memory included), or with nothing.
Shares that add up to 1 keep ``1 / sum(share_i / ratio_i)`` between the least and the greatest ratio. So the rate scales
by a factor between these two, whatever the shares are. The measured interval widens the band at both ends. The physical
limit of the other class caps it.

The band does not cover a slower host, kernels that the other architecture lacks, or power limits. An estimate is never
a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_gpucap.gpu.classes import GpuClass, find_class
from pytest_gpucap.planning.evidence import Evidence, Provenance
from pytest_gpucap.planning.measured_rates import MeasuredRate
from pytest_gpucap.planning.service import Service
from pytest_gpucap.requirement import Slo
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.roofline.plausibility import share_of


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """The sustainable rate to expect on a class that was not measured.

    Attributes:
        rate: value and band, in requests per second per replica. The band has no probability: its confidence is NaN.
        ratios: the other class over the measured one, by resource.
        text: how the estimate was made, in one line.
    """

    rate: Interval
    ratios: dict[str, float]
    text: str


@dataclass(frozen=True, slots=True)
class Operation:
    """The operating point of the measured server.

    Attributes:
        batch: requests in flight.
        share: its tokens per second over the physical limit at this batch.
    """

    batch: float
    share: float


def what_if(
    measured: Interval, here: Roofline, there: Roofline, slo: Slo | None = None, operation: Operation | None = None
) -> ClassEstimate | None:
    """The rate of `there`, scaled from the rate `measured` on `here`.

    Returns:
        None if physics lets `there` sustain nothing. None as well if the arithmetic rate of one class is not known,
        because the band would then miss a resource.

    Args:
        measured: sustainable rate of one replica.
        here: limits of the measured class.
        there: limits of the other class, for the same model and workload.
        slo: latency limits, which bound the batch on both classes.
        operation: the operating point of the measured server. None: the largest batch that memory and `slo` allow.
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


def estimated_rate(
    service: Service, gpu_class: GpuClass, rates: Sequence[MeasuredRate], own_classes: Sequence[GpuClass] = ()
) -> Evidence | None:
    """The estimate for one class from the rates measured on others. The narrowest band wins.

    Args:
        service: what the rates are rates of.
        gpu_class: the class to estimate.
        rates: measured rates. Those of `gpu_class` itself are skipped, and so are points of another tool: they have no
            interval to scale.
        own_classes: GPU classes that the user defined; rates may be of these.

    Returns:
        None if no rate gives an estimate.
    """
    there = service.roofline(gpu_class)
    estimates = []
    for rate in rates:
        here = service.roofline(find_class(rate.gpu_class, own_classes))
        if rate.gpu_class == gpu_class.name or here is None or there is None or rate.provenance is Provenance.IMPORTED:
            continue
        share = share_of(rate.samples, here)
        operation = None if share is None else Operation(share.limit.batch, share.share)
        estimate = what_if(rate.rate, here, there, service.slo, operation)
        if estimate is not None:
            estimates.append(estimate)
    best = min(estimates, key=lambda each: each.rate.high / each.rate.low, default=None)
    if best is None:
        return None
    return Evidence(Provenance.ESTIMATE, best.rate.value, best.rate.low, best.rate.high, best.text)


def _bandwidth(roofline: Roofline) -> float:
    return roofline.hardware.bandwidth_bytes_per_s * roofline.hardware.gpus
