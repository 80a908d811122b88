"""Evidence for the rate of one replica on one GPU class, and which evidence a plan uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_gpucap.requirement import Slo
from pytest_gpucap.roofline.limits import Roofline


class Provenance(StrEnum):
    """Where a rate comes from. The order is that of preference; a given rate is never compared with others."""

    GIVEN = "as given"
    MEASURED = "measured here"
    BASELINE = "baseline"
    IMPORTED = "another tool"
    PUBLISHED = "published"
    ESTIMATE = "estimate"
    LIMIT = "physical limit"

    @property
    def known(self) -> bool:
        """Whether somebody measured the rate, as far as is known. Estimates and physical limits were not measured.

        A point of another tool was seen, but it is no measured capacity.
        """
        return self in {Provenance.MEASURED, Provenance.BASELINE, Provenance.PUBLISHED}


@dataclass(frozen=True, slots=True)
class Evidence:
    """The rate of one replica on one GPU class.

    Attributes:
        rate_rps: requests per second. For a physical limit this is an upper bound.
        low_rps, high_rps: interval of a measurement or band of an estimate; None if there is none.
        text: the file, the source or the arithmetic, in one line.
    """

    provenance: Provenance
    rate_rps: float
    low_rps: float | None
    high_rps: float | None
    text: str


@dataclass(frozen=True, slots=True)
class NoEvidence:
    """Why a plan has no rate for a GPU class, in one line."""

    reason: str


def best_evidence(found: Sequence[Evidence], roofline: Roofline | None, slo: Slo) -> Evidence | NoEvidence:
    """The evidence that a plan uses for one GPU class.

    A measured or published rate, or a point of another tool, is always believed. An estimate counts only where the
    physical limit allows a rate at all. Without either, the physical limit itself is the evidence.

    Args:
        found: rates of one replica on the class, in any order. The best provenance wins, then the narrowest interval.
        roofline: the physical limits of one replica on the class; None if they are not known.
        slo: the latency limits that bound the physical limit.
    """
    best = min(found, key=_preference, default=None)
    if best is not None and (best.provenance.known or best.provenance is Provenance.IMPORTED):
        return best
    limit = _physical_limit(roofline, slo)
    return limit if best is None or isinstance(limit, NoEvidence) else best


def _preference(evidence: Evidence) -> tuple[int, float]:
    """A sort key: the preferred evidence has the smallest."""
    width = math.inf
    if evidence.low_rps and evidence.high_rps:
        width = evidence.high_rps / evidence.low_rps
    return list(Provenance).index(evidence.provenance), width


def _physical_limit(roofline: Roofline | None, slo: Slo) -> Evidence | NoEvidence:
    if roofline is None:
        return NoEvidence("no limit known: the model's config or the class's bandwidth is missing")
    if not roofline.fits():
        return NoEvidence(f"{roofline.weight_bytes / 1e9:.3g} GB of weights and one request do not fit its memory")
    best = roofline.best(slo)
    if best is None:
        alone = roofline.at(1)
        return NoEvidence(
            f"cannot keep the latency limits even with one request: TTFT {alone.ttft_s * 1e3:.3g} ms, TPOT "
            f"{alone.tpot_s * 1e3:.3g} ms, E2E {roofline.e2e_s():.3g} s at the least"
        )
    text = f"{best.bound}, {best.batch:.0f} in flight: {best.formula}"
    return Evidence(Provenance.LIMIT, best.rate_rps, None, None, text)
