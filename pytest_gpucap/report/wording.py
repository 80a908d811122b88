"""The sentences that every report shares: the arithmetic of a verdict, a duration, a rate."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

_MINUTES_FROM_S = 600


def rate(rps: float | None) -> str:
    """A rate with three significant figures: ``52.1 req/s``."""
    return "?" if rps is None else f"{significant(rps)} req/s"


def significant(value: float, figures: int = 3) -> str:
    """A number with so many significant figures and no exponent: 52.1, 0.88, 1230."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{figures}g}")
    if abs(rounded) >= 10 ** (figures - 1):
        return f"{rounded:.0f}"
    return f"{rounded:.{figures + 3}f}".rstrip("0").rstrip(".")


def seconds(value: float | None) -> str:
    """A duration as people say it: ``412 ms``, ``3.21 s``, ``95 s``, ``12 min``."""
    if value is None:
        return "?"
    if value < 1:
        return f"{significant(value * 1000)} ms"
    if value < _MINUTES_FROM_S:
        return f"{significant(value)} s"
    return f"{value / 60:.0f} min"


def percent(value: float | None, *, signed: bool = False) -> str:
    """A share as per cent: ``+4.2%``."""
    return "?" if value is None else f"{value * 100:{'+' if signed else ''}.1f}%"


def limit_name(keyword: str) -> str:
    """``ttft_p95`` as ``p95 TTFT``."""
    metric, _, quantile = keyword.partition("_p")
    return f"p{quantile.replace('_', '.')} {metric.upper()}" if quantile else keyword


def gpus(count: int) -> str:
    """``1 GPU``, ``3 GPUs``."""
    return f"{count} GPU{'' if count == 1 else 's'}"


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def headline(record: Mapping[str, Any]) -> str:
    """The verdict with its arithmetic, in one line.

    ``chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50``
    """
    name, outcome = record["name"], record["outcome"]
    if outcome == "INVALID":
        return f"{name} was not measured: {record['reason']}"
    declared = record["requirement"]
    budget, found = declared["gpus"], record["sustainable_rate"]
    if found is None or record["gpus_required"] is None:
        return f"{name} is {outcome}: {record['reason']}"
    per_replica = declared["gpus_per_replica"]
    # From the figures as printed, in exact arithmetic, so that a reader who checks the line gets the same.
    replicas = _exact(declared["qps"]) * _exact(declared["headroom"]) / _exact(significant(found["value"]))
    arithmetic = (
        f"{declared['qps']:g} req/s x {declared['headroom']:g} / {rate(found['value'])} = {float(replicas):.2f}"
        f"{'' if per_replica == 1 else f' replicas of {per_replica} GPUs'}"
    )
    if outcome == "INCONCLUSIVE":
        low, high = record["gpus_interval"]
        needs = f"{gpus(high)}" if low == high else f"{low} to {gpus(high)}"
        return f"{name} may need {needs}, budget {budget}: {arithmetic}"
    return f"{name} needs {gpus(record['gpus_required'])}, budget {budget}: {arithmetic}"


def _exact(number: float | str) -> Fraction:
    return Fraction(str(number))
