"""A result file -> every figure and label that a dashboard asks for, and OpenMetrics text of them.

`report.metrics` has the few figures that GitLab compares between branches, under labels that must not change. These are
the same figures with further labels, and the verdict, latencies, the server time, and what is known of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_gpucap.report import windows
from pytest_gpucap.report.escape import cleaned
from pytest_gpucap.report.formatting import known
from pytest_gpucap.report.headline import standing
from pytest_gpucap.report.metrics import FIGURES
from pytest_gpucap.results.measured import KEPT_PERCENTILES, Outcome, judged_samples
from pytest_gpucap.results.points import point_rate
from pytest_gpucap.results.result import Result, ResultFile

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LABELS: Final = ("test", "requirement", "kind", "gpu_class", "model", "source")
"""Of every figure. ``source`` is ``measured``, ``simulated``, or the tool that a point is imported from."""
LATENCY: Final = "gpucap_latency_seconds"
VERDICT: Final = "gpucap_verdict"
INFO: Final = "gpucap_server"
MEASURED: Final = "gpucap_measured_timestamp_seconds"
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
            if found := windows.latency(judged, metric, percent):
                yield LatencyFigure(metric, percent, max(found))


class Exported(NamedTuple):
    """One figure of one result.

    Attributes:
        metric: its name, a key of `METRICS`.
        labels: by name, those of `LABELS` first.
        value: in the metric's unit.
        measured: when the session began that measured it.
    """

    metric: str
    labels: dict[str, str]
    value: float
    measured: datetime


class Metric(NamedTuple):
    """What a metric is.

    Attributes:
        text: one line of help.
        unit: by the Unified Code for Units of Measure (UCUM); braces hold what is counted.
        labels: beside `LABELS`.
    """

    text: str
    unit: str
    labels: tuple[str, ...] = ()


def _unit(name: str) -> str:
    # A unit in braces adds nothing to a name, so a store that makes Prometheus' names of these leaves them as they are.
    units = {"_rps": "{request/s}", "_seconds": "s", "_ratio": "1", "_required": "{gpu}", "_budget": "{gpu}"}
    return next((unit for end, unit in units.items() if name.endswith(end)), "")


METRICS: Final[Mapping[str, Metric]] = {
    **{name: Metric(text, _unit(name)) for name, text, _ in _MORE},
    LATENCY: Metric("percentile of a latency at the rate that is judged", "s", ("metric", "quantile")),
    VERDICT: Metric("1 for the verdict that was reached, 0 for others", "", ("verdict",)),
    INFO: Metric("what was measured; the value is 1", "", ("gpu", "server", "plugin")),
    MEASURED: Metric("when the session began", "s"),
}
"""Every metric by its name."""


def figures(content: ResultFile) -> Iterator[Exported]:
    """Every figure of every result; a figure that is not known is left out."""
    for result in map(cleaned, content.results):
        began = content.started if result.imported is None else result.imported.started or content.started
        labels = dict(zip(LABELS, _labels(result), strict=True))
        for name, value, more in _figures(result):
            yield Exported(name, labels | dict(zip(METRICS[name].labels, more, strict=True)), float(value), began)
        yield Exported(MEASURED, labels, began.timestamp(), began)


def _figures(result: Result) -> Iterator[tuple[str, float, tuple[str, ...]]]:
    """Name, value, and the labels beside `LABELS`."""
    for name, _, figure in _MORE:
        if (value := known(figure(result))) is not None:
            yield name, value, ()
    for found in latencies(result):
        yield LATENCY, found.value_s, (found.metric, f"{found.percent / 100:g}")
    for outcome in Outcome if result.outcome is not None else ():
        yield VERDICT, float(outcome is result.outcome), (outcome.value,)
    environment = result.environment
    yield INFO, 1.0, (environment.gpu or "", environment.server or "", environment.plugin or "")


def registry_of(content: ResultFile) -> CollectorRegistry:
    """Gauges with the labels `LABELS`; of figures with the same labels, the last counts."""
    from prometheus_client import CollectorRegistry, Gauge

    registry = CollectorRegistry()
    gauges = {
        name: Gauge(name, metric.text, (*LABELS, *metric.labels), registry=registry) for name, metric in METRICS.items()
    }
    for found in figures(content):
        gauges[found.metric].labels(**found.labels).set(found.value)
    return registry


def exported(content: ResultFile) -> str:
    """The gauges of `registry_of` as OpenMetrics text."""
    from prometheus_client.openmetrics.exposition import generate_latest

    text: bytes = generate_latest(registry_of(content))  # type: ignore[no-untyped-call]
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
