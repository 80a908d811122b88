"""GPU capacity regression tests for pytest: the types that tests name, loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_gpucap.engines.protocol import Server
    from pytest_gpucap.results.measured import Accuracy, Curve, Interval, Measurement, Outcome, Sample, Verdict
    from pytest_gpucap.session.gpucap import GpuCap
    from pytest_gpucap.session.harness import MeasurementInvalid

__version__ = "0.1.0"

__all__ = [
    "Accuracy",
    "Curve",
    "GpuCap",
    "Interval",
    "Measurement",
    "MeasurementInvalid",
    "Outcome",
    "Sample",
    "Server",
    "Verdict",
]

_HOMES = {
    "GpuCap": "suite.gauge",
    "MeasurementInvalid": "suite.instrument",
    "Server": "server.endpoint",
}


def __getattr__(name: str) -> Any:
    """Load a public type when it is asked for: importing the plugin must cost nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'capacity.results')}"), name)
