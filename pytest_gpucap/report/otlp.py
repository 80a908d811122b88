"""Result files -> metrics of the OpenTelemetry protocol (OTLP), under the names and labels of the OpenMetrics export.

The semantic conventions for generative AI have histograms of single requests under ``gen_ai.server``. What stands here
are percentiles and rates of whole measurements, so it has names of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from pytest_gpucap import __version__
from pytest_gpucap.report.exported import METRICS, Exported, figures
from pytest_gpucap.results.result import ResultFile

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData

SERVICE: Final = "pytest-gpucap"
_NANOSECONDS: Final = 10**9


def otlp_metrics(contents: Iterable[ResultFile]) -> MetricsData:
    """A gauge per metric, with a point for every figure of every file, at the time when its session began.

    Raises:
        ModuleNotFoundError: without the extra ``otlp``.
    """
    from opentelemetry.sdk.metrics.export import (
        Gauge,
        Metric,
        MetricsData,
        NumberDataPoint,
        ResourceMetrics,
        ScopeMetrics,
    )
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    points: dict[str, dict[object, NumberDataPoint]] = {}
    for found in (figure for content in contents for figure in figures(content)):
        # Of a test that ran twice in a session, the last counts.
        points.setdefault(found.metric, {})[found.measured, *found.labels.items()] = NumberDataPoint(
            attributes=found.labels,
            start_time_unix_nano=0,  # a gauge has no beginning
            time_unix_nano=_unix_ns(found),
            value=found.value,
        )
    metrics = [
        Metric(name, about.text, about.unit, Gauge(list(points[name].values())))
        for name, about in METRICS.items()
        if name in points
    ]
    scope = ScopeMetrics(InstrumentationScope("pytest_gpucap", __version__), metrics, schema_url="")
    resource = Resource.create({"service.name": SERVICE, "service.version": __version__})
    return MetricsData([ResourceMetrics(resource, [scope], schema_url="")])


def _unix_ns(found: Exported) -> int:
    """Nanoseconds since 1970, exact for whole microseconds."""
    seconds, micro = divmod(round(found.measured.timestamp() * 10**6), 10**6)
    return seconds * _NANOSECONDS + micro * 1000
