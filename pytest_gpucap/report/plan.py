"""A plan -> text for a terminal, and Markdown. The plan is the document that ``plan --format json`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from pytest_gpucap.report.clean import cleaned
from pytest_gpucap.report.escape import prose
from pytest_gpucap.report.formatting import gpus, limit_name, rate, seconds, significant

_WIDTH = 100
_SHOWN = 3
"""Estimates whose ratios are spelt out."""
_KNOWN = frozenset({"measured here", "baseline", "published"})
_LEGEND = "~ estimate, scaled by the physical limits, with its band; <= and >= physical limit only: no server beats it"


def text(plan: Mapping[str, Any]) -> str:
    """For a terminal, at most 100 columns but for the tables."""
    plan = cleaned(plan)
    parts = [_wrap(_head(plan)), _table(plan, "simple"), _wrap(_LEGEND)]
    parts += [
        "\n".join(_wrap(line, "- ") for line in lines) for lines in (_conclusions(plan), _evidence(plan)) if lines
    ]
    if plan["table"]:
        parts += _other_rates(plan, "simple")
    if plan["guide"]:
        parts += [part if "\n" in part else _wrap(part) for part in _guide(plan["guide"], "simple")]
    return "\n\n".join(parts)


def markdown(plan: Mapping[str, Any]) -> str:
    """For a pull request or a page."""
    plan = cleaned(plan)
    parts = [prose(_head(plan)), _table(plan, "github"), _LEGEND]
    parts += [
        "\n".join(f"- {prose(line)}" for line in lines) for lines in (_conclusions(plan), _evidence(plan)) if lines
    ]
    if plan["table"]:
        parts += _other_rates(plan, "github")
    if plan["guide"]:
        parts += _guide(plan["guide"], "github")
    return "\n\n".join(parts)


def _head(plan: Mapping[str, Any]) -> str:
    target, model, load = plan["target"], plan["model"], plan["workload"]
    size = ""
    if model["parameters"]:
        size = f" ({model['parameters'] / 1e9:.3g}B parameters, {model['precision']}, {model['weights_gb']:.3g} GB)"
    limits = "".join(f", {limit_name(name)} {seconds(value)}" for name, value in target["limits"].items())
    shared = f", {load['shared_prefix_tokens']} shared" if load["shared_prefix_tokens"] else ""
    return (
        f"{target['qps']:g} req/s x {target['headroom']:g} of {model['name']}{size}: "
        f"{load['input_tokens']:.0f} tokens in{shared}, {load['output_tokens']:.0f} out{limits}"
    )


def _table(plan: Mapping[str, Any], style: str) -> str:
    priced = f"{plan['currency']} an hour".strip() if plan["priced"] else None
    headers = ["GPU class", "req/s a replica", "from", "GPUs", "memory", *([priced] if priced else []), ""]
    rows = []
    for fleet in plan["fleets"]:
        cost = [_cost(fleet)] if priced else []
        rows.append(
            [
                fleet["gpu_class"],
                _rate(fleet),
                fleet["provenance"] or "",
                _count(fleet),
                _memory(fleet),
                *cost,
                _note(plan, fleet),
            ]
        )
    return str(tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True))


def _rate(fleet: Mapping[str, Any]) -> str:
    if fleet["rate_rps"] is None:
        return ""
    value = significant(fleet["rate_rps"])
    if fleet["provenance"] == "physical limit":
        return f"<= {value}"
    mark = "~ " if fleet["provenance"] == "estimate" else ""
    if fleet["low_rps"] is None:
        return f"{mark}{value}"
    return f"{mark}{value} ({significant(fleet['low_rps'])}-{significant(fleet['high_rps'])})"


def _count(fleet: Mapping[str, Any]) -> str:
    if fleet["gpus"] is None:
        return "-"
    spread = "" if fleet["fewest"] == fleet["most"] else f" ({fleet['fewest']}-{fleet['most']})"
    return f"{_mark(fleet)}{fleet['gpus']}{spread}"


def _memory(fleet: Mapping[str, Any]) -> str:
    return "" if fleet["memory_gb"] is None else f"{fleet['memory_gb']:.0f} GB"


def _cost(fleet: Mapping[str, Any]) -> str:
    return "" if fleet["cost_per_hour"] is None else f"{_mark(fleet)}{fleet['cost_per_hour']:.2f}"


def _mark(fleet: Mapping[str, Any]) -> str:
    return {"physical limit": ">= ", "estimate": "~ "}.get(fleet["provenance"], "")


def _note(plan: Mapping[str, Any], fleet: Mapping[str, Any]) -> str:
    if fleet["provenance"] is None:
        return "cannot serve it"
    if fleet["gpu_class"] == plan["cheapest"]:
        return "cheapest that fits"
    if not fleet["fits"]:
        return f"over the budget of {plan['target']['gpus']}"
    return ""


def _conclusions(plan: Mapping[str, Any]) -> list[str]:
    lines = []
    fleets = {fleet["gpu_class"]: fleet for fleet in plan["fleets"]}
    if plan["cheapest"]:
        best = fleets[plan["cheapest"]]
        lines.append(
            f"cheapest class that fits, of those measured: {gpus(best['gpus'])} of {best['gpu_class']} at "
            f"{best['cost_per_hour']:.2f} {plan['currency']} an hour"
        )
    elif plan["priced"]:
        lines.append("no class is known to fit: none with a price and within the budget has a measured rate")
    if plan["worth_measuring"]:
        lines.append(f"may be cheaper, to be measured: {', '.join(plan['worth_measuring'])}")
    budget = gpus(plan["target"]["gpus"] or 0)
    lines += [
        f"{budget} of {fleet['gpu_class']} carry {rate(fleet['largest_qps'])} with the headroom"
        for fleet in plan["fleets"]
        if fleet["largest_qps"] is not None and fleet["provenance"] in _KNOWN
    ]
    return lines


def _evidence(plan: Mapping[str, Any]) -> list[str]:
    lines = []
    for fleet in plan["fleets"]:
        if fleet["provenance"] in _KNOWN or fleet["provenance"] is None:
            source = f"{fleet['provenance']}: " if fleet["provenance"] else ""
            lines.append(f"{fleet['gpu_class']}: {source}{fleet['evidence']}")
    estimates = [fleet for fleet in plan["fleets"] if fleet["provenance"] == "estimate"]
    lines += [f"{fleet['gpu_class']}: {fleet['evidence']}" for fleet in estimates[:_SHOWN]]
    if len(estimates) > _SHOWN:
        lines.append("the other estimates in the same way; --format json has the ratios of each")
    for entry in plan["set_aside"]:
        lines.append(
            f"{entry['gpu_class']}: {rate(entry['rate_rps'])} by {entry['source']} is {entry['text']}; not used"
        )
    lines += [f"left out: {entry}" for entry in plan["left_out"]]
    return lines


def _other_rates(plan: Mapping[str, Any], style: str) -> list[str]:
    fleets = {fleet["gpu_class"]: fleet for fleet in plan["fleets"]}
    rows = [
        [name, *(_count({**cell, "provenance": fleets[name]["provenance"]}) for cell in cells)]
        for name, cells in plan["table"]["gpus"].items()
    ]
    headers = ["GPUs for", *(f"{qps:g} req/s" for qps in plan["table"]["qps"])]
    return [_plain(rows, headers, style)]


def _guide(guide: Mapping[str, Any], style: str) -> list[str]:
    low, high = guide["batching_gain"]
    awq = guide["awq_saving"]
    references = [
        [
            row["gpu_class"],
            row["build"],
            str(row["batch"]),
            seconds(row["latency_s"]),
            significant(row["rate_rps"]),
            seconds(row["floor_s"]),
            row["text"].partition(";")[0],
        ]
        for row in guide["references"]
    ]
    tiers = [
        [
            _range(row),
            row["recommends"],
            row["memory"],
            f"{row['cost_stars']} of 5",
            f"{row['gpu_class']} {row['build']}".strip(),
            "" if row["needed"] is None else str(row["needed"]),
            _span(row["needed_with_batching"]),
            "" if row["carries_qps"] is None else significant(row["carries_qps"]),
            {True: "agrees", False: "DISAGREES", None: "cannot be checked"}[row["agrees"]],
        ]
        for row in guide["tiers"]
    ]
    return [
        f"{guide['source']}: published throughput against the physical floor",
        _plain(references, ["GPU", "build", "batch", "published", "req/s", "floor", ""], style),
        (
            f"AWQ is said to take about {awq['said']:.0%} less memory: by these rows {awq['by_its_rows']:.0%}, of the "
            f"weights {awq['of_the_weights']:.0%}"
        ),
        (
            f"{guide['source']}: tiers against N = ceil(Q x R / T) at the tier's highest rate, T from its own table; "
            f"batching: with the {low:g} to {high:g} times that dynamic batching is said to give"
        ),
        _plain(
            tiers,
            ["target QPS", "recommends", "memory", "cost", "T of", "N", "N, batching", "carries QPS", ""],
            style,
        ),
    ]


def _span(counts: Sequence[int] | None) -> str:
    return "" if counts is None else "-".join(str(each) for each in sorted(set(counts)))


def _range(row: Mapping[str, Any]) -> str:
    if row["up_to_qps"] is None:
        return f"> {row['above_qps']:g}"
    return f"<= {row['up_to_qps']:g}" if not row["above_qps"] else f"{row['above_qps']:g}-{row['up_to_qps']:g}"


def _plain(rows: Sequence[Sequence[str]], headers: Sequence[str], style: str) -> str:
    return str(tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True))


def _wrap(line: str, lead: str = "") -> str:
    return textwrap.fill(
        line,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )
