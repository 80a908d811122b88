"""What requests must keep: limits on percentiles of latencies, on the share of good requests, on errors and answers.

Limits are exact shares of requests, and seconds as floats.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import ClassVar, Final, NamedTuple

from pytest_gpucap.declared_numbers import Number, RequirementError, duration_s, share
from pytest_gpucap.errors import shortened, told


class Metric(StrEnum):
    """The latencies that a limit can be set on."""

    TTFT = "ttft"
    """Time to first token: from when the request was due to its first generated token."""
    TPOT = "tpot"
    """Time per output token after the first: (end - first token) / (tokens - 1), one figure per request."""
    ITL = "itl"
    """Inter-token latency: each gap between two streamed tokens."""
    E2E = "e2e"
    """End to end: from when the request was due to its last token."""


_LIMIT_NAME = re.compile(r"(?P<metric>ttft|tpot|itl|e2e)_p(?P<percent>[0-9]{1,2}(?:_[0-9]{1,9})?)")


class LatencyPercentile(NamedTuple):
    """A percentile of one latency; `percent` lies above 0 and below 100."""

    metric: Metric
    percent: Fraction


def limited_percentile(keyword: str) -> LatencyPercentile | None:
    """What the keyword of a latency limit limits, such as ``ttft_p95`` or ``e2e_p99_9``; None for other names."""
    match = _LIMIT_NAME.fullmatch(keyword)
    if match is None or (percent := Fraction(match["percent"].replace("_", "."))) <= 0:
        return None
    return LatencyPercentile(Metric(match["metric"]), percent)


class Threshold(NamedTuple):
    """How long one latency of a request may take, in seconds (each gap of it, for ITL)."""

    metric: Metric
    limit_s: float


class Limit(ABC):
    """A limit on how many requests may be late."""

    __slots__ = ()
    quantile: Fraction
    """Share of the requests (gaps, for ITL) that must keep it at least."""
    failed_break: ClassVar[bool]
    """A failed request breaks it. Otherwise failed requests are left to the error rate."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports and result files call it: ``ttft_p95``, ``goodput_95``."""

    @property
    @abstractmethod
    def thresholds(self) -> tuple[Threshold, ...]:
        """What a request must keep, all at once."""

    @property
    @abstractmethod
    def most(self) -> float:
        """The largest value that keeps it, of what it is set on (`load.latencies.limited`)."""

    @property
    def metrics(self) -> frozenset[Metric]:
        """The latencies that it is about."""
        return frozenset(each.metric for each in self.thresholds)

    @property
    def of_gaps(self) -> bool:
        """It is set on the gaps between tokens, of which a request has many."""
        return Metric.ITL in self.metrics

    @property
    def at_first(self) -> bool:
        """Whether a request keeps it is known once its first token has come."""
        return self.metrics == {Metric.TTFT}


def _named_percent(quantile: Fraction) -> str:
    """The percentage in a limit's name: ``95``, ``99_9``."""
    percent = Decimal(quantile.numerator) * 100 / Decimal(quantile.denominator)
    return format(percent.normalize(), "f").replace(".", "_")


@dataclass(frozen=True, slots=True)
class LatencyLimit(Limit):
    """One limit: at most ``1 - quantile`` of the requests (gaps, for ITL) may take longer than `limit_s`.

    Attributes:
        metric: the latency that is limited.
        limit_s: how long it may take.
    """

    metric: Metric
    quantile: Fraction
    limit_s: float
    failed_break = False

    @property
    def name(self) -> str:
        """The keyword that declares it, such as ``ttft_p95`` or ``e2e_p99_9``."""
        return f"{self.metric.value}_p{_named_percent(self.quantile)}"

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """The one that it is."""
        return (Threshold(self.metric, self.limit_s),)

    @property
    def most(self) -> float:
        """Seconds."""
        return self.limit_s

    @classmethod
    def parse(cls, keyword: str, value: Number) -> LatencyLimit:
        """From a keyword and its value: ``parse("ttft_p95", "500ms")``.

        Raises:
            RequirementError: if the keyword names no metric and percentile, or the value is no duration.
        """
        found = limited_percentile(keyword)
        if found is None:
            raise RequirementError(
                f"{shortened(keyword)} is no latency limit: write METRIC_pPERCENT with a metric of ttft, tpot, itl, "
                "e2e and a percentile above 0 and below 100, such as ttft_p95 or e2e_p99_9"
            )
        return cls(found.metric, found.percent / 100, duration_s(value, keyword))


GOODPUT: Final = "goodput"
"""The keyword of the share of good requests, and the beginning of its limit's name."""
_GOODPUT_NAME: Final = re.compile(r"goodput_(?P<percent>[0-9]{1,2}(?:_[0-9]{1,9})?)")
_FINEST: Final = 10**11
"""A share in a name has nine digits after the point of its percentage at most."""


def goodput_percent(name: str) -> Fraction | None:
    """The percentage in the name of a goodput limit, such as ``goodput_95``; None for other names."""
    match = _GOODPUT_NAME.fullmatch(name)
    return None if match is None else Fraction(match["percent"].replace("_", "."))


