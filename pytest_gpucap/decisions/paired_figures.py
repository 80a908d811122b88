"""Limits beside the rate on base and head: both figures, their ratio, and what is known of its noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from pytest_gpucap.decisions.secondary import cost_of, quotient_of
from pytest_gpucap.results.comparison import FigureComparison
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.secondary import SecondaryFigure, SecondaryLimit, SecondaryName, StartFigures

_NO_WINDOW: Final = "base and head had no window at an equal rate"
_NOISE: Final[Mapping[SecondaryName, str]] = {
    SecondaryName.STARTUP: "one start of each: how starts differ by chance is not known",
    SecondaryName.KV_TOKENS: "read from the servers: no sampling error",
    SecondaryName.USD_PER_1M_TOKENS: "one over the rates, with their interval",
    SecondaryName.JOULES_PER_1K_TOKENS: (
        "blocks of the windows at an equal rate, with what the idle server takes; what starts differ by is not in it"
    ),
}
_SAMPLED: Final = "blocks of the windows at an equal rate; what starts differ by is not in it"


def compared_figures(
    limits: Sequence[SecondaryLimit],
    base: StartFigures,
    head: StartFigures,
    *,
    rates: tuple[Interval | None, Interval | None, Interval | None],
    tokens: float | None,
    starts: tuple[str | None, str | None] = (None, None),
) -> tuple[FigureComparison, ...]:
    """Every limit of a test on both servers.

    Args:
        limits: as declared.
        base: what it showed at an equal rate; without parts where there was none.
        head: the same of the head.
        rates: sustainable rates of base and head, and their ratio, head over base.
        tokens: output tokens of a request, on average; None if that is not known.
        starts: ``cold`` or ``warm`` of either start, where it is known.
    """
    found = []
    for limit in limits:
        name = limit.name
        if name is SecondaryName.USD_PER_1M_TOKENS:
            one, other = _cost(base[name], rates[0], tokens), _cost(head[name], rates[1], tokens)
            ratio = None if rates[2] is None else _inverse(rates[2])
        else:
            one, other = _figure(name, base[name]), _figure(name, head[name])
            ratio = _ratio(one, other)
        whys = [f"{who}: {why}" for who, why in (("base", base[name].why), ("head", head[name].why)) if why]
        missing = one is None or other is None
        found.append(
            FigureComparison(
                name=name,
                unit=limit.metric.unit,
                base=one,
                head=other,
                ratio=None if missing else ratio,
                noise="" if missing else _NOISE.get(name, _SAMPLED),
                starts=_both(starts) if name is SecondaryName.STARTUP else None,
                reason="; ".join(whys) or (_NO_WINDOW if missing else ""),
            )
        )
    return tuple(found)


def _both(starts: tuple[str | None, str | None]) -> tuple[str, str] | None:
    base, head = starts
    return None if base is None or head is None else (base, head)


def _figure(name: SecondaryName, figure: SecondaryFigure) -> Interval | None:
    if figure.value is not None:
        return Interval(figure.value, figure.value, figure.value, 1.0)
    found = quotient_of(name, figure.parts)
    return None if found is None or not math.isfinite(found.high) else found


def _cost(figure: SecondaryFigure, rate: Interval | None, tokens: float | None) -> Interval | None:
    if figure.value is None or rate is None or not tokens or rate.low <= 0:
        return None
    value, low, high = (cost_of(figure.value, end, tokens) for end in (rate.value, rate.high, rate.low))
    return Interval(value, low, high, rate.confidence)


def _inverse(ratio: Interval) -> Interval | None:
    return None if ratio.low <= 0 else Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, ratio.confidence)


def _ratio(base: Interval | None, head: Interval | None) -> Interval | None:
    """Head over base. Both errors count as independent; None where one of them may be nothing."""
    if base is None or head is None or base.value <= 0 or head.value <= 0:
        return None
    value = head.value / base.value
    if base.low == base.high and head.low == head.high:
        return Interval(value, value, value, 1.0)
    half = math.hypot(*((each.high - each.low) / 2 / each.value for each in (base, head)))
    return Interval(value, value * math.exp(-half), value * math.exp(half))
