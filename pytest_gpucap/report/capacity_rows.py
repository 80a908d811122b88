"""What was found, as rows: what a replica, a fleet and several starts sustain, and what the hardware allows."""

from __future__ import annotations

from typing import Final

from pytest_gpucap.report.formatting import (
    Row,
    bound_text,
    gpus_needed,
    interval,
    known,
    limit_name,
    percent,
    percent_interval,
    rate,
    shown_bound,
)
from pytest_gpucap.results.measured import MeasuredStart
from pytest_gpucap.results.result import DeclaredBudget, Result


def sustained_rows(result: Result) -> list[Row]:
    """The sustainable rate or the bound that was shown, with slack and GPUs needed."""
    found, lines = result.sustainable_rate, []
    if shown_bound(result) is not None:
        lines.append(("sustainable", f"{bound_text(result)}; more was not measured"))
        needed = gpus_needed(result) if result.design_rate_rps else None
        return lines + ([("GPUs needed", f"at most {needed}")] if needed is not None else [])
    if found is not None:
        binding = f", bound by {limit_name(result.binding)}" if result.binding else ""
        lines.append(("sustainable", f"{interval(found)} req/s per replica{binding}"))
    if result.slack is not None:
        lines.append(("slack", percent_interval(result.slack)))
    if found is not None and result.gpus_interval is not None:
        fewest, most = result.gpus_interval
        lines.append(("GPUs needed", f"{result.gpus_required} ({fewest} to {most})"))
    return lines


def fleet(result: Result) -> list[Row]:
    """What the replicas of a fleet sustain together, how well they add up, and which of them was slow.

    Of one replica that stands for several: what is taken for granted of the others.
    """
    found = result.fleet
    if found is None:
        return _additivity(result.requirement) if result.design_rate_rps else []
    told = [f"{found.replicas} replicas, {found.router}"]
    if found.together is not None and shown_bound(result) is None:
        told.append(f"{interval(found.together)} req/s together")
    if found.alone is not None:
        told.append(f"one alone {interval(found.alone)} req/s")
    lines = [("fleet", ", ".join(told))]
    if found.efficiency is not None:
        count = found.replicas
        lines.append(
            ("efficiency", f"{percent_interval(found.efficiency, signed=False)} of {count} times one replica alone")
        )
    elif found.note:
        lines.append(("efficiency", f"not known: {found.note}"))
    lines += [("lost", text) for text in found.lost]
    lines += [("weakest", found.weakest_why)] if found.weakest_why else []
    if (outside := known(found.outside_share)) is not None and outside >= _OUTSIDE:
        way = "on the way" if found.router.startswith("client") else "in the router and on the way"
        lines.append(("", f"{percent(outside)} of a request's time passed outside of the replicas, {way}"))
    return lines


_OUTSIDE: Final = 0.05
"""Less of a request's time outside of the replicas is not worth a line."""


def _additivity(declared: DeclaredBudget) -> list[Row]:
    count = declared.gpus // declared.gpus_per_replica
    if count == 1 or declared.fleet > 1:
        return []
    if declared.efficiency != 1:
        return [("efficiency", f"{count} replicas are taken to keep {percent(declared.efficiency)} of one alone")]
    return [("efficiency", f"{count} replicas are taken to add up; gpucap(replicas=...) measures whether they do")]


def starts(result: Result) -> list[Row]:
    """What each start of the server sustains, and how far they spread; empty for one start."""
    if not result.starts:
        return []
    spread = "" if result.start_spread is None else f"; standard deviation {percent(result.start_spread)}"
    lines = [("starts", f"{', '.join(map(start_told, result.starts))}{spread}")]
    detailed = [number for number, start in enumerate(result.starts, 1) if start.detailed]
    return lines + [("", f"windows, telemetry and bottleneck are those of start {number}") for number in detailed]


def start_told(start: MeasuredStart) -> str:
    """``4.12 req/s PASS``, ``at least 6 req/s PASS``."""
    if start.at_least_rps is not None:
        found = f"at least {rate(start.at_least_rps)}"
    else:
        found = "no rate" if start.sustainable_rate is None else rate(start.sustainable_rate.value)
    return f"{found} {start.outcome}" if start.outcome is not None else found


def physical_limit(result: Result) -> list[Row]:
    """The upper limit from the hardware's bandwidth and compute."""
    if found := result.limit:
        return [("physical limit", found.text)]
    reason = result.no_limit
    return [("physical limit", f"not known: {reason}")] if reason and not result.simulated else []
