"""A prefix cache that still fills: the server counts what it finds there, so whether it finds more and more is known.

While it fills, prompts cost less from one ten seconds to the next. What was measured then is another server than the
one that will be used, and a FAIL would be of the time after its start.
"""

from __future__ import annotations

import math

from pytest_gpucap.measure import constants as c
from pytest_gpucap.measure.run import MeasuringRun, Window


def computed_share(run: MeasuringRun, start_s: float, end_s: float) -> float | None:
    """Share of the prompt tokens in [start_s, end_s) that the server had to compute; None where it is not known."""
    hit_rate = run.settings.hit_rate(start_s, end_s) if run.settings.hit_rate is not None else None
    return None if hit_rate is None else max(1.0 - hit_rate, c.LEAST_COMPUTED)


def still_fills(run: MeasuringRun, earlier: list[Window], later: list[Window]) -> bool:
    """Whether the server computed clearly less of its prompts in some windows than in those before."""
    shares = [computed_share(run, each[0].start_s, each[-1].end_s) for each in (earlier, later)]
    if shares[0] is None or shares[1] is None:
        return False
    return math.log(shares[1] / shares[0]) < -c.FILLING_LN


def since_filled(run: MeasuringRun, windows: list[Window]) -> list[Window]:
    """The windows in which the server computed no clearly larger share of its prompts than in the last."""
    last = computed_share(run, windows[-1].start_s, windows[-1].end_s)
    if last is None or last >= 1.0 - c.LEAST_COMPUTED:  # a cache without hits does not fill
        return windows
    first = len(windows) - 1
    while first > 0:
        before = computed_share(run, windows[first - 1].start_s, windows[first - 1].end_s)
        if before is None or math.log(before / last) > c.FILLED_LN:
            break
        first -= 1
    return windows[min(first, max(0, len(windows) - c.LEAST_WARM)) :]
