"""What one record says, as rows of plain text: every report that people read is composed of these.

A part of the record that is absent gives no row, so a report shows what was measured and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpucap.report.formatting import bound_by, gpus, limit_name, percent, rate, seconds, significant

Row = tuple[str, str]

WORST_FIRST = ("INVALID", "FAIL", "INCONCLUSIVE", "PASS", None)
_USUAL = [("ttft", "p95"), ("e2e", "p95")]
_PERCENTILES = (50, 90, 95, 99)
"""Those that a window keeps of every latency."""
_SHOWN_S = 0.05
"""Phases shorter than this are left out of the server time shown."""


def worst_first(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records in the order in which people want to read them; expected failures after the others."""
    return sorted(
        records,
        key=lambda record: (
            expected(record) or record["outcome"] in {"PASS", None},
            not regressed(record),
            WORST_FIRST.index(record["outcome"]),
        ),
    )


def rows(record: Mapping[str, Any]) -> list[Row]:
    """What was asked, what was found, and what it took."""
    judged = record.get("design_rate_rps") is not None
    return [
        *([("requirement", _requirement(record))] if judged else []),
        ("workload", workload(record["workload"])),
        ("limits", limits(record["slo"])),
        *_found(record),
        *_physical_limit(record),
        *_accuracy(record),
        *comparison(record),
        ("server time", _server_time(record)),
    ]


def reasons(record: Mapping[str, Any]) -> list[Row]:
    """Why a requirement fails, is undecided or regressed: what binds, where the bottleneck is, what to try."""
    if record["outcome"] in {"PASS", None} and not regressed(record):
        return []
    first, *others = causes(record) or [("", "")]
    lines = [first, *comparison(record), *others]
    return [(name, value) for name, value in lines if value]


def causes(record: Mapping[str, Any]) -> list[Row]:
    """The limit that binds, the bottleneck with its evidence, what to try, and why a measurement cannot be trusted."""
    bottleneck = record["bottleneck"] or {}
    lines = [("bound by", bound_by(record))]
    if bottleneck:
        lines.append(("bottleneck", f"{bottleneck['kind']}: {'; '.join(bottleneck['evidence'])}"))
    lines.append(("try", bottleneck.get("advice") or ""))
    lines += [("problem", problem) for problem in record["problems"] if problem != record.get("reason")]
    return [(name, value) for name, value in lines if value]


def expected(record: Mapping[str, Any]) -> bool:
    """The test was marked to fail, and did."""
    return bool(record.get("expected_failure"))


def regressed(record: Mapping[str, Any]) -> bool:
    """The baseline was better, beyond what chance and the allowance explain."""
    return (record.get("comparison") or {}).get("decision") == "REGRESSED"


def interval(found: Mapping[str, Any] | None) -> str:
    """``52.1 (50.9-53.4)``, empty where there is no estimate."""
    if found is None or found["value"] is None:
        return ""
    value, low, high = ("?" if found[key] is None else significant(found[key]) for key in ("value", "low", "high"))
    return f"{value} ({low}-{high})"


def workload(declared: Mapping[str, Any]) -> str:
    """Lengths, arrivals and endpoint in one line."""
    shared = f", {declared['shared_prefix_tokens']} shared" if declared["shared_prefix_tokens"] else ""
    preset = f"{declared['preset']}: " if declared.get("preset") else ""
    return (
        f"{preset}{declared['input_tokens']} tokens in{shared}, {declared['output_tokens']} out, "
        f"{declared['arrivals']} arrivals, {declared['endpoint']}"
    )


def limits(slo: Mapping[str, Any]) -> str:
    """``p95 E2E 20 s, p95 TTFT 500 ms, errors 1.0%``."""
    latencies = [f"{limit_name(name)} {seconds(limit)}" for name, limit in slo["limits"].items()]
    return ", ".join([*latencies, f"errors {percent(slo['max_error_rate'])}"])


_SLICE = re.compile(r" \(\d+/\d+\)$")