@dataclass(frozen=True, slots=True)
class GoodputLimit(Limit):
    """At least the share `quantile` of the requests must be good: keep every threshold, all together.

    This is the goodput of DistServe (Zhong et al. 2024), of vLLM's benchmark and of AIPerf. What the limit is set on is
    a request's largest latency, each as a multiple of its threshold: a good request has at most 1.

    Attributes:
        thresholds: one per metric, in the order of `Metric`; none of ITL.
    """

    quantile: Fraction
    thresholds: tuple[Threshold, ...]
    failed_break = True

    @property
    def name(self) -> str:
        """Such as ``goodput_95`` or ``goodput_99_9``."""
        return f"{GOODPUT}_{_named_percent(self.quantile)}"

    @property
    def most(self) -> float:
        """A multiple of the thresholds."""
        return 1.0

    @property
    def required(self) -> str:
        """The share as people write it: ``95%``."""
        return f"{float(self.quantile * 100):.12g}%"

    def apart_from(self, metric: Metric) -> GoodputLimit | None:
        """The same without a threshold on `metric`, which is easier to keep; None where none is left."""
        others = tuple(each for each in self.thresholds if each.metric is not metric)
        return replace(self, thresholds=others) if others else None


def good_thresholds(limits: Sequence[LatencyLimit], own: Sequence[Threshold] = ()) -> tuple[Threshold, ...]:
    """What a good request keeps: of each metric but ITL one threshold, in the order of `Metric`.

    A threshold of `own` comes before those of the percentiles. Of several percentiles it is that of the highest, which
    is what nearly all requests must keep.
    """
    found = {limit.metric: limit.limit_s for limit in sorted(limits, key=lambda each: each.quantile)}
    found |= dict(own)
    return tuple(Threshold(metric, found[metric]) for metric in Metric if metric in found and metric is not Metric.ITL)


def declared_limits(declared: Mapping[str, Number]) -> tuple[Limit, ...]:
    """The limits that keywords declare: percentiles such as ``ttft_p95``, and ``goodput`` with ``ttft``, ``e2e`` ...

    Raises:
        RequirementError: if a keyword or value is none of a limit, or if goodput and thresholds do not fit together.
    """
    bare = {metric.value for metric in Metric}
    own = [Threshold(Metric(word), duration_s(value, word)) for word, value in declared.items() if word in bare]
    others = {word: value for word, value in declared.items() if word not in bare}
    asked = others.pop(GOODPUT, None)
    limits = tuple(LatencyLimit.parse(word, value) for word, value in others.items())
    _check_apart(list(others), limits)
    if asked is None:
        if own:
            word = own[0].metric.value
            raise RequirementError(
                f"{word}={told(declared[word])} has no percentile: write {word}_p95={told(declared[word])}, or add "
                'goodput="95%" for the share of requests that must keep it'
            )
        return limits
    quantile = share(asked, GOODPUT)
    if not 0 < quantile < 1 or _FINEST % quantile.denominator:
        raise RequirementError(
            f'{GOODPUT} must be a share above 0% and below 100% such as "95%" or "99.9%", not {told(asked)}'
        )
    gaps = [word for word in declared if word == Metric.ITL or word.startswith(f"{Metric.ITL}_")]
    if gaps:
        raise RequirementError(
            f"{gaps[0]} does not go with {GOODPUT}, which counts requests: it limits gaps between tokens, of which a "
            "request has many; limit tpot instead"
        )
    thresholds = good_thresholds(limits, own)
    if not thresholds:
        raise RequirementError(f'{GOODPUT} needs what good requests keep: add ttft="500ms", tpot="50ms" or e2e="20s"')
    return (*limits, GoodputLimit(quantile, thresholds))


def _check_apart(words: Sequence[str], limits: Sequence[LatencyLimit]) -> None:
    """Check that no two keywords limit the same percentile: results hold one limit by each name.

    Raises:
        RequirementError: if two do.
    """
    seen: dict[str, str] = {}
    for word, limit in zip(words, limits, strict=True):
        if (other := seen.setdefault(limit.name, word)) != word:
            raise RequirementError(f"{other} and {word} limit the same percentile: leave one of them out")


@dataclass(frozen=True, slots=True)
class Slo:
    """The limits that requests must keep. All apply at once.

    Attributes:
        limits: on latencies. There may be none; then only errors and a growing backlog bound the sustainable rate.
        max_error_rate: share of the requests that may fail.
    """

    limits: tuple[Limit, ...] = ()
    max_error_rate: Fraction = Fraction(1, 100)
    min_accuracy: Fraction | None = None
    """Share of the workload's questions that must be answered right; None: answers are not graded."""

    @property
    def goodput(self) -> GoodputLimit | None:
        """The limit on the share of good requests; None where there is none."""
        return next((limit for limit in self.limits if isinstance(limit, GoodputLimit)), None)

    @property
    def percentiles(self) -> tuple[LatencyLimit, ...]:
        """The limits on a percentile of one latency."""
        return tuple(limit for limit in self.limits if isinstance(limit, LatencyLimit))

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Those of all limits."""
        return tuple(each for limit in self.limits for each in limit.thresholds)

    @property
    def good(self) -> tuple[Threshold, ...]:
        """What a good request keeps, whether goodput is limited or not; empty where no request is limited."""
        return good_thresholds(self.percentiles) if self.goodput is None else self.goodput.thresholds
