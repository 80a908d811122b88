"""A plan for a rate that the user gives: the formula alone, with what it assumes.

Nothing is known of the model or its load, so there is no physical limit, no estimate for another class and no interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from pytest_gpucap.gpu.classes import GIB, GpuClass
from pytest_gpucap.planning.evidence import Provenance
from pytest_gpucap.planning.fleet import Fleet, FleetTarget
from pytest_gpucap.planning.guide import sizing_guide
from pytest_gpucap.planning.plan import Plan, PlanTable, PlanTarget
from pytest_gpucap.planning.prices import Prices
from pytest_gpucap.requirement import positive
from pytest_gpucap.sizing import ReplicaRate, gpu_table, gpus_required, headroom_left, largest_qps, replicas_required

ANY_CLASS: Final = "any class"
"""In place of a class where none is named."""
_LESS: Final = Fraction(9, 10)
"""Share of the given rate at which the plan says how many GPUs would be needed."""


@dataclass(frozen=True, slots=True)
class GivenRate:
    """What the user knows.

    Attributes:
        rps: requests per second that one replica sustains.
        gpu_class: of its GPUs; None if it is not named.
        gpus_per_replica: GPUs that one replica occupies.
        prices: of one GPU for one hour, by class.
    """

    rps: Fraction
    gpu_class: GpuClass | None = None
    gpus_per_replica: int = 1
    prices: Prices = field(default_factory=Prices)


def plan_of_given_rate(
    given: GivenRate, target: FleetTarget, *, other_qps: Sequence[str] = (), guide: bool = False
) -> Plan:
    """The plan of `given` for a target.

    Args:
        given: the rate of one replica.
        target: what the fleet must carry.
        other_qps: further target rates for the table, as decimal text. Empty: no table.
        guide: add the published sizing guide.

    Raises:
        RequirementError: if one of `other_qps` is not a number above 0.
    """
    targets = [positive(each, "--qps-table") for each in other_qps]
    fleet = _fleet(given, target)
    rates = {fleet.gpu_class: ReplicaRate(given.rps, gpus_per_replica=given.gpus_per_replica)}
    return Plan(
        target=PlanTarget(qps=float(target.qps), headroom=float(target.headroom), gpus=target.gpus, limits={}),
        model=None,
        workload=None,
        currency=given.prices.currency,
        priced=fleet.cost_per_hour is not None,
        fleets=(fleet,),
        cheapest=None,
        worth_measuring=(),
        set_aside=(),
        left_out=(),
        table=PlanTable(tuple(map(float, targets)), gpu_table(rates, targets, target.headroom)) if targets else None,
        guide=sizing_guide() if guide else None,
        assumptions=_assumptions(given, target),
    )


def _fleet(given: GivenRate, target: FleetTarget) -> Fleet:
    replicas = replicas_required(target.qps, target.headroom, given.rps)
    needed = replicas * given.gpus_per_replica
    gpu_class = given.gpu_class
    name = ANY_CLASS if gpu_class is None else gpu_class.name
    memory = None if gpu_class is None else gpu_class.memory_bytes
    price = given.prices.per_hour.get(name)
    rate, carried = float(given.rps), None
    if target.gpus is not None:
        carried = float(largest_qps(target.gpus, given.rps, target.headroom, given.gpus_per_replica))
    return Fleet(
        gpu_class=name,
        gpus_per_replica=given.gpus_per_replica,
        provenance=Provenance.GIVEN,
        rate_rps=rate,
        low_rps=None,
        high_rps=None,
        evidence=_arithmetic(given, target, replicas),
        gpus=needed,
        fewest=needed,
        most=needed,
        memory_gb=None if memory is None else needed * (memory / GIB),
        cost_per_hour=None if price is None else float(needed * price),
        largest_qps=carried,
        fits=target.gpus is None or needed <= target.gpus,
    )


def _arithmetic(given: GivenRate, target: FleetTarget, replicas: int) -> str:
    """``N = ceil(QPS x headroom / T) = ceil(100 x 1.3 / 3.85) = ceil(33.77) = 34``."""
    qps, headroom, rate = (f"{float(each):.9g}" for each in (target.qps, target.headroom, given.rps))
    quotient = target.qps * target.headroom / given.rps
    shown = f"{float(quotient):.2f}"
    if math.ceil(Fraction(shown)) != replicas:
        shown = f"just above {replicas - 1}"
    formula = f"N = ceil(QPS x headroom / T) = ceil({qps} x {headroom} / {rate}) = ceil({shown}) = {replicas}"
    if given.gpus_per_replica == 1:
        return formula
    return f"{formula} replicas, x {given.gpus_per_replica} GPUs = {replicas * given.gpus_per_replica} GPUs"


def _assumptions(given: GivenRate, target: FleetTarget) -> tuple[str, ...]:
    """What must be so for the formula to be right, a sentence each, with what it would cost otherwise."""
    each = given.gpus_per_replica
    needed = gpus_required(target.qps, target.headroom, given.rps, each)
    less = gpus_required(target.qps, target.headroom, given.rps * _LESS, each)
    left = headroom_left(target.qps, needed, given.rps, each)
    one_down = left - given.rps / target.qps
    scope = (
        "T is as given, and nobody measured it here: it holds for one model, its server arguments, its lengths of "
        "prompts and answers, its arrivals and its limits on latency (pytest --gpu-class measures it)"
    )
    added = (
        "replicas add up: N of them carry N x T, behind a router that costs nothing (gpucap(replicas=...) measures "
        "what share of T they keep)"
    )
    reserve = (
        f"the headroom of {float(target.headroom):g} is for peaks above the target rate and for replicas that are "
        f"down: the GPUs carry {float(left):.3g} times the rate, and with one replica down {float(one_down):.3g} times"
    )
    then = f"N is still {needed} GPUs" if less == needed else f"N is {less} GPUs and not {needed}"
    point = f"T is a point without an interval: if it is 10% lower, {then}"
    return scope, point, added, reserve
