"""The four entry points of measuring: `check`, `measure`, `sweep`, `sample`."""

from __future__ import annotations

from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.measure.checking import run_check
from pytest_gpucap.measure.measuring import run_measure
from pytest_gpucap.measure.sampling import run_sample
from pytest_gpucap.measure.settings import Observer, Settings, SilentObserver
from pytest_gpucap.measure.sweeping import run_sweep
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Curve, Measurement, Sample, Verdict

__all__ = ["check", "measure", "sample", "sweep"]


def check(
    runner: LoadRunner,
    requirement: Requirement,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Verdict:
    """Decide whether the server sustains the design rate, in as little server time as the evidence needs.

    Never raises for what the server or the load does: that ends INVALID or FAIL, with the reason.

    Args:
        runner: carries the load; left with nothing in flight, and open.
        requirement: what is to be sustained.
        settings: limits of the measurement; defaults of `Settings`.
        observer: follows it.
    """
    return run_check(runner, requirement, settings or Settings(), observer or SilentObserver())


def measure(
    runner: LoadRunner,
    requirement: Requirement,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Measurement:
    """Estimate the sustainable rate with its interval, for the requirement's workload and SLO.

    The requirement's qps and gpus only say where the search begins.
    """
    return run_measure(runner, requirement, settings or Settings(), observer or SilentObserver())


def sweep(
    runner: LoadRunner,
    requirement: Requirement,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> Curve:
    """Latency against rate up to saturation: `measure`, then points where they tell most."""
    return run_sweep(runner, requirement, settings or Settings(), observer or SilentObserver())


def sample(
    runner: LoadRunner,
    requirement: Requirement,
    settings: Settings | None = None,
    observer: Observer | None = None,
    *,
    rate_rps: float | None = None,
    concurrency: int | None = None,
    duration_s: float = 30.0,
) -> Sample:
    """One window at a rate (open loop) or a concurrency (closed loop), after a lead-in that is not counted.

    Raises:
        ValueError: unless exactly one of `rate_rps` and `concurrency` is given.
        LoadError: if the load cannot be produced.
    """
    return run_sample(
        runner,
        requirement,
        settings or Settings(),
        observer or SilentObserver(),
        rate_rps=rate_rps,
        concurrency=concurrency,
        duration_s=duration_s,
    )
