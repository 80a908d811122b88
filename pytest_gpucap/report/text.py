"""Records -> plain text for a terminal: the summary table and the text of a failure; 80 columns, no colour."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from pytest_gpucap.report.wording import gpus, headline, limit_name, percent, rate, seconds, significant

_WIDTH = 80
_SHOWN_S = 0.05
"""Phases shorter than this are left out of the server time shown."""
_WORST_FIRST = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS", None)


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """One table, worst first, with what every verdict rests on."""
    ordered = sorted(records, key=lambda record: _WORST_FIRST.index(record["outcome"]))
    rows = [_row(record) for record in ordered]
    table = tabulate(
        rows, headers=["verdict", "requirement", "req/s a replica", "needed", "GPUs", "slack"], disable_numparse=True
    )
    failed = [record for record in ordered if record["outcome"] not in {"PASS", None}]
    broken = [f"{record['outcome']}: {headline(record)}" for record in failed]
    return "\n".join([table, *([""] if broken else []), *_bullets(broken), "", *_footnotes(ordered)])


def _row(record: Mapping[str, Any]) -> list[str]:
    found, declared = record["sustainable_rate"], record["requirement"]
    judged = record["kind"] == "check"
    needed = record.get("gpus_required") if judged else None
    return [
        record["outcome"] or record["kind"],
        _short(record["name"]),
        _interval(found),
        significant(record["design_rate_rps"]) if judged and record["design_rate_rps"] else "",
        f"{needed} of {declared['gpus']}" if needed is not None else "",
        percent(record["slack"]["value"], signed=True) if judged and record["slack"] else "",
    ]


def _short(name: str, width: int = 18) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    value, low, high = (significant(found[key]) for key in ("value", "low", "high"))
    return f"{value} ({low}-{high})"


def _footnotes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if any(record["sustainable_rate"] for record in records):
        notes.append("(95% intervals; needed: QPS x headroom / replicas in the budget)")
    places = {place for record in records if (place := _place(record["environment"]))}
    notes += [f"measured on {place}" for place in sorted(places)]
    spent = sum(sum(filter(None, record["spent_s"].values())) for record in records)
    notes.append(f"server time: {seconds(spent)}")
    if any(record["simulated"] for record in records):
        notes.append("SIMULATED: no GPU and no server was measured")
    return notes


def _place(environment: Mapping[str, Any]) -> str:
    parts = [environment.get(key) for key in ("gpu", "server", "model")]
    return ", ".join(str(part) for part in parts if part)


def failure(record: Mapping[str, Any]) -> str:
    """The text of a failed check: the arithmetic first, then what it rests on."""
    lines = [f"{record['outcome']}: {headline(record)}"]
    if record["simulated"]:
        lines.append("SIMULATED: no GPU and no server was measured")
    if record["reason"] not in lines[0]:
        lines += ["", *_wrapped(record["reason"])]
    lines += ["", *_facts(record)]
    if record["samples"]:
        lines += ["", _samples(record["samples"], record["slo"]["limits"])]
    if record["problems"]:
        lines += ["", "why the measurement cannot be trusted:", *_bullets(record["problems"])]
    if bottleneck := record["bottleneck"]:
        lines += ["", *_wrapped(f"bottleneck: {bottleneck['kind']}"), *_bullets(bottleneck["evidence"])]
        lines += _wrapped(f"try: {bottleneck['advice']}") if bottleneck.get("advice") else []
    lines += ["", *_environment(record)]
    return "\n".join(lines)


def _facts(record: Mapping[str, Any]) -> list[str]:
    declared, found = record["requirement"], record["sustainable_rate"]
    budget = f"{declared['qps']:g} req/s on {gpus(declared['gpus'])}, headroom {declared['headroom']:g}"
    rows = [
        ("requirement", f"{budget} -> {rate(record['design_rate_rps'])} a replica"),
        ("workload", _workload(record["workload"])),
        ("limits", _limits(record["slo"])),
    ]
    if found is not None:
        binding = f", bound by {limit_name(record['binding'])}" if record["binding"] else ""
        rows.append(("sustainable", f"{_interval(found)} req/s a replica{binding}"))
    if slack := record["slack"]:
        low, high = percent(slack["low"], signed=True), percent(slack["high"], signed=True)
        rows.append(("slack", f"{percent(slack['value'], signed=True)} ({low} to {high})"))
    if found is not None and record["gpus_interval"]:
        low, high = record["gpus_interval"]
        rows.append(("GPUs needed", f"{record['gpus_required']} ({low} to {high})"))
    spent = ", ".join(
        f"{phase} {seconds(value)}" for phase, value in record["spent_s"].items() if (value or 0) >= _SHOWN_S
    )
    rows.append(("server time", spent or "none"))
    return _aligned(rows)


def _workload(workload: Mapping[str, Any]) -> str:
    shared = f", {workload['shared_prefix_tokens']} shared" if workload["shared_prefix_tokens"] else ""
    return (
        f"{workload['input_tokens']} tokens in{shared}, {workload['output_tokens']} out, "
        f"{workload['arrivals']} arrivals, {workload['endpoint']}"
    )


def _limits(slo: Mapping[str, Any]) -> str:
    limits = [f"{limit_name(name)} {seconds(limit)}" for name, limit in slo["limits"].items()]
    return ", ".join([*limits, f"errors {percent(slo['max_error_rate'])}"])


def _samples(samples: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> str:
    """The windows, with the percentiles that limits are set on (p95 TTFT and E2E when there are none)."""
    metrics = list(dict.fromkeys(name.partition("_")[0] for name in limits)) or ["ttft", "e2e"]
    headers = ["window", "s", "in flight", "req/s", "tok/s", *(f"p95 {metric.upper()}" for metric in metrics), "errors"]
    rows = [
        [
            _short(sample["label"]),
            f"{sample['end_s'] - sample['start_s']:.0f}",
            "" if sample["in_flight_mean"] is None else significant(sample["in_flight_mean"]),
            "" if sample["completed_rps"] is None else significant(sample["completed_rps"]),
            "" if sample["output_tokens_per_s"] is None else significant(sample["output_tokens_per_s"]),
            *(seconds(sample["latencies"].get(metric, {}).get("p95_s")) for metric in metrics),
            str(sum(sample["errors"].values()) or ""),
        ]
        for sample in samples
    ]
    return str(tabulate(rows, headers=headers, disable_numparse=True, tablefmt="plain"))


def _environment(record: Mapping[str, Any]) -> list[str]:
    rows = [
        (str(key).replace("_", " "), value if isinstance(value, str) else f"{value}")
        for key, value in record["environment"].items()
        if value not in (None, "", []) and not isinstance(value, list | dict)
    ]
    return _aligned([*rows, ("seed", str(record["seed"]))])


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows) + 2
    lines: list[str] = []
    for name, value in rows:
        lines += textwrap.wrap(
            value,
            _WIDTH,
            initial_indent=name.ljust(width),
            subsequent_indent=" " * width,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [name]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _bullets(texts: Sequence[str]) -> list[str]:
    return [
        line
        for text in texts
        for line in textwrap.wrap(
            text, _WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]
