"""A document -> OpenMetrics text, which GitLab's metrics report compares from branch to branch and Prometheus reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.report.clean import cleaned

_FIGURES: Final = (
    ("gpucap_sustainable_rate_rps", "requests a second that one replica sustains", ("sustainable_rate", "value")),
    ("gpucap_sustainable_rate_low_rps", "lower end of its interval", ("sustainable_rate", "low")),
    ("gpucap_sustainable_rate_high_rps", "upper end of its interval", ("sustainable_rate", "high")),
    ("gpucap_design_rate_rps", "requests a second that one replica must sustain", ("design_rate_rps",)),
    ("gpucap_gpus_required", "GPUs that the requirement needs", ("gpus_required",)),
    ("gpucap_slack_ratio", "sustainable rate over design rate, minus one", ("slack", "value")),
    ("gpucap_budget_holds", "1: the verdict is PASS", ("holds",)),
)


def render(document: Mapping[str, Any]) -> str:
    """Gauges labelled with the requirement's name and the GPU class; a figure that is not known is left out."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()
    for metric, help_text, path in _FIGURES:
        gauge = Gauge(metric, help_text, ["requirement", "gpu_class", "simulated"], registry=registry)
        for record in map(cleaned, document["results"]):
            value = _figure(record, path)
            if value is not None:
                gauge.labels(
                    requirement=record["name"],
                    gpu_class=str(record["environment"].get("gpu_class") or ""),
                    simulated=str(record["simulated"]).lower(),
                ).set(value)
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


def _figure(record: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    if path == ("holds",):
        return None if record["outcome"] is None else float(record["outcome"] == "PASS")
    found: Any = record
    for key in path:
        found = found.get(key) if found else None
    return None if found is None else float(found)
