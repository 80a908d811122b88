"""A result against a baseline, or against the base of a pull request."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from pytest_gpucap.results.encoding import Figure
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.secondary import SecondaryName


class RegressionDecision(StrEnum):
    """How the rate changed."""

    REGRESSED = "REGRESSED"
    """Lower by more than allowed, significantly."""
    IMPROVED = "IMPROVED"
    """Higher by more than a regression may be lower, significantly."""
    SAME = "SAME"
    """A loss of more than allowed is ruled out."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The evidence neither shows nor rules out such a loss."""
    NOT_COMPARABLE = "NOT COMPARABLE"
    """The baseline has no result that may be compared."""


class ComparedBaseline(msgspec.Struct, frozen=True):
    """What a result is compared with. Fields are None if unknown, and for the base of a pull request."""

    name: str
    path: str | None = None
    started: str | None = None
    plugin_version: str | None = None


class LatencyComparison(msgspec.Struct, frozen=True):
    """One latency's percentile in both results: one that has a limit, or a usual one.

    Attributes:
        limit: its name, such as ``ttft_p95``.
        load: the load, as text.
        base_s, head_s: the percentile.
        ratio: head over base; above 1: slower than the baseline.
    """

    limit: str
    load: str
    base_s: Figure
    head_s: Figure
    ratio: Interval | None
    decision: RegressionDecision


class FigureComparison(msgspec.Struct, frozen=True):
    """One limit beside the rate on base and head. It decides nothing.

    Attributes:
        name: the keyword that declares it.
        unit: of `base` and `head`.
        base, head: what either showed; its ends are equal where it is read and not sampled. None: not measured.
        ratio: head over base; its ends are equal where both are read. None where one of them is nothing.
        noise: what is known of the ratio's noise, for people.
        starts: whether the starts of base and head were ``cold`` or ``warm``; None: no start-up, or not known.
        reason: why something was not measured; else empty.
    """

    name: SecondaryName
    unit: str
    base: Interval | None
    head: Interval | None
    ratio: Interval | None = None
    noise: str = ""
    starts: tuple[str, str] | None = None
    reason: str = ""


class BlockPair(msgspec.Struct, frozen=True):
    """Two neighbouring blocks of an alternation: engine seconds of the base that each server delivered in a second."""

    base: float
    head: float
    base_first: bool


class PairedComparison(msgspec.Struct, frozen=True):
    """Base and head measured in alternation.

    Attributes:
        concurrency: requests held in flight on either server.
        pace: what the head delivers at this concurrency, over the base.
        elasticity: relative loss of sustainable rate over relative loss of pace.
        pairs: in the order in which they were measured.
    """

    concurrency: int
    pace: Interval | None
    elasticity: Figure
    pairs: tuple[BlockPair, ...]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How the sustainable rate changed.

    Attributes:
        ratio: sustainable rate of this run over the baseline's.
        head_rate: of this run; the mean of both if a second measurement was made.
        second_rate: of the measurement that should confirm a REGRESSED.
        max_regression: share of the rate that may be lost.
        differs: differences that forbid a comparison.
        changed: differences that do not.
        more_gpu_s: further server time that would decide an INCONCLUSIVE.
        confirmed: whether a second measurement confirmed a REGRESSED; None: none was made.
        reason: one sentence.
        latencies: at an equal load; they fail no test.
        no_latencies: why base and head, measured in alternation, have none; else empty.
        paired: how base and head were measured in alternation; None where they were not.
        figures: of the limits beside the rate, on base and head; they fail no test.
    """

    baseline: ComparedBaseline
    decision: RegressionDecision
    ratio: Interval | None = None
    base_rate: Interval | None = None
    head_rate: Interval | None = None
    second_rate: Interval | None = None
    max_regression: float
    differs: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    more_gpu_s: float | None = None
    confirmed: bool | None = None
    reason: str
    latencies: tuple[LatencyComparison, ...] = ()
    no_latencies: str = ""
    paired: PairedComparison | None = None
    figures: tuple[FigureComparison, ...] = ()
