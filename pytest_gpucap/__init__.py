"""GPU capacity regression tests for pytest: the types that tests name, loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gpucap.engines.launch import LaunchedServer, launch
    from pytest_gpucap.engines.protocol import Capabilities, Engine, MetricNames, Server, ServerRequest
    from pytest_gpucap.engines.server import HttpServer
    from pytest_gpucap.gpu.classes import GpuClass
    from pytest_gpucap.results.measured import Accuracy, Curve, Interval, Measurement, Outcome, Sample, Verdict
    from pytest_gpucap.session.gpucap import GpuCap
    from pytest_gpucap.session.harness import MeasurementInvalid

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Capabilities",
    "Curve",
    "Engine",
    "GpuCap",
    "GpuClass",
    "HttpServer",
    "Interval",
    "LaunchedServer",
    "Measurement",
    "MeasurementInvalid",
    "MetricNames",
    "Outcome",
    "Sample",
    "Server",
    "ServerRequest",
    "Verdict",
    "launch",
]

_HOMES = {
    "GpuCap": "suite.gauge",
    "MeasurementInvalid": "suite.instrument",
    "Capabilities": "engines.protocol",
    "Engine": "engines.protocol",
    "GpuClass": "gpu.classes",
    "HttpServer": "engines.server",
    "LaunchedServer": "engines.launch",
    "MetricNames": "engines.protocol",
    "Server": "engines.protocol",
    "ServerRequest": "engines.protocol",
    "launch": "engines.launch",
}


def __getattr__(name: str) -> Any:
    """Load a public type when it is asked for: importing the plugin must cost nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'capacity.results')}"), name)
