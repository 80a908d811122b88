"""Quantiles of Student's t. SciPy has them too, but takes a second to load, and reports need nothing else of it.

The tail is the regularised incomplete beta function, P(T > t) = I_x(n/2, 1/2) / 2 with x = n / (n + t^2), by its
continued fraction (Abramowitz and Stegun 26.7.1 and 26.5.8; evaluated by the method of Lentz, Applied Optics 15, 1976).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

_EXPANDED_FROM: Final = 1e5
"""Degrees of freedom from which the normal quantile is corrected instead (Abramowitz and Stegun 26.7.5)."""
_SERIES_FROM: Final = 25.0
_TINY: Final = 1e-300
_PRECISION: Final = 1e-15
_MOST_TERMS: Final = 100_000
"""The fraction needs some sqrt(n) terms."""
_MOST_STEPS: Final = 200
"""Halving alone takes a bracket of doubles to nothing in fewer."""


def t_quantile(confidence: float, freedom: float) -> float:
    """The value that Student's t exceeds with probability 1 - `confidence`.

    Args:
        confidence: above 0 and below 1.
        freedom: degrees of freedom, above 0, whole or not; may be infinite.

    Returns:
        NaN where `freedom` is not above 0, to a relative error of about 1e-12 elsewhere.
    """
    if not freedom > 0:
        return math.nan
    if confidence < 0.5:  # noqa: PLR2004 - the median
        return -t_quantile(1 - confidence, freedom)
    start = NormalDist().inv_cdf(confidence)
    if freedom >= _EXPANDED_FROM or start == 0:
        first, second = start**3 + start, 5 * start**5 + 16 * start**3 + 3 * start
        return start + first / 4 / freedom + second / 96 / freedom / freedom
    tail = 1 - confidence
    low, high = start, 2 * start + 1  # the tails of t are the heavier ones
    while _tail(high, freedom) > tail:
        low, high = high, 2 * high
    value = low
    for _ in range(_MOST_STEPS):
        missed = _tail(value, freedom) - tail
        if missed > 0:
            low = value
        else:
            high = value
        # Newton's step, or half the bracket where that would leave it.
        following = value + missed / _density(value, freedom)
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - value) <= _PRECISION * value:
            return following
        value = following
    return value


def _tail(value: float, freedom: float) -> float:
    """P(T > `value`) for a `value` of at least 0."""
    square = value * value
    a, x, rest = freedom / 2, freedom / (freedom + square), square / (freedom + square)
    # x^a (1-x)^(1/2) / B(a, 1/2); x is near 1 with many degrees of freedom, and its logarithm is taken of what is left.
    front = math.exp(-a * math.log1p(square / freedom)) * math.sqrt(rest) * _ratio(a) / math.sqrt(math.pi)
    if x < (a + 1) / (a + 2.5):
        return front * _fraction(a, 0.5, x) / a / 2
    return (1 - front * _fraction(0.5, a, rest) / 0.5) / 2


def _density(value: float, freedom: float) -> float:
    a = freedom / 2
    return _ratio(a) / math.sqrt(math.pi * freedom) * math.exp(-(a + 0.5) * math.log1p(value * value / freedom))


def _ratio(a: float) -> float:
    """Gamma(a + 1/2) / Gamma(a). With a large `a` by its asymptotic series: the functions themselves are too large."""
    if a < _SERIES_FROM:
        return math.gamma(a + 0.5) / math.gamma(a)
    inverse = 1 / a
    square = inverse * inverse
    terms = -1 / 8 + square * (1 / 192 + square * (-1 / 640 + square * (17 / 14336 - square * 31 / 18432)))
    return math.sqrt(a) * math.exp(inverse * terms)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b), which converges fast below (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    found = d
    for m in range(1, _MOST_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            found *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return found


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
