"""A result file -> OpenMetrics text with every figure and label that a dashboard asks for.

`report.metrics` has the few figures that GitLab compares between branches, under labels that must not change. These are
the same figures with further labels, and the verdict, latencies, the server time, and what is known of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from pytest_gpucap.report import rows
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import known
from pytest_gpucap.report.headline import standing
from pytest_gpucap.report.metrics import FIGURES
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Outcome, judged_samples
from pytest_gpucap.results.points import point_rate
from pytest_gpucap.results.result import Result, ResultFile

LABELS: Final = ("test", "requirement", "kind", "gpu_class", "model", "source")
"""Of every figure. ``source`` is ``measured``, ``simulated``, or the tool that a point is imported from."""
LATENCY: Final = "gpucap_latency_seconds"
VERDICT: Final = "gpucap_verdict"
INFO: Final = "gpucap_server"
_METRICS: Final = ("ttft", "tpot", "itl", "e2e")

_MORE: Final[tuple[tuple[str, str, Callable[[Result], float | None]], ...]] = (
    *FIGURES,
    ("gpucap_point_rate_rps", "requests a second that an imported point completed; no capacity", point_rate),
    (
        "gpucap_gpus_budget",
        "GPUs that the requirement allows",
        lambda each: None if each.design_rate_rps is None else float(each.requirement.gpus),
    ),
    (
        "gpucap_fails",
        "1: the verdict, a regression or the test itself is bad, as the reports say",
        lambda each: float(standing(each).bad),
    ),
    (
        "gpucap_server_time_seconds",
        "server time that the measurement took",
        lambda each: None if each.imported is not None else each.total_spent_s,
    ),
)


class LatencyFigure(NamedTuple):
    """One percentile of one latency, in seconds, of the windows at the rate that is judged."""

    metric: str
    percent: int
    value_s: float


def latencies(result: Result) -> Iterator[LatencyFigure]:
    """The percentiles of a result: of each, that of the worst window, as the reports show it."""
    judged = judged_samples(result.samples)
    for metric in _METRICS:
        for percent in KEPT_PERCENTILES:
            if found := rows.latency(judged, metric, percent):
                yield LatencyFigure(metric, percent, max(found))


def exported(content: ResultFile) -> str:
    """Gauges with the labels `LABELS`; a figure that is not known is left out."""
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()
    gauges = {name: Gauge(name, text, LABELS, registry=registry) for name, text, _ in _MORE}
    latency = Gauge(
        LATENCY,
        "percentile of a latency at the rate that is judged",
        (*LABELS, "metric", "quantile"),
        registry=registry,
    )
    verdict = Gauge(
        VERDICT, "1 for the verdict that was reached, 0 for others", (*LABELS, "verdict"), registry=registry
    )
    info = Gauge(INFO, "what was measured; the value is 1", (*LABELS, "gpu", "server", "plugin"), registry=registry)
    when = Gauge("gpucap_measured_timestamp_seconds", "when the session began", LABELS, registry=registry)
    for result in map(cleaned, content.results):
        labels = _labels(result)
        for name, _, figure in _MORE:
            if (value := known(figure(result))) is not None:
                gauges[name].labels(*labels).set(value)
        for found in latencies(result):
            latency.labels(*labels, found.metric, f"{found.percent / 100:g}").set(found.value_s)
        for outcome in Outcome if result.outcome is not None else ():
            verdict.labels(*labels, outcome.value).set(float(outcome is result.outcome))
        environment = result.environment
        info.labels(*labels, environment.gpu or "", environment.server or "", environment.plugin or "").set(1)
        began = content.started if result.imported is None else result.imported.started or content.started
        when.labels(*labels).set(began.timestamp())
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


def _labels(result: Result) -> tuple[str, ...]:
    """Values of `LABELS`."""
    environment = result.environment
    return (
        result.test,
        result.name,
        result.kind.value,
        environment.gpu_class or "",
        environment.model or "",
        source_of(result),
    )


def source_of(result: Result) -> str:
    """``measured``, ``simulated``, or the tool that a point is imported from."""
    if result.imported is not None:
        return result.imported.tool
    return "simulated" if result.simulated else "measured"