def grouped(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Label and samples of each measuring window: a window is recorded in thirds, ``hold 1 (2/3)``."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((sample["kind"], _SLICE.sub("", sample["label"])), []).append(sample)
    return [(label, group) for (_, label), group in groups.items()]


def mean(samples: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """A figure's mean over the time of the samples that have it."""
    known = [(sample[key], sample["end_s"] - sample["start_s"]) for sample in samples if sample[key] is not None]
    length_s = sum(length for _, length in known)
    return sum(figure * length for figure, length in known) / length_s if length_s > 0 else None


def windows(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the measuring windows, with the percentiles that limits are set on (TTFT and E2E if none).

    A latency is that of the window's worst third. Of a limit at a percentile that windows do not keep, the nearest one
    is shown, under its own name.
    """
    columns = list(dict.fromkeys(kept_percentile(name) for name in record["slo"]["limits"])) or _USUAL
    latencies = [f"{percentile} {metric.upper()}" for metric, percentile in columns]
    headers = ["window", "s", "in flight", "req/s", "tok/s", *latencies, "errors"]
    body = [
        [
            label,
            f"{sum(sample['end_s'] - sample['start_s'] for sample in group):.0f}",
            *(_figure(mean(group, key)) for key in ("in_flight_mean", "completed_rps", "output_tokens_per_s")),
            *(seconds(max(latency(group, *column), default=None)) for column in columns),
            str(sum(sum(sample["errors"].values()) for sample in group) or ""),
        ]
        for label, group in grouped(record["samples"])
    ]
    return headers, body


def latency(samples: Sequence[Mapping[str, Any]], metric: str, percentile: str) -> list[float]:
    """A percentile of the samples that have it, in seconds."""
    found = (sample["latencies"].get(metric, {}).get(f"{percentile}_s") for sample in samples)
    return [value for value in found if value is not None]


def kept_percentile(limit: str) -> tuple[str, str]:
    """Metric and the percentile that windows keep nearest to a limit's: ``e2e_p99_9`` -> ``("e2e", "p99")``."""
    metric, _, percent_text = limit.partition("_p")
    try:
        declared = float(percent_text.replace("_", "."))
    except ValueError:
        return metric, "p95"
    return metric, f"p{min(_PERCENTILES, key=lambda kept: abs(kept - declared))}"


def environment(record: Mapping[str, Any]) -> list[Row]:
    """What surrounded the measurement: GPU, driver, server, command, host; the seed last."""
    named = [
        (str(key).replace("_", " "), str(value))
        for key, value in record["environment"].items()
        if value not in (None, "", []) and not isinstance(value, list | dict)
    ]
    return [*named, ("seed", str(record["seed"]))]


def place(record: Mapping[str, Any]) -> str:
    """GPU, server and model in one line."""
    parts = (record["environment"].get(key) for key in ("gpu", "server", "model"))
    return ", ".join(str(part) for part in parts if part)


def _requirement(record: Mapping[str, Any]) -> str:
    declared = record["requirement"]
    budget = f"{declared['qps']:g} req/s on {gpus(declared['gpus'])}, headroom {declared['headroom']:g}"
    return f"{budget} -> {rate(record['design_rate_rps'])} a replica"


def _found(record: Mapping[str, Any]) -> list[Row]:
    found, lines = record["sustainable_rate"], []
    if found is not None:
        binding = f", bound by {limit_name(record['binding'])}" if record["binding"] else ""
        lines.append(("sustainable", f"{interval(found)} req/s a replica{binding}"))
    if slack := record.get("slack"):
        value, low, high = (percent(slack[key], signed=True) for key in ("value", "low", "high"))
        lines.append(("slack", f"{value} ({low} to {high})"))
    if found is not None and record.get("gpus_interval"):
        fewest, most = record["gpus_interval"]
        lines.append(("GPUs needed", f"{record['gpus_required']} ({fewest} to {most})"))
    return lines


def _physical_limit(record: Mapping[str, Any]) -> list[Row]:
    """What the hardware's bandwidth and compute allow at most."""
    if found := record.get("limit"):
        return [("physical limit", found["text"])]
    reason = record.get("no_limit")
    return [("physical limit", f"not known: {reason}")] if reason and not record["simulated"] else []


def _accuracy(record: Mapping[str, Any]) -> list[Row]:
    """The share of answers that were right, and what throughput that leaves."""
    found = record.get("accuracy")
    if not found:
        return []
    value, low, high = (percent(found[key]) for key in ("value", "low", "high"))
    least = f", at least {percent(found['min_accuracy'])} required" if found.get("min_accuracy") is not None else ""
    notes = {
        "samples": f"in {len(found.get('samples') or ())} samples" if found.get("samples") else "",
        "cut": "cut off at the most tokens an answer may take",
        "skipped": "without reasoning",
        "ungraded": "not readable here (a maths parser comes with the accuracy extra)",
        "failed": "requests came to no answer",
    }
    told = [text if key == "samples" else f"{found[key]} {text}" for key, text in notes.items() if found.get(key)]
    lines = [("accuracy", f"{value} ({low} to {high}), {found['right']} of {found['answers']} answers right{least}")]
    lines += [("", ", ".join(told))] if told else []
    if good := found.get("good_rps"):
        lines.append(("good", f"{interval(good)} right answers a second a replica"))
    return lines


def comparison(record: Mapping[str, Any]) -> list[Row]:
    """Against the baseline: the decision, the change with its interval, and why."""
    found = record.get("comparison")
    if not found:
        return []
    lines = [("baseline", f"{found['baseline']['name']}: {found['decision']}{change(found)}")]
    if found.get("reason"):
        lines.append(("", found["reason"]))
    if found.get("differs"):
        lines.append(("differs", "; ".join(found["differs"])))
    if found.get("changed"):
        lines.append(("changed", "; ".join(found["changed"])))
    return lines


def change(comparison: Mapping[str, Any]) -> str:
    """``, -12.1% (-14% to -10%)``: head over base minus one; empty where the two cannot be compared."""
    ratio = comparison.get("ratio")
    if not ratio or ratio["value"] is None:
        return ""
    value, low, high = (
        percent(None if ratio[key] is None else ratio[key] - 1, signed=True) for key in ("value", "low", "high")
    )
    return f", {value} ({low} to {high})"


def _server_time(record: Mapping[str, Any]) -> str:
    shown = [f"{phase} {seconds(spent)}" for phase, spent in record["spent_s"].items() if (spent or 0) >= _SHOWN_S]
    return ", ".join(shown) or "none"


def _figure(value: float | None) -> str:
    return "" if value is None else significant(value)
