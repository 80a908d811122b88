"""The sentences that every report shares: the arithmetic of a verdict, a duration, a rate."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

NOT_MEASURED = "no GPU and no server was measured"
"""What every report says of simulated results."""
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


def bound_by(record: Mapping[str, Any]) -> str:
    """``p95 E2E, limit 20 s``; empty where nothing is known to bind, or the answers decided."""
    binding = record["binding"]
    if not binding or (record.get("accuracy") or {}).get("decided"):
        return ""
    limit = record["slo"]["limits"].get(binding)
    if binding == "errors":
        return f"errors, at most {percent(record['slo']['max_error_rate'])} allowed"
    if binding == "backlog":
        return "a backlog that grows"
    return f"{limit_name(binding)}{'' if limit is None else f', limit {seconds(limit)}'}"


def gpus(count: int) -> str:
    """``1 GPU``, ``3 GPUs``."""
    return f"{count} GPU{'' if count == 1 else 's'}"


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


_UNCOUNTED: Final = {
    "PASS": "keeps its budget",
    "FAIL": "does not keep its budget",
    "INCONCLUSIVE": "is undecided",
}
"""What is said where no GPUs can be counted."""


def headline(record: Mapping[str, Any]) -> str:
    """The verdict with its arithmetic, in one line.

    ``chat needs 3 GPUs, budget 2: 100 req/s x 1.3 / 52.1 req/s = 2.50``
    """
    return ": ".join(headline_parts(record))


def headline_parts(record: Mapping[str, Any]) -> tuple[str, str]:
    """The claim, and the arithmetic or the reason it rests on."""
    name, outcome = record["name"], record["outcome"]
    if outcome is None:
        return name, _figure(record)
    if outcome == "INVALID":
        return f"{name} was not measured", record["reason"]
    budget = record["requirement"]["gpus"]
    if (record.get("accuracy") or {}).get("decided"):
        # Of the answers: "answers right 61% (52-70%), needs 90%", and why they do not decide where they do not.
        claim, _, more = record["reason"].partition("; ")
        return f"{name} {claim}", more or f"fast enough, {arithmetic(record)}"
    if record["sustainable_rate"] is None or record["gpus_required"] is None:
        return f"{name} {_UNCOUNTED[outcome]}", record["reason"]
    if outcome == "INCONCLUSIVE":
        low, high = record["gpus_interval"]
        needs = f"{gpus(high)}" if low == high else f"{low} to {gpus(high)}"
        return f"{name} may need {needs}, budget {budget}", arithmetic(record)
    return f"{name} needs {gpus(record['gpus_required'])}, budget {budget}", arithmetic(record)


def _figure(record: Mapping[str, Any]) -> str:
    """What was measured without a verdict."""
    found, samples = record["sustainable_rate"], record["samples"]
    if found is not None:
        return f"one replica sustains {rate(found['value'])}"
    return f"{rate(samples[0]['completed_rps'])} in one window" if len(samples) == 1 else "no sustainable rate"


def arithmetic(record: Mapping[str, Any]) -> str:
    """``100 req/s x 1.3 / 52.1 req/s = 2.50``; the record must have a sustainable rate."""
    declared, found = record["requirement"], record["sustainable_rate"]
    per_replica = declared["gpus_per_replica"]
    # From the figures as printed, in exact arithmetic, so that a reader who checks the line gets the same.
    replicas = _exact(declared["qps"]) * _exact(declared["headroom"]) / _exact(significant(found["value"]))
    return (
        f"{declared['qps']:g} req/s x {declared['headroom']:g} / {rate(found['value'])} = {float(replicas):.2f}"
        f"{'' if per_replica == 1 else f' replicas of {per_replica} GPUs'}"
    )


def _exact(number: float | str) -> Fraction:
    return Fraction(str(number))
