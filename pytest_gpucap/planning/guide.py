"""A published sizing guide, checked: its rates against physics, its recommendations against its own formula.

The guide is the DeepSeek-R1-Distill-Qwen-1.5B sizing guide of 2026. Its rates are in ``references.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import msgspec

from pytest_gpucap.gpu.classes import find_class
from pytest_gpucap.planning.references import Reference, plausibility_of, references, roofline_for
from pytest_gpucap.roofline.deployment import Hardware
from pytest_gpucap.roofline.served import hardware_of
from pytest_gpucap.sizing import decimal_text, gpus_required, largest_qps

SOURCE: Final = "DeepSeek-R1-Distill-Qwen-1.5B sizing guide, 2026"
HEADROOM: Final = Fraction(13, 10)
"""R in the guide's formula ``N = ceil(Q x R / T)``."""
BATCHING_GAIN: Final = (Fraction(3, 2), Fraction(5, 2))
"""The guide says that dynamic batching raises throughput by a factor between these two."""
AWQ_SAVING: Final = 0.6
"""The guide says that its AWQ build takes about this share less memory."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One row of the guide's recommendations.

    Attributes:
        above, up_to: target rates that the row is for, in requests per second. `up_to` None: no upper end.
        options: the GPUs that it recommends, as (GPUs, class).
        text, memory, cost_stars, purpose: as the guide has them.
    """

    above: Fraction
    up_to: Fraction | None
    options: tuple[tuple[int, str], ...]
    text: str
    memory: str
    cost_stars: int
    purpose: str


TIERS: Final = (
    Tier(Fraction(0), Fraction(3), ((1, "t4"), (1, "a10g")), "1 x T4 or 1 x A10G", "5-8 GB", 2,
         "small applications, proofs of concept"),
    Tier(Fraction(3), Fraction(8), ((2, "a10g"),), "2 x A10G", "10 GB", 3, "small and medium online services"),
    Tier(Fraction(8), Fraction(15), ((4, "a10g"), (2, "a100-40gb")), "4 x A10G or 2 x A100 40GB", "16-40 GB", 4,
         "enterprise services with high concurrency"),
    Tier(Fraction(15), None, ((4, "a100-80gb"),), "4 x A100 80GB or an H100 cluster", ">= 80 GB", 5, "large platforms"),
)  # fmt: skip


class GuideReference(msgspec.Struct, frozen=True):
    """One of the guide's published rates, against the physical limit.

    Attributes:
        build: the guide's word for the quantization.
        batch: requests in flight.
        latency_s: of one request, as published.
        rate_rps: requests per second per replica, as published.
        memory_gb: as published.
        floor_s: the least time that physics allows for one request.
        plausible: whether physics allows the published figures.
        finding: the share of the physical limit in words.
        text: the finding, with the latency where physics does not allow it.
    """

    gpu_class: str
    build: str
    batch: int | None
    latency_s: float | None
    rate_rps: float
    memory_gb: float | None
    floor_s: float
    plausible: bool
    finding: str
    text: str


class AwqSaving(msgspec.Struct, frozen=True):
    """The share of memory that the AWQ build saves on an A10G: as said, by the guide's own rows, and of the weights."""

    said: float
    by_its_rows: float
    of_the_weights: float


class TierCheck(msgspec.Struct, frozen=True):
    """One option of a tier against ``N = ceil(Q x R / T)``, with Q the highest rate of the tier.

    Attributes:
        above_qps, up_to_qps, recommends, memory, cost_stars, purpose: the tier, as in `Tier`.
        gpus, gpu_class: the option.
        build: the build that T is of; empty if the guide gives no T for this class.
        rate_rps: T, from the guide's own table; None if the guide gives none.
        needed: N; None if the tier has no highest rate, or T is not known.
        needed_with_batching: N with the least and with the greatest gain of dynamic batching; None as `needed`.
        carries_qps: the highest target rate that the option carries by the formula; None without T.
        agrees: whether the option has at least N GPUs; None if N is not known.
    """

    above_qps: float
    up_to_qps: float | None
    recommends: str
    memory: str
    cost_stars: int
    purpose: str
    gpus: int
    gpu_class: str
    build: str
    rate_rps: float | None
    needed: int | None
    needed_with_batching: tuple[int, int] | None
    carries_qps: float | None
    agrees: bool | None


