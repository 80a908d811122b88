"""`sample`: one window, and nothing concluded from it."""

from __future__ import annotations

from pytest_gpucap.estimate.samples import sample_of
from pytest_gpucap.load.protocol import LoadRunner
from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import MeasuringRun
from pytest_gpucap.measure.settings import Observer, Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.measured import Sample
from pytest_gpucap.results.windows import Phase, WindowId


def run_sample(
    runner: LoadRunner,
    requirement: Requirement,
    settings: Settings,
    observer: Observer,
    *,
    rate_rps: float | None,
    concurrency: int | None,
    duration_s: float,
) -> Sample:
    """See `pytest_gpucap.measure.procedure.sample`."""
    if (rate_rps is None) == (concurrency is None):
        raise ValueError("give exactly one of rate_rps and concurrency")
    session = MeasuringRun(runner, requirement, settings, observer)
    lead_s = c.WARM_UP_S
    if concurrency is not None:
        which = WindowId(Phase.SAMPLE, concurrency=concurrency)
        window = session.hold(which, concurrency, duration_s, discard_s=lead_s)
    else:
        assert rate_rps is not None  # noqa: S101 - one of the two is given
        which = WindowId(Phase.SAMPLE, rate_rps=rate_rps)
        window = session.open_loop(which, rate_rps, duration_s, overload=None, discard_s=lead_s)
    # Requests of the window that are still in flight belong to it.
    runner.settle(c.SETTLE_S)
    session.journal = runner.journal()
    session.settle()
    return sample_of(
        session.journal,
        window.span,
        which,
        requirement.slo.limits,
        window.start_s,
        window.end_s,
        tuple(p for p in session.problems if p not in window.span.check.problems),
    )
