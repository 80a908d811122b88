"""A fleet of one GPU class for a target rate: its GPUs, memory and cost, and which fleet is the cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import msgspec

from pytest_gpucap.gpu.classes import GIB, GpuClass
from pytest_gpucap.planning.evidence import Evidence, NoEvidence, Provenance
from pytest_gpucap.planning.prices import Prices
from pytest_gpucap.sizing import ReplicaRate, gpu_range, largest_qps


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """What the fleet must carry.

    Attributes:
        qps: requests per second over all replicas.
        headroom: factor on `qps`.
        gpus: the budget; None if there is none.
    """

    qps: Fraction
    headroom: Fraction
    gpus: int | None = None


class Fleet(msgspec.Struct, frozen=True):
    """One GPU class for the target. Without a rate, every field that follows from the rate is None.

    Attributes:
        provenance: where the rate comes from; None if there is no rate.
        rate_rps: requests per second per replica. For a physical limit this is an upper bound.
        low_rps, high_rps: interval or band of the rate; None if it has none.
        evidence: what the rate rests on, or why there is none, in one line.
        gpus: GPUs needed at the rate. For a physical limit this is a lower bound.
        fewest, most: GPUs needed at the high and the low end of the interval; equal to `gpus` without an interval.
        memory_gb: of all these GPUs, in GiB; None if the class's memory is not known.
        cost_per_hour: of all these GPUs; None without a price.
        largest_qps: requests per second that the budget carries; None without a budget.
        fits: whether the fleet keeps the budget. True without a budget, False without a rate.
    """

    gpu_class: str
    gpus_per_replica: int
    provenance: Provenance | None
    rate_rps: float | None
    low_rps: float | None
    high_rps: float | None
    evidence: str
    gpus: int | None = None
    fewest: int | None = None
    most: int | None = None
    memory_gb: float | None = None
    cost_per_hour: float | None = None
    largest_qps: float | None = None
    fits: bool = False

    @property
    def known(self) -> bool:
        """Whether somebody measured the rate."""
        return self.provenance is not None and self.provenance.known


def size(
    target: FleetTarget,
    gpu_class: GpuClass,
    evidence: Evidence | NoEvidence,
    *,
    gpus_per_replica: int = 1,
    price: Fraction | None = None,
) -> Fleet:
    """The fleet of one GPU class for the target.

    Args:
        target: what the fleet must carry.
        gpu_class: of all its GPUs.
        evidence: the rate of one replica, or why there is none.
        gpus_per_replica: tensor x pipeline x data parallelism.
        price: of one GPU for one hour; None if it is not known.
    """
    if isinstance(evidence, NoEvidence):
        return Fleet(gpu_class.name, gpus_per_replica, None, None, None, None, evidence.reason)
    rate = ReplicaRate.of_floats(evidence.rate_rps, evidence.low_rps, evidence.high_rps, gpus_per_replica)
    needed = gpu_range(rate, target.qps, target.headroom)
    carried = None
    if target.gpus is not None:
        carried = float(largest_qps(target.gpus, rate.value, target.headroom, gpus_per_replica))
    return Fleet(
        gpu_class=gpu_class.name,
        gpus_per_replica=gpus_per_replica,
        provenance=evidence.provenance,
        rate_rps=evidence.rate_rps,
        low_rps=evidence.low_rps,
        high_rps=evidence.high_rps,
        evidence=evidence.text,
        gpus=needed.gpus,
        fewest=needed.fewest,
        most=needed.most,
        memory_gb=None if gpu_class.memory_bytes is None else needed.gpus * (gpu_class.memory_bytes / GIB),
        cost_per_hour=None if price is None else float(needed.gpus * price),
        largest_qps=carried,
        fits=target.gpus is None or needed.gpus <= target.gpus,
    )


def cheapest(fleets: Sequence[Fleet], prices: Prices) -> Fleet | None:
    """The cheapest fleet that fits and whose rate somebody measured; None if no such fleet has a price."""
    able = [
        (fleet.gpus * price, fleet.gpus, fleet)
        for fleet in fleets
        if fleet.fits
        and fleet.known
        and fleet.gpus is not None
        and (price := prices.per_hour.get(fleet.gpu_class)) is not None
    ]
    return min(able, key=lambda each: each[:2])[-1] if able else None


def worth_measuring(
    fleets: Sequence[Fleet], prices: Prices, known: Fleet | None, budget: int | None = None
) -> list[Fleet]:
    """Fleets that a measurement may show to be cheaper than the cheapest known one, the cheapest first.

    Each is judged by the fewest GPUs that its estimate or its physical limit allows. A fleet that is left out cannot be
    cheaper, or cannot keep the budget.

    Args:
        fleets: all of the plan.
        prices: by GPU class.
        known: the cheapest fleet with a measured rate; None if there is none.
        budget: GPUs; None if there is no budget.
    """
    most = None if known is None or known.gpus is None else known.gpus * prices.per_hour[known.gpu_class]
    costs = []
    for fleet in fleets:
        price = prices.per_hour.get(fleet.gpu_class)
        if fleet.known or fleet.fewest is None or price is None:
            continue
        if budget is not None and fleet.fewest > budget:
            continue
        least = fleet.fewest * price
        if most is None or least < most:
            costs.append((least, fleet))
    return [fleet for _, fleet in sorted(costs, key=lambda each: each[0])]