class Guide(msgspec.Struct, frozen=True):
    """The guide and what the checks found.

    Attributes:
        batching_gain: the least and the greatest factor of dynamic batching, as said.
    """

    source: str
    batching_gain: tuple[float, float]
    references: tuple[GuideReference, ...]
    awq_saving: AwqSaving
    tiers: tuple[TierCheck, ...]


def sizing_guide() -> Guide:
    """The guide, checked."""
    checked = {(each.gpu_class, each.build): each for each in references() if each.source == SOURCE}
    fp16, awq = checked["a10g", "fp16"], checked["a10g", "AWQ"]
    return Guide(
        source=SOURCE,
        batching_gain=(float(BATCHING_GAIN[0]), float(BATCHING_GAIN[1])),
        references=tuple(_reference(each) for each in checked.values()),
        awq_saving=AwqSaving(
            said=AWQ_SAVING,
            by_its_rows=1 - (awq.memory_gb or 0.0) / (fp16.memory_gb or 0.0),
            of_the_weights=1 - _weight_bytes(awq) / _weight_bytes(fp16),
        ),
        tiers=tuple(check_tiers({key: decimal_text(each.rate_rps) for key, each in checked.items()})),
    )


def check_tiers(rates: Mapping[tuple[str, str], str]) -> list[TierCheck]:
    """The guide's tiers against its own formula: one check for each option and each build of its class.

    Args:
        rates: T by (GPU class, build), as decimal text.
    """
    checks = []
    for tier in TIERS:
        for gpus, gpu_class in tier.options:
            builds = {build: rate for (name, build), rate in rates.items() if name == gpu_class}
            checks += [_check(tier, gpus, gpu_class, build, builds.get(build)) for build in builds or [""]]
    return checks


def _check(tier: Tier, gpus: int, gpu_class: str, build: str, rate: str | None) -> TierCheck:
    needed = batching = None
    if rate is not None and tier.up_to is not None:
        needed = gpus_required(tier.up_to, HEADROOM, rate)
        least, most = (gpus_required(tier.up_to, HEADROOM, Fraction(rate) * gain) for gain in BATCHING_GAIN)
        batching = (least, most)
    return TierCheck(
        above_qps=float(tier.above),
        up_to_qps=None if tier.up_to is None else float(tier.up_to),
        recommends=tier.text,
        memory=tier.memory,
        cost_stars=tier.cost_stars,
        purpose=tier.purpose,
        gpus=gpus,
        gpu_class=gpu_class,
        build=build,
        rate_rps=None if rate is None else float(rate),
        needed=needed,
        needed_with_batching=batching,
        carries_qps=None if rate is None else float(largest_qps(gpus, rate, HEADROOM)),
        agrees=None if needed is None else needed <= gpus,
    )


def _reference(reference: Reference) -> GuideReference:
    found = plausibility_of(reference, _hardware(reference))
    return GuideReference(
        gpu_class=reference.gpu_class,
        build=reference.build,
        batch=reference.batch,
        latency_s=reference.latency_s,
        rate_rps=reference.rate_rps,
        memory_gb=reference.memory_gb,
        floor_s=found.floor_s,
        plausible=found.plausible,
        finding=found.finding,
        text=found.text,
    )


def _weight_bytes(reference: Reference) -> float:
    return roofline_for(reference, _hardware(reference)).weight_bytes


def _hardware(reference: Reference) -> Hardware:
    hardware = hardware_of(find_class(reference.gpu_class))
    assert hardware is not None, reference.gpu_class  # noqa: S101 - our own data file
    return hardware
