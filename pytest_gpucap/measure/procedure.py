"""The four entry points of measuring: `check`, `measure`, `sweep`, `sample`."""

from __future__ import annotations

import msgspec

from pytest_gpucap.estimate.adapters import latencies_by_adapter
from pytest_gpucap.estimate.samples import sample_of
from pytest_gpucap.load.protocol import LoadError, LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.checking import called_off, run_check
from pytest_gpucap.measure.measuring import run_measure
from pytest_gpucap.measure.run import CalledOff, MeasuringRun, OutOfTime
from pytest_gpucap.measure.settings import Observer, Settings, SilentObserver
from pytest_gpucap.measure.sweeping import run_sweep
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Curve, Measurement, Sample, Verdict
from pytest_gpucap.results.problems import OF_THE_END
from pytest_gpucap.results.windows import Phase, WindowId

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
        LoadError: if the load cannot be produced, or most requests failed.
    """
    if (rate_rps is None) == (concurrency is None):
        raise ValueError("give exactly one of rate_rps and concurrency")
    run = MeasuringRun(runner, requirement, settings or Settings(), observer or SilentObserver())
    try:
        if concurrency is not None:
            which = WindowId(Phase.SAMPLE, concurrency=concurrency)
            window = run.hold(which, concurrency, duration_s, discard_s=c.WARM_UP_S)
        else:
            assert rate_rps is not None  # noqa: S101 - one of the two is given
            which = WindowId(Phase.SAMPLE, rate_rps=rate_rps)
            window = run.open_loop(which, rate_rps, duration_s, overload=None, discard_s=c.WARM_UP_S)
    except CalledOff:
        raise LoadError(run.problems[0].text if run.problems else called_off(run)[1]) from None
    except OutOfTime:
        raise LoadError(f"{run.settings.limit} leaves no time for a window") from None
    # Requests of the window that are still in flight belong to it.
    runner.settle(c.SETTLE_S)
    run.journal = runner.journal()
    run.settle()
    if ended := next((problem.text for problem in run.problems if problem.kind in OF_THE_END), ""):
        raise LoadError(ended)
    found = sample_of(
        run.journal,
        window.span,
        which,
        requirement.slo,
        window.start_s,
        window.end_s,
        tuple(p for p in run.problems if p not in window.span.check.problems),
        requirement.workload,
    )
    adapters = latencies_by_adapter(run.journal, requirement.workload, [found])
    return msgspec.structs.replace(found, failed_requests=run.failed_requests(), adapters=adapters)
