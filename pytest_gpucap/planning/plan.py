"""The plan: GPUs, memory and cost for a target rate, by GPU class, each with the evidence for its rate.

The types of this module are the document that ``plan --format json`` prints. Their fields are its keys, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from pytest_gpucap.gpu.classes import GpuClass, find_class, known_classes
from pytest_gpucap.planning.evidence import best_evidence
from pytest_gpucap.planning.fleet import Fleet, FleetTarget, cheapest, size, worth_measuring
from pytest_gpucap.planning.guide import Guide, sizing_guide
from pytest_gpucap.planning.measured_rates import MeasuredRate, best_of_each_class
from pytest_gpucap.planning.other_class import estimated_rate
from pytest_gpucap.planning.prices import Prices
from pytest_gpucap.planning.references import SetAside, published_rates
from pytest_gpucap.planning.service import Service
from pytest_gpucap.requirement import Metric, positive
from pytest_gpucap.results.build import declared_slo
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.sizing import GpuRange, ReplicaRate, gpu_table


class PlanTarget(msgspec.Struct, frozen=True):
    """What the fleet must carry.

    Attributes:
        qps: requests per second over all replicas.
        headroom: factor on `qps`.
        gpus: the budget; None if there is none.
        limits: latency limits in seconds, by name (``ttft_p95``).
        goodput: share of the requests that must be good; None: none must.
        thresholds: seconds by metric that a good request keeps; empty without `goodput`.
    """

    qps: float
    headroom: float
    gpus: int | None
    limits: Mapping[str, float]
    goodput: float | None = None
    thresholds: Mapping[Metric, float] = msgspec.field(default_factory=dict)


class PlanModel(msgspec.Struct, frozen=True):
    """The model of one replica. The sizes are None if its config is not known.

    Attributes:
        arguments: the server arguments that bound its speed, as given.
        parameters: their number.
        precision: of weights and KV cache, by name.
        weights_gb: of one replica, in 10^9 bytes.
        kv_bytes_per_token: of one replica's KV cache.
    """

    name: str
    arguments: dict[str, str]
    parameters: int | None
    precision: str | None
    weights_gb: float | None
    kv_bytes_per_token: float | None


class PlanWorkload(msgspec.Struct, frozen=True):
    """Mean tokens per request."""

    input_tokens: float
    output_tokens: float
    shared_prefix_tokens: int


class PlanTable(msgspec.Struct, frozen=True):
    """GPUs for other target rates.

    Attributes:
        qps: the target rates, in requests per second.
        gpus: for each GPU class that has a rate, one entry per target rate.
    """

    qps: tuple[float, ...]
    gpus: dict[str, list[GpuRange]]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole plan.

    Attributes:
        currency: of all costs; empty if no price names one.
        priced: whether any price is known.
        fleets: one per GPU class.
        cheapest: the class of the cheapest fleet that fits and whose rate somebody measured; None if there is none.
        worth_measuring: classes that a measurement may show to be cheaper, the cheapest first.
        set_aside: published rates that physics rules out.
        left_out: results that were not used, with the reason, a line each.
        table: GPUs for other target rates; None if none were asked for.
        guide: the published sizing guide; None if it was not asked for.
        model, workload: None where only the rate of one replica was given.
        assumptions: of the formula, where only the rate was given, a sentence each.
    """

    schema: Literal["pytest-gpucap-plan"] = "pytest-gpucap-plan"
    schema_version: Literal[1] = 1
    target: PlanTarget
    model: PlanModel | None
    workload: PlanWorkload | None
    currency: str
    priced: bool
    fleets: tuple[Fleet, ...]
    cheapest: str | None
    worth_measuring: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    left_out: tuple[str, ...]
    table: PlanTable | None
    guide: Guide | None
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """What is known before planning, beside published rates and physical limits.

    Attributes:
        rates: measured rates, of any service.
        chosen: the measurement that the plan is made for; None if there is none.
        preferred: `chosen` takes precedence over all other rates of its GPU class.
        left_out: results that give no rate, with the reason, a line each.
        own_classes: GPU classes that the user defined.
    """

    rates: Sequence[MeasuredRate] = ()
    chosen: MeasuredRate | None = None
    preferred: bool = False
    left_out: Sequence[str] = ()
    prices: Prices = field(default_factory=Prices)
    own_classes: Sequence[GpuClass] = ()


