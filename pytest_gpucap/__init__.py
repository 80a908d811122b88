"""GPU capacity regression tests for pytest.

`__all__` is the public API: what fixtures return, what their methods return and take, the errors that a test can catch,
and what scripts read and make of results on disk. Each name is loaded when it is first used. Every other module, class
and function of the package is private, and may change in any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gpucap.api_dialect import ApiDialect
    from pytest_gpucap.engines.errors import (
        EndpointError,
        MetricsUnavailable,
        ServerError,
        ServerStartError,
        ServerStopError,
    )
    from pytest_gpucap.engines.launch import LaunchedServer, launch
    from pytest_gpucap.engines.program import ProgramEngine, ProgramServer
    from pytest_gpucap.engines.prometheus import Metrics
    from pytest_gpucap.engines.protocol import Capabilities, Engine, MetricNames, Server, ServerLog, ServerRequest
    from pytest_gpucap.engines.server import HttpServer
    from pytest_gpucap.errors import (
        GpuCapError,
        MeasurementInvalid,
        NoSustainableRate,
        NotMeasured,
        PairInvalid,
        PluginFault,
    )
    from pytest_gpucap.gpu.classes import GpuClass
    from pytest_gpucap.gpu.device import Device
    from pytest_gpucap.gpu.lease import GpuShared, Lease, LeaseError, LeaseTimeout
    from pytest_gpucap.gpu.occupancy import MemoryNotReturned
    from pytest_gpucap.load.protocol import LoadError
    from pytest_gpucap.on_disk import Trends, html_report, read_result_file, read_trends
    from pytest_gpucap.requirement import (
        GoodputLimit,
        LatencyLimit,
        Metric,
        Requirement,
        RequirementError,
        Slo,
        Workload,
    )
    from pytest_gpucap.results.measured import (
        Accuracy,
        Curve,
        Interval,
        Latency,
        MeasuredStart,
        Measurement,
        Outcome,
        Sample,
        SecondaryResult,
        Verdict,
    )
    from pytest_gpucap.results.problems import Problem, ProblemKind, ProblemSource
    from pytest_gpucap.results.result import Result, ResultFile, ResultKind
    from pytest_gpucap.results.trend import AlarmState, LevelChange, Segment, Trend, TrendPoint
    from pytest_gpucap.results.windows import Phase, WindowId
    from pytest_gpucap.session.gpucap import GpuCap
    from pytest_gpucap.session.server_manager import SystemUnderTest
    from pytest_gpucap.telemetry.sampler import Telemetry

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "AlarmState",
    "ApiDialect",
    "Capabilities",
    "Curve",
    "Device",
    "EndpointError",
    "Engine",
    "GoodputLimit",
    "GpuCap",
    "GpuCapError",
    "GpuClass",
    "GpuShared",
    "HttpServer",
    "Interval",
    "Latency",
    "LatencyLimit",
    "LaunchedServer",
    "Lease",
    "LeaseError",
    "LeaseTimeout",
    "LevelChange",
    "LoadError",
    "MeasuredStart",
    "Measurement",
    "MeasurementInvalid",
    "MemoryNotReturned",
    "Metric",
    "MetricNames",
    "Metrics",
    "MetricsUnavailable",
    "NoSustainableRate",
    "NotMeasured",
    "Outcome",
    "PairInvalid",
    "Phase",
    "PluginFault",
    "Problem",
    "ProblemKind",
    "ProblemSource",
    "ProgramEngine",
    "ProgramServer",
    "Requirement",
    "RequirementError",
    "Result",
    "ResultFile",
    "ResultKind",
    "Sample",
    "SecondaryResult",
    "Segment",
    "Server",
    "ServerError",
    "ServerLog",
    "ServerRequest",
    "ServerStartError",
    "ServerStopError",
    "Slo",
    "SystemUnderTest",
    "Telemetry",
    "Trend",
    "TrendPoint",
    "Trends",
    "Verdict",
    "WindowId",
    "Workload",
    "html_report",
    "launch",
    "read_result_file",
    "read_trends",
]

_NAMES_BY_MODULE = {
    "engines.errors": ("EndpointError", "MetricsUnavailable", "ServerError", "ServerStartError", "ServerStopError"),
    "api_dialect": ("ApiDialect",),
    "engines.launch": ("LaunchedServer", "launch"),
    "engines.program": ("ProgramEngine", "ProgramServer"),
    "engines.prometheus": ("Metrics",),
    "engines.protocol": ("Capabilities", "Engine", "MetricNames", "Server", "ServerLog", "ServerRequest"),
    "engines.server": ("HttpServer",),
    "errors": (
        *("GpuCapError", "MeasurementInvalid", "NoSustainableRate", "NotMeasured", "PairInvalid", "PluginFault"),
    ),
    "gpu.classes": ("GpuClass",),
    "gpu.device": ("Device",),
    "gpu.lease": ("GpuShared", "Lease", "LeaseError", "LeaseTimeout"),
    "gpu.occupancy": ("MemoryNotReturned",),
    "load.protocol": ("LoadError",),
    "on_disk": ("Trends", "html_report", "read_result_file", "read_trends"),
    "requirement": ("GoodputLimit", "LatencyLimit", "Metric", "Requirement", "RequirementError", "Slo", "Workload"),
    "results.measured": (
        *("Accuracy", "Curve", "Interval", "Latency", "MeasuredStart", "Measurement", "Outcome", "Sample"),
        *("SecondaryResult", "Verdict"),
    ),
    "results.problems": ("Problem", "ProblemKind", "ProblemSource"),
    "results.result": ("Result", "ResultFile", "ResultKind"),
    "results.trend": ("AlarmState", "LevelChange", "Segment", "Trend", "TrendPoint"),
    "results.windows": ("Phase", "WindowId"),
    "session.gpucap": ("GpuCap",),
    "session.server_manager": ("SystemUnderTest",),
    "telemetry.sampler": ("Telemetry",),
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: importing the plugin must cost nothing."""
    for module, names in _NAMES_BY_MODULE.items():
        if name in names:
            from importlib import import_module

            found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
