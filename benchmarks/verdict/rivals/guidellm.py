"""GuideLLM's goodput profile in virtual time: the highest concurrency at which enough requests keep every objective.

Source: GuideLLM 0.8.1, `guidellm.benchmark.profiles.goodput.GoodputProfile` (`next_strategy`, `_record_probe`,
`_advance`), with the defaults of `guidellm.schemas.benchmark.profiles.goodput.GoodputProfileArgs`.

As in the tool:

- A probe holds a number of requests in flight (`ConcurrentStrategy`), and all of them start at once
  (`rampup_duration` 0). Nothing is discarded (`warmup` and `cooldown` are unset).
- Its attainment is the share of the requests that keep every objective, of those that ended in the probe. What is still
  in flight at its end is cancelled and left out (`MaxDurationConstraint`). The attainment alone decides: the Wilson
  interval only brings a warning.
- The search begins with 4 and doubles up to 1024 until a probe fails, or halves down to 1 until one passes. Then it
  bisects until the bracket is within 10%, with 15 probes at most.

Otherwise, and why:

- The tool has no default length of a probe. It lasts 60 s here, as in the first example of the tool's guide.
- The tool answers with a concurrency, and our question is one of a rate. The estimate is the requests per second that
  it reports at that concurrency (`requests_per_second`): completed requests over the length of the probe.
- Its target is 95% of the requests by default. Here it is the percentile of the limits, which is the same.
- The time between two probes does not count as GPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np

from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.runner import SimRunner

from .probes import hold, within_limits

INITIAL_STREAMS, MAX_STREAMS = 4, 1024
TOLERANCE = 0.1
MAX_PROBES = 15
PROBE_S = 60.0


def search(passes: Callable[[int], bool]) -> int:
    """The highest concurrency that passed; 0 if none did."""
    best, worst, streams = 0, 0, INITIAL_STREAMS
    for _ in range(MAX_PROBES):
        if passes(streams):
            best = max(best, streams)
        else:
            worst = min(worst or streams, streams)
        if not worst:
            if best >= MAX_STREAMS:
                break
            streams = min(2 * best, MAX_STREAMS)
        elif not best:
            if worst <= 1:
                break
            streams = worst // 2
        elif worst - best <= max(1, TOLERANCE * best):
            break
        else:
            streams = (best + worst) // 2
    return best


def goodput(profile: Profile, seed: int) -> tuple[float, float]:
    """The search on a simulated server.

    Returns:
        Estimated rate and GPU seconds. The rate is 0 if no concurrency passed.
    """
    runner = SimRunner(profile.engine, seed)
    target = max(float(limit.quantile) for limit in profile.slo.limits)
    rates: dict[int, float] = {0: 0.0}
    stream = count()

    def passes(streams: int) -> bool:
        span = hold(runner, profile.workload, streams, PROBE_S, seed, next(stream))
        journal, rows = runner.journal(), slice(span.first_row, span.end_row)
        ended = int((~np.isnan(journal.end_s[rows])).sum())
        rates[streams] = ended / PROBE_S
        runner.settle(0.0, cancel=True)
        return ended > 0 and int(within_limits(journal, rows, profile.slo).sum()) >= target * ended

    return rates[search(passes)], runner.clock.now()