def make_plan(
    service: Service,
    target: FleetTarget,
    sources: Sources,
    *,
    class_names: Sequence[str] = (),
    other_qps: Sequence[str] = (),
    guide: bool = False,
) -> Plan:
    """The plan for a service and a target.

    Args:
        service: what each replica serves.
        target: what the fleet must carry.
        sources: what is known.
        class_names: GPU classes to plan for. Empty: all that have a physical limit or a measured rate.
        other_qps: further target rates for the table, as decimal text. Empty: no table.
        guide: add the published sizing guide.

    Raises:
        RequirementError: if a server argument or a target rate is not a number in its range.
        GpuClassError: if a GPU class is not known.
        UnknownModel: if the model or its quantization is not understood.
    """
    rates, others = _of_service(sources, service)
    classes = _classes(class_names, sources.own_classes, {rate.gpu_class for rate in rates})
    best = best_of_each_class(rates, sources.chosen if sources.preferred else None)
    published, set_aside = published_rates(service, classes)
    fleets = []
    for gpu_class in classes:
        found = [rate.evidence for rate in best if rate.gpu_class == gpu_class.name]
        found += published.get(gpu_class.name, [])
        estimate = estimated_rate(service, gpu_class, best, sources.own_classes)
        if estimate is not None:
            found.append(estimate)
        fleets.append(
            size(
                target,
                gpu_class,
                best_evidence(found, service.roofline(gpu_class), service.slo),
                gpus_per_replica=service.arguments.gpus_per_replica,
                price=sources.prices.per_hour.get(gpu_class.name),
            )
        )
    known = cheapest(fleets, sources.prices)
    worth = worth_measuring(fleets, sources.prices, known, target.gpus)
    roofline = next((limits for each in classes if (limits := service.roofline(each)) is not None), None)
    declared = declared_slo(service.slo)
    return Plan(
        target=PlanTarget(
            qps=float(target.qps),
            headroom=float(target.headroom),
            gpus=target.gpus,
            limits=declared.limits,
            goodput=declared.goodput,
            thresholds=declared.thresholds,
        ),
        model=_model(service, roofline),
        workload=PlanWorkload(
            input_tokens=service.workload.input_tokens.mean,
            output_tokens=service.workload.output_tokens.mean,
            shared_prefix_tokens=service.workload.shared_prefix_tokens,
        ),
        currency=sources.prices.currency,
        priced=bool(sources.prices.per_hour),
        fleets=tuple(fleets),
        cheapest=None if known is None else known.gpu_class,
        worth_measuring=tuple(fleet.gpu_class for fleet in worth),
        set_aside=tuple(set_aside),
        left_out=(*sources.left_out, *others),
        table=_table(target, fleets, other_qps) if other_qps else None,
        guide=sizing_guide() if guide else None,
    )


def _of_service(sources: Sources, service: Service) -> tuple[list[MeasuredRate], list[str]]:
    """The rates of this service, and a line for each rate of another one."""
    # A plan that changes the chosen measurement's service asks another question: then no measured rate counts.
    applies = sources.chosen is not None and sources.chosen.service.same(service)
    same = [rate for rate in sources.rates if applies and rate.service.same(service)]
    others = [
        f"{rate.name} in {rate.place}: another model, workload or limits" for rate in sources.rates if rate not in same
    ]
    return same, others


def _classes(names: Sequence[str], own_classes: Sequence[GpuClass], measured: set[str]) -> list[GpuClass]:
    """The classes of these names; without names, whole GPUs with a known bandwidth, and all measured classes."""
    if names:
        return [find_class(name, own_classes) for name in names]
    return [
        gpu_class
        for gpu_class in known_classes(own_classes)
        if gpu_class.name in measured or (gpu_class.mig_profile is None and gpu_class.bandwidth_bytes_per_s is not None)
    ]


def _model(service: Service, roofline: Roofline | None) -> PlanModel:
    name, arguments = service.model, {name: str(value) for name, value in service.arguments.values.items()}
    if roofline is None:
        return PlanModel(name, arguments, None, None, None, None)
    return PlanModel(
        name=name,
        arguments=arguments,
        parameters=roofline.model.parameters,
        precision=roofline.precision.name,
        weights_gb=roofline.weight_bytes / 1e9,
        kv_bytes_per_token=roofline.kv_bytes_per_token,
    )


def _table(target: FleetTarget, fleets: Sequence[Fleet], qps: Sequence[str]) -> PlanTable:
    targets = [positive(each, "--qps-table") for each in qps]
    rates = {
        fleet.gpu_class: ReplicaRate.of_floats(fleet.rate_rps, fleet.low_rps, fleet.high_rps, fleet.gpus_per_replica)
        for fleet in fleets
        if fleet.rate_rps is not None
    }
    return PlanTable(tuple(float(each) for each in targets), gpu_table(rates, targets, target.headroom))
