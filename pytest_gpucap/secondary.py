"""Secondary limits: what a test requires of a server beside the rate that it sustains.

A row of `METRICS` says all that one of them is: the keyword that declares it, how its value is read, which side of it
is good, and how people read a figure of it. What is measured is a `SecondaryFigure`. The room `decisions` compares the
two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pytest_gpucap.requirement import Number, duration_s, positive, share, whole


class Bound(StrEnum):
    """Which side of a limit is good."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


class SecondaryName(StrEnum):
    """The keywords that declare secondary limits."""

    STARTUP = "startup"
    """Seconds from the start of the server's process until its first whole answer."""
    KV_TOKENS = "kv_tokens"
    """Tokens that fit the KV cache of one replica."""
    JOULES_PER_1K_TOKENS = "joules_per_1k_tokens"
    """Energy of the devices for 1,000 output tokens, prompts included."""
    USD_PER_1M_TOKENS = "usd_per_1m_tokens"
    """Price of the GPUs for 1,000,000 output tokens at the sustainable rate, prompts included."""
    ACCEPTANCE = "acceptance"
    """Share of the tokens drafted by speculative decoding that were accepted."""
    PREFIX_HIT_RATE = "prefix_hit_rate"
    """Share of the prompt tokens looked up in the prefix cache that were found there."""
    PREEMPTIONS = "preemptions"
    """Preemptions over requests."""


_SAMPLED: Final = frozenset(
    {
        SecondaryName.JOULES_PER_1K_TOKENS,
        SecondaryName.ACCEPTANCE,
        SecondaryName.PREFIX_HIT_RATE,
        SecondaryName.PREEMPTIONS,
    }
)


@dataclass(frozen=True, slots=True)
class SecondaryMetric:
    """One kind of secondary limit.

    Attributes:
        name: the keyword.
        title: for reports.
        unit: of the figure as it is kept.
        bound: which side of the limit is good.
        read: a user's value -> the limit, in `unit`.
        said: a figure with its unit, for people; ``{}`` is the number.
        is_share: the number is shown as per cent.
    """

    name: SecondaryName
    title: str
    unit: str
    bound: Bound
    read: Callable[[Number, str], Any]
    said: str
    is_share: bool = False

    @property
    def is_sampled(self) -> bool:
        """Whether it is a quotient over measuring windows; otherwise it is read, or follows from the rate."""
        return self.name in _SAMPLED

    def number(self, value: float) -> str:
        """A figure without its unit, with four significant figures; tokens are whole; ``?`` if it is not known."""
        if not math.isfinite(value):
            return "?"
        if self.is_share:
            return f"{_plain(value * 100)}%"
        return f"{value:,.0f}" if self.name is SecondaryName.KV_TOKENS else _plain(value)

    def shown(self, value: float) -> str:
        """A figure with its unit: ``351.2 J per 1,000 output tokens``."""
        return self.said.format(self.number(value))


def _plain(value: float) -> str:
    """Four significant figures, no exponent: ``1,234``, ``0.4127``."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.10f}".rstrip("0").rstrip(".")  # noqa: PLR2004


def _above_nothing(value: Number, what: str) -> Any:
    return positive(share(value, what), what)


METRICS: Final[Mapping[SecondaryName, SecondaryMetric]] = {
    each.name: each
    for each in (
        SecondaryMetric(SecondaryName.STARTUP, "start-up", "s", Bound.AT_MOST, duration_s, "{} s"),
        SecondaryMetric(SecondaryName.KV_TOKENS, "KV cache", "tokens", Bound.AT_LEAST, whole, "{} tokens"),
        SecondaryMetric(
            SecondaryName.JOULES_PER_1K_TOKENS,
            "energy",
            "J per 1,000 output tokens",
            Bound.AT_MOST,
            positive,
            "{} J per 1,000 output tokens",
        ),
        SecondaryMetric(
            SecondaryName.USD_PER_1M_TOKENS,
            "cost",
            "USD per 1,000,000 output tokens",
            Bound.AT_MOST,
            positive,
            "{} USD per 1,000,000 output tokens",
        ),
        SecondaryMetric(
            SecondaryName.ACCEPTANCE, "acceptance", "share", Bound.AT_LEAST, _above_nothing, "{}", is_share=True
        ),
        SecondaryMetric(
            SecondaryName.PREFIX_HIT_RATE,
            "prefix hit rate",
            "share",
            Bound.AT_LEAST,
            _above_nothing,
            "{}",
            is_share=True,
        ),
        SecondaryMetric(
            SecondaryName.PREEMPTIONS, "preemptions", "share", Bound.AT_MOST, share, "{} of the requests", is_share=True
        ),
    )
}


@dataclass(frozen=True, slots=True)
class SecondaryLimit:
    """One limit as it was declared, in the unit of its metric."""

    name: SecondaryName
    limit: float

    @property
    def metric(self) -> SecondaryMetric:
        """What it limits."""
        return METRICS[self.name]


@dataclass(frozen=True, slots=True)
class SecondaryFigure:
    """What one start of a server showed of one metric.

    Attributes:
        value: a figure that is read, not sampled, in the metric's unit: the start-up time, the tokens. Of a cost, what
            one replica costs an hour.
        parts: (over, under) of each window, for a figure that is a quotient: joules over output tokens, say.
        why: why there is nothing, in a few words; empty where there is.
        beside: what follows from the figure, for people.
    """

    value: float | None = None
    parts: tuple[tuple[float, float], ...] = ()
    why: str = ""
    beside: str = ""


StartFigures = Mapping[SecondaryName, SecondaryFigure]
"""What one start showed of every limited metric."""
