"""A fleet for a target rate: GPUs, memory and cost by GPU class, each with what its rate rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from pytest_gpucap.requirement import Slo
from pytest_gpucap.roofline.limits import Roofline
from pytest_gpucap.sizing import decimal_text, gpus_required, largest_qps


class Provenance(StrEnum):
    """Where a rate comes from, the best first."""

    MEASURED = "measured here"
    BASELINE = "baseline"
    PUBLISHED = "published"
    ESTIMATE = "estimate"
    LIMIT = "physical limit"

    @property
    def known(self) -> bool:
        """Whether somebody measured it; the other two only say what may be or cannot be."""
        return self in {Provenance.MEASURED, Provenance.BASELINE, Provenance.PUBLISHED}


@dataclass(frozen=True, slots=True)
class Evidence:
    """The rate of one replica on one class.

    Attributes:
        rate_rps: requests a second; of a limit, at most.
        low_rps, high_rps: interval or band; None where there is none.
        text: file, source or arithmetic, in one line.
    """

    provenance: Provenance
    rate_rps: float
    low_rps: float | None
    high_rps: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """One class of GPUs for the target.

    Attributes:
        evidence: None where the class can serve nothing; `reason` says why.
        gpus: from the rate; of a limit, at least.
        fewest, most: from the high and the low end of the rate's interval; equal to `gpus` where there is none.
        memory_gb: of all these GPUs.
        weights_gb: of the model, in one replica; None where not known.
        cost_per_hour: of all these GPUs; None without a price.
        largest_qps: what the budget carries; None without a budget.
        fits: False where it is over the budget, or can serve nothing.
    """

    gpu_class: str
    gpus_per_replica: int
    evidence: Evidence | None
    reason: str = ""
    gpus: int | None = None
    fewest: int | None = None
    most: int | None = None
    memory_gb: float | None = None
    weights_gb: float | None = None
    cost_per_hour: Fraction | None = None
    largest_qps: Fraction | None = None
    fits: bool = False


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """What the fleet must carry: rate, headroom, limits, and the budget where there is one."""

    qps: Fraction
    headroom: Fraction
    slo: Slo = field(default_factory=Slo)
    budget: int | None = None


def size(
    target: FleetTarget,
    gpu_class: str,
    roofline: Roofline | None,
    found: Sequence[Evidence],
    *,
    gpus_per_replica: int = 1,
    memory_gb: float | None = None,
    price: Fraction | None = None,
) -> Fleet:
    """The fleet of one class from the best of the evidence, or from its physical limit where there is none.

    Args:
        target: what it must carry.
        gpu_class: its name.
        roofline: limits of a replica on it; None where they are not known.
        found: rates of a replica, in any order; the best provenance counts, and of several the narrowest interval.
        gpus_per_replica: tensor x pipeline x data.
        memory_gb: of one GPU.
        price: of one GPU for an hour.
    """
    weights_gb = None if roofline is None else roofline.weight_bytes / 1e9
    chosen = min(found, key=_rank, default=None)
    if chosen is None or not chosen.provenance.known:
        limited = _limit(target, roofline)
        if isinstance(limited, str):
            return Fleet(gpu_class, gpus_per_replica, None, limited, weights_gb=weights_gb)
        chosen = chosen or limited

    def gpus(rate: float) -> int:
        return gpus_required(target.qps, target.headroom, decimal_text(rate), gpus_per_replica)

    needed = gpus(chosen.rate_rps)
    carried = None
    if target.budget is not None:
        carried = largest_qps(target.budget, decimal_text(chosen.rate_rps), target.headroom, gpus_per_replica)
    return Fleet(
        gpu_class=gpu_class,
        gpus_per_replica=gpus_per_replica,
        evidence=chosen,
        gpus=needed,
        fewest=needed if chosen.high_rps is None else gpus(chosen.high_rps),
        most=needed if chosen.low_rps is None else gpus(chosen.low_rps),
        memory_gb=None if memory_gb is None else needed * memory_gb,
        weights_gb=weights_gb,
        cost_per_hour=None if price is None else needed * price,
        largest_qps=carried,
        fits=target.budget is None or needed <= target.budget,
    )


def _rank(evidence: Evidence) -> tuple[int, float]:
    width = math.inf
    if evidence.low_rps and evidence.high_rps:
        width = evidence.high_rps / evidence.low_rps
    return list(Provenance).index(evidence.provenance), width


def _limit(target: FleetTarget, roofline: Roofline | None) -> Evidence | str:
    """The physical limit as evidence, or why the class can serve nothing."""
    if roofline is None:
        return "no limit known: the model's config or the class's bandwidth is missing"
    if not roofline.fits():
        return f"{roofline.weight_bytes / 1e9:.3g} GB of weights and one request do not fit its memory"
    best = roofline.best(target.slo)
    if best is None:
        alone = roofline.at(1)
        return (
            f"cannot keep the latency limits even with one request: TTFT {alone.ttft_s * 1e3:.3g} ms, TPOT "
            f"{alone.tpot_s * 1e3:.3g} ms, E2E {roofline.e2e_s():.3g} s at the least"
        )
    text = f"{best.bound}, {best.batch:.0f} in flight: {best.formula}"
    return Evidence(Provenance.LIMIT, best.rate_rps, None, None, text)


def cheapest(fleets: Sequence[Fleet]) -> Fleet | None:
    """The cheapest fleet that fits and whose rate was measured by somebody; None where there is none or no price."""
    able = [f for f in fleets if f.fits and f.cost_per_hour is not None and f.evidence and f.evidence.provenance.known]
    return min(able, key=lambda fleet: (fleet.cost_per_hour or 0, fleet.gpus or 0), default=None)


def worth_measuring(fleets: Sequence[Fleet], known: Fleet | None, budget: int | None = None) -> list[Fleet]:
    """Classes that may be cheaper than what is known, by the best end of their estimate or by their limit.

    Cheapest first. What is left out cannot be cheaper, or not within the budget of GPUs.
    """
    costs = []
    for fleet in fleets:
        if fleet.evidence is None or fleet.evidence.provenance.known or fleet.cost_per_hour is None:
            continue
        assert fleet.gpus is not None  # noqa: S101 - evidence gives GPUs
        assert fleet.fewest is not None  # noqa: S101 - the same
        if budget is not None and fleet.fewest > budget:
            continue
        least = fleet.cost_per_hour * fleet.fewest / fleet.gpus
        if known is None or known.cost_per_hour is None or least < known.cost_per_hour:
            costs.append((least, fleet))
    return [fleet for _, fleet in sorted(costs, key=lambda each: each[0])]


@dataclass(frozen=True, slots=True)
class Tier:
    """One row of the sizing guide's recommendation.

    Attributes:
        above, up_to: target rates it is for; `up_to` None: no end.
        options: GPUs it recommends, as (GPUs, class).
        text, memory, cost_stars, purpose: as the guide has them.
    """

    above: Fraction
    up_to: Fraction | None
    options: tuple[tuple[int, str], ...]
    text: str
    memory: str
    cost_stars: int
    purpose: str


TIERS = (
    Tier(Fraction(0), Fraction(3), ((1, "t4"), (1, "a10g")), "1 x T4 or 1 x A10G", "5-8 GB", 2,
         "small applications, proofs of concept"),
    Tier(Fraction(3), Fraction(8), ((2, "a10g"),), "2 x A10G", "10 GB", 3, "small and medium online services"),
    Tier(Fraction(8), Fraction(15), ((4, "a10g"), (2, "a100-40gb")), "4 x A10G or 2 x A100 40GB", "16-40 GB", 4,
         "enterprise services with high concurrency"),
    Tier(Fraction(15), None, ((4, "a100-80gb"),), "4 x A100 80GB or an H100 cluster", ">= 80 GB", 5, "large platforms"),
)  # fmt: skip
"""DeepSeek-R1-Distill-Qwen-1.5B sizing guide, 2026."""
BATCHING_GAIN = (Fraction(3, 2), Fraction(5, 2))
"""The same: dynamic batching is said to raise throughput by these factors, at the price of time to first token."""


@dataclass(frozen=True, slots=True)
class TierCheck:
    """One option of a tier against ``N = ceil(Q x R / T)`` at the tier's highest rate.

    Attributes:
        rate_rps: T, from the guide's own table; None where it gives none, and nothing can be checked.
        needed: GPUs by the formula; None where the tier has no highest rate or no T.
        needed_batching: the same with the least and the greatest gain of dynamic batching.
        carries_qps: the highest rate that the option carries by the formula.
        agrees: whether the option has at least as many GPUs; None where it cannot be checked.
    """

    tier: Tier
    gpus: int
    gpu_class: str
    build: str
    rate_rps: str | None
    needed: int | None
    needed_batching: tuple[int, int] | None
    carries_qps: Fraction | None
    agrees: bool | None


def check_tiers(rates: Mapping[tuple[str, str], str], headroom: Fraction = Fraction(13, 10)) -> list[TierCheck]:
    """The guide's tiers against its own formula and table.

    Args:
        rates: T by (class, build), as decimal text.
        headroom: the guide's R.
    """
    checks = []
    for tier in TIERS:
        for gpus, gpu_class in tier.options:
            builds = [(build, rate) for (name, build), rate in rates.items() if name == gpu_class]
            if not builds:
                checks.append(TierCheck(tier, gpus, gpu_class, "", None, None, None, None, None))
            for build, rate in builds:
                needed = batching = agrees = None
                if tier.up_to is not None:
                    needed = gpus_required(tier.up_to, headroom, rate)
                    least, most = (gpus_required(tier.up_to, headroom, Fraction(rate) * g) for g in BATCHING_GAIN)
                    batching, agrees = (least, most), needed <= gpus
                carries = largest_qps(gpus, rate, headroom)
                checks.append(TierCheck(tier, gpus, gpu_class, build, rate, needed, batching, carries, agrees))
    return checks
