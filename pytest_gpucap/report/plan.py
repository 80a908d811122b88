"""A plan as text for a terminal and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from tabulate import tabulate

from pytest_gpucap.foreign_text import visible
from pytest_gpucap.planning.evidence import Provenance
from pytest_gpucap.planning.fleet import Fleet
from pytest_gpucap.planning.guide import Guide, GuideReference, TierCheck
from pytest_gpucap.planning.plan import Plan, PlanTable
from pytest_gpucap.report.escape import prose
from pytest_gpucap.report.formatting import gpus, limit_texts, rate, seconds, significant
from pytest_gpucap.sizing import GpuRange

_WIDTH: Final = 100
_TERMINAL, _GITHUB = "simple", "github"
"""Table styles of `tabulate`."""
_SHOWN: Final = 3
"""Estimates whose ratios are shown."""
_LEGEND: Final = (
    "~ marks an estimate: it is scaled by the physical limits and has a band. <= and >= mark a physical limit: no "
    "server is faster."
)


def plan_text(plan: Plan) -> str:
    """For a terminal. Lines have at most 100 columns; tables may be wider."""
    parts = [_wrap(_head(plan)), _fleets(plan, _TERMINAL), *([_wrap(_LEGEND)] if plan.model else [])]
    parts += [
        "\n".join(_wrap(line, "- ") for line in lines) for lines in (_conclusions(plan), _evidence(plan)) if lines
    ]
    if plan.table is not None:
        parts.append(_other_rates(plan.table, plan.fleets, _TERMINAL))
    if plan.guide is not None:
        parts += [part if "\n" in part else _wrap(part) for part in _guide(plan.guide, _TERMINAL)]
    return "\n\n".join(parts)


def plan_markdown(plan: Plan) -> str:
    """For a pull request or a page."""
    parts = [prose(_head(plan)), _fleets(plan, _GITHUB), *([_LEGEND] if plan.model else [])]
    parts += [
        "\n".join(f"- {prose(line)}" for line in lines) for lines in (_conclusions(plan), _evidence(plan)) if lines
    ]
    if plan.table is not None:
        parts.append(_other_rates(plan.table, plan.fleets, _GITHUB))
    if plan.guide is not None:
        parts += _guide(plan.guide, _GITHUB)
    return "\n\n".join(parts)


def _head(plan: Plan) -> str:
    target, model, load = plan.target, plan.model, plan.workload
    if model is None or load is None:
        return f"{target.qps:g} req/s x {target.headroom:g}, from the rate of one replica alone"
    size = ""
    if model.parameters and model.weights_gb is not None:
        size = f" ({model.parameters / 1e9:.3g}B parameters, {model.precision}, {model.weights_gb:.3g} GB)"
    limits = "".join(f", {each}" for each in limit_texts(target.limits, target.goodput, target.thresholds))
    shared = f", {load.shared_prefix_tokens} shared" if load.shared_prefix_tokens else ""
    return (
        f"{target.qps:g} req/s x {target.headroom:g} of {model.name}{size}: "
        f"{load.input_tokens:.0f} tokens in{shared}, {load.output_tokens:.0f} out{limits}"
    )


def _fleets(plan: Plan, style: str) -> str:
    """The main table: one row per GPU class."""
    cost = [f"{plan.currency} per hour".strip()] if plan.priced else []
    headers = ["GPU class", "req/s per replica", "from", "GPUs", "memory", *cost, ""]
    rows = [
        [
            fleet.gpu_class,
            _rate(fleet),
            fleet.provenance or "",
            "-" if fleet.gpus is None else _count(fleet, fleet.provenance),
            "" if fleet.memory_gb is None else f"{fleet.memory_gb:.0f} GB",
            *([_cost(fleet)] if plan.priced else []),
            _note(plan, fleet),
        ]
        for fleet in plan.fleets
    ]
    # What is said of no class is no column: of a rate alone no memory is known.
    told = [place for place, _ in enumerate(headers) if any(row[place] for row in rows)]
    return _table([[row[place] for place in told] for row in rows], [headers[place] for place in told], style)


def _rate(fleet: Fleet) -> str:
    if fleet.rate_rps is None:
        return ""
    value = significant(fleet.rate_rps)
    if fleet.provenance is Provenance.LIMIT:
        return f"<= {value}"
    if fleet.low_rps is not None and fleet.high_rps is not None:
        value = f"{value} ({significant(fleet.low_rps)}-{significant(fleet.high_rps)})"
    return f"{_mark(fleet.provenance)}{value}"


def _count(needed: Fleet | GpuRange, provenance: Provenance | None) -> str:
    spread = "" if needed.fewest == needed.most else f" ({needed.fewest}-{needed.most})"
    return f"{_mark(provenance)}{needed.gpus}{spread}"


def _cost(fleet: Fleet) -> str:
    return "" if fleet.cost_per_hour is None else f"{_mark(fleet.provenance)}{fleet.cost_per_hour:.2f}"


def _mark(provenance: Provenance | None) -> str:
    """The mark before a number of GPUs or a cost that was not measured."""
    match provenance:
        case Provenance.LIMIT:
            return ">= "
        case Provenance.ESTIMATE:
            return "~ "
        case _:
            return ""


def _note(plan: Plan, fleet: Fleet) -> str:
    if fleet.provenance is None:
        return "cannot serve it"
    if fleet.gpu_class == plan.cheapest:
        return "cheapest that fits"
    return "" if fleet.fits else f"over the budget of {plan.target.gpus}"


def _conclusions(plan: Plan) -> list[str]:
    lines = []
    best = next((fleet for fleet in plan.fleets if fleet.gpu_class == plan.cheapest), None)
    if best is not None:
        lines.append(
            f"cheapest class that fits, of those measured: {gpus(best.gpus or 0)} of {best.gpu_class} at "
            f"{best.cost_per_hour:.2f} {plan.currency} per hour"
        )
    elif plan.priced and plan.model is not None:
        lines.append("no class is known to fit: none with a price and within the budget has a measured rate")
    if plan.worth_measuring:
        lines.append(f"may be cheaper, worth measuring: {', '.join(plan.worth_measuring)}")
    budget = gpus(plan.target.gpus or 0)
    lines += [
        f"{budget} of {fleet.gpu_class} carry {rate(fleet.largest_qps)} with the headroom"
        for fleet in plan.fleets
        if fleet.largest_qps is not None and (fleet.known or fleet.provenance is Provenance.GIVEN)
    ]
    return lines


def _evidence(plan: Plan) -> list[str]:
    lines = []
    for fleet in plan.fleets:
        if fleet.known or fleet.provenance in {None, Provenance.GIVEN, Provenance.IMPORTED}:
            source = f"{fleet.provenance}: " if fleet.provenance else ""
            lines.append(f"{fleet.gpu_class}: {source}{fleet.evidence}")
    estimates = [fleet for fleet in plan.fleets if fleet.provenance is Provenance.ESTIMATE]
    lines += [f"{fleet.gpu_class}: {fleet.evidence}" for fleet in estimates[:_SHOWN]]
    if len(estimates) > _SHOWN:
        lines.append("the other estimates use the same method; --format json has the ratios of each")
    lines += [
        f"{entry.gpu_class}: {rate(entry.rate_rps)} by {entry.source} is {entry.text}; not used"
        for entry in plan.set_aside
    ]
    lines += [f"assumed: {entry}" for entry in plan.assumptions]
    lines += [f"left out: {entry}" for entry in plan.left_out]
    return lines


def _other_rates(table: PlanTable, fleets: Iterable[Fleet], style: str) -> str:
    provenance = {fleet.gpu_class: fleet.provenance for fleet in fleets}
    rows = [[name, *(_count(needed, provenance[name]) for needed in row)] for name, row in table.gpus.items()]
    return _table(rows, ["GPUs for", *(f"{qps:g} req/s" for qps in table.qps)], style)


def _guide(guide: Guide, style: str) -> list[str]:
    low, high = guide.batching_gain
    awq = guide.awq_saving
    return [
        f"{guide.source}: its published rates against the physical limit",
        _table(
            [_reference(row) for row in guide.references],
            ["GPU", "build", "batch", "published", "req/s", "floor", ""],
            style,
        ),
        (
            f"The guide says that AWQ takes about {awq.said:.0%} less memory. Its own rows say {awq.by_its_rows:.0%}; "
            f"the weights alone shrink by {awq.of_the_weights:.0%}."
        ),
        (
            f"{guide.source}: its tiers against its formula N = ceil(Q x R / T), with Q the highest rate of the tier "
            f"and T from its own table. The column with batching assumes that dynamic batching gives {low:g} to "
            f"{high:g} times the rate, as the guide says."
        ),
        _table(
            [_tier(row) for row in guide.tiers],
            ["target QPS", "recommends", "memory", "cost", "T of", "N", "N, batching", "carries QPS", ""],
            style,
        ),
    ]


def _reference(row: GuideReference) -> list[str]:
    return [
        row.gpu_class,
        row.build,
        str(row.batch),
        seconds(row.latency_s),
        significant(row.rate_rps),
        seconds(row.floor_s),
        row.finding,
    ]


def _tier(row: TierCheck) -> list[str]:
    return [
        _range(row),
        row.recommends,
        row.memory,
        f"{row.cost_stars} of 5",
        f"{row.gpu_class} {row.build}".strip(),
        "" if row.needed is None else str(row.needed),
        "-".join(str(each) for each in sorted(set(row.needed_with_batching or ()))),
        "" if row.carries_qps is None else significant(row.carries_qps),
        {True: "agrees", False: "DISAGREES", None: "cannot be checked"}[row.agrees],
    ]


def _range(row: TierCheck) -> str:
    if row.up_to_qps is None:
        return f"> {row.above_qps:g}"
    return f"{row.above_qps:g}-{row.up_to_qps:g}" if row.above_qps else f"<= {row.up_to_qps:g}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], style: str) -> str:
    shown = [[visible(cell) for cell in row] for row in rows]
    return str(tabulate(shown, headers=[visible(each) for each in headers], tablefmt=style, disable_numparse=True))


def _wrap(line: str, lead: str = "") -> str:
    return textwrap.fill(
        visible(line),
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
