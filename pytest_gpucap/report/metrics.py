"""A result file -> OpenMetrics text: GitLab's metrics report compares it between branches, and Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import gpus_needed, known, reported_rate, reported_slack
from pytest_gpucap.report.goodput import goodput_share
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import Result, ResultFile

FIGURES: Final[tuple[tuple[str, str, Callable[[Result], float | None]], ...]] = (
    (
        "gpucap_sustainable_rate_rps",
        "requests a second that one replica sustains",
        lambda each: reported_rate(each).value,
    ),
    ("gpucap_sustainable_rate_low_rps", "lower end of its interval", lambda each: reported_rate(each).low),
    ("gpucap_sustainable_rate_high_rps", "upper end of its interval", lambda each: reported_rate(each).high),
    ("gpucap_design_rate_rps", "requests a second that one replica must sustain", lambda each: each.design_rate_rps),
    ("gpucap_gpus_required", "GPUs that the requirement needs", gpus_needed),
    ("gpucap_slack_ratio", "sustainable rate over design rate, minus one", reported_slack),
    (
        "gpucap_goodput_ratio",
        "share of the requests at the design rate that kept the latency limits together",
        goodput_share,
    ),
    (
        "gpucap_budget_holds",
        "1: the verdict is PASS",
        lambda each: None if each.outcome is None else float(each.outcome is Outcome.PASS),
    ),
)
"""Name, help and value of every figure that a result has once."""


def openmetrics(content: ResultFile) -> str:
    """Gauges labelled with the requirement's name and the GPU class; a figure that is not known is left out."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()
    for metric, help_text, figure in FIGURES:
        gauge = Gauge(metric, help_text, ["requirement", "gpu_class", "simulated"], registry=registry)
        for result in map(cleaned, content.results):
            value = known(figure(result))
            if value is not None:
                gauge.labels(
                    requirement=result.name,
                    gpu_class=result.environment.gpu_class or "",
                    simulated=str(result.simulated).lower(),
                ).set(value)
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()
