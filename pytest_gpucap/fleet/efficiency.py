"""Scaling efficiency: what replicas that serve together keep of what each sustains alone."""

from __future__ import annotations

import math

from pytest_gpucap.results.measured import Interval


def scaling_efficiency(each: Interval, alone: Interval) -> Interval:
    """``each / alone`` with the interval of independent relative errors (log-normal, as the rates' own intervals).

    Args:
        each: requests a second of one replica in the fleet: the fleet's rate over its replicas.
        alone: requests a second of one replica while the others idle.
    """
    value = each.value / alone.value
    down = math.hypot(_log(each.value, each.low), _log(alone.high, alone.value))
    up = math.hypot(_log(each.high, each.value), _log(alone.value, alone.low))
    return Interval(value, value * math.exp(-down), value * math.exp(up), each.confidence)


def _log(over: float, under: float) -> float:
    return math.log(over / under) if under > 0 and math.isfinite(over) else math.inf
