"""One steady window after all that decides on the rate: for figures that are not about the rate, such as energy.

The open loops before it follow a hold, whose requests are still under way when they begin. They show how the server
bears the rate, but their energy and their preemptions are partly the hold's.
"""

from __future__ import annotations

from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import CalledOff, MeasuringRun, OutOfTime, overload_at
from pytest_gpucap.results.windows import Phase, WindowId


def steady_window(run: MeasuringRun, rate_rps: float, in_flight: float) -> None:
    """Measure it if the caller wants one, nothing is wrong and there is time. Its samples decide on no rate.

    Args:
        run: whose decision is made.
        rate_rps: of its open loop.
        in_flight: requests in flight that are critical; many more call it off.

    Raises:
        LoadError: if the load cannot be produced.
    """
    if not run.settings.steady_s or run.problems:
        return
    run.runner.settle(c.SETTLE_S)
    try:
        run.open_loop(
            WindowId(Phase.STEADY),
            rate_rps,
            run.settings.steady_s,
            overload=overload_at(in_flight),
            discard_s=c.WARM_UP_S,
        )
    except (OutOfTime, CalledOff):
        return
