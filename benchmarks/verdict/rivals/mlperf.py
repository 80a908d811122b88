"""MLPerf LoadGen's server scenario in virtual time: a run with early stopping, and the search for the highest rate.

Source: MLCommons LoadGen 6.0.17 (`mlcommons_loadgen`). `early_stopping.cc` has the criterion, `results.cc` its use
(`PerformanceSummary::EarlyStopping`, `PerfConstraintsMet`), `loadgen.cc` the search (`FindPeakPerformanceMode`,
`FindBoundaries`, `FindPeakPerformanceBinarySearch`), and `test_settings.h` and `mlperf_conf.h` the defaults. The rules
derive the criterion: `inference_rules.adoc` of https://github.com/mlcommons/inference_policies, "Early Stopping".

As in the tool:

- Poisson arrivals for 600 s (`*.Server.min_duration`), 100 queries at least (`min_query_count`), and to the last answer
  (`server_max_async_queries` 0: nothing ends an overloaded run).
- Nothing comes before a run: LoadGen has no warm-up. (Whoever uses it may send requests of their own before.)
- A run is valid if so few queries are late that a server which just misses the percentile would show so few with a
  chance below 1% (confidence 0.99, tolerance 0). Each limit must hold for itself, as TTFT and TPOT do with
  `use_token_latencies`.
- The search doubles (`server_find_peak_qps_boundary_step_size` 1) from a rate that the user promises to hold, until a
  run breaks a percentile. Then it bisects to 0.1 queries/s (`server_find_peak_qps_decimals_of_precision` 1). It looks
  at the percentile alone, not at early stopping.

Otherwise, and why:

- The percentile is the limit's (0.95), as `server_target_latency_percentile` sets it; the default is 0.99.
- The server scenario has an end-to-end limit, or limits on TTFT and TPOT. Where ours has TTFT alone, TPOT has none.
- The promised rate is drawn between 0.1 and 0.3 of the true rate, as for `simple.bisection`.
- LoadGen's seeds are fixed, so each of its runs replays one schedule. Here each run has arrivals of its own, so that
  the figures are those of the procedure and not of one schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
from scipy.stats import binom

from pytest_gpucap.arrays import Floats
from pytest_gpucap.load import schedule
from pytest_gpucap.load.latencies import limited
from pytest_gpucap.requirement import Limit
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.runner import SimRunner

MIN_DURATION_S = 600.0
MIN_QUERIES = 100
CONFIDENCE = 0.99
DECIMALS = 1
LONGEST_DRAIN_S = 7200.0

Judge = Callable[[Floats, Limit], bool]


def stops_early(queries: int, late: int, percentile: float) -> bool:
    """Whether so few late queries show that the percentile holds: the least `queries` for `late` is `h + t`.

    LoadGen's odds, I(p; h, t + 1), are the distribution function of the binomial law.
    """
    return bool(binom.cdf(late, queries, 1 - percentile) < 1 - CONFIDENCE)


def valid(values: Floats, limit: Limit) -> bool:
    """Early stopping, and the percentile, of one limit."""
    late = int((values > limit.most).sum())
    return keeps_percentile(values, limit) and stops_early(values.size, late, float(limit.quantile))


def keeps_percentile(values: Floats, limit: Limit) -> bool:
    """Whether the percentile is within the limit: the value at that place of the sorted latencies."""
    return bool(np.sort(values)[int(values.size * float(limit.quantile))] <= limit.most)


def search(passes: Callable[[float], bool], low_qps: float) -> float:
    """The highest rate that passed; 0 if the promised one did not."""
    if not passes(low_qps):
        return 0.0
    high_qps = 2 * low_qps
    while passes(high_qps):
        low_qps, high_qps = high_qps, 2 * high_qps
    scale = 10**DECIMALS
    while np.floor(low_qps * scale) + 1 < np.floor(high_qps * scale):
        middle = low_qps + (high_qps - low_qps) / 2
        if passes(middle):
            low_qps = middle
        else:
            high_qps = middle
    return low_qps


def _run(runner: SimRunner, profile: Profile, qps: float, seed: int, stream: int, judge: Judge) -> bool:
    """Whether every limit passes in a run at a rate. A request without an answer is late."""
    duration_s = max(MIN_DURATION_S, MIN_QUERIES / qps)
    span = runner.run(schedule.open_loop(profile.workload, qps, duration_s, seed, stream))
    runner.settle(LONGEST_DRAIN_S)
    journal, rows = runner.journal(), slice(span.first_row, span.end_row)
    ended = ~np.isnan(journal.end_s[rows])
    return all(judge(np.where(ended, limited(journal, limit)[rows], np.inf), limit) for limit in profile.slo.limits)


def server_run(profile: Profile, seed: int, design_rps: float) -> tuple[bool, float]:
    """One performance run at the design rate.

    Returns:
        Whether it is valid, and GPU seconds.
    """
    runner = SimRunner(profile.engine, seed)
    passed = _run(runner, profile, design_rps, seed, 0, valid)
    return passed, runner.clock.now()


def find_peak(profile: Profile, seed: int, promised_rps: float) -> tuple[float, float]:
    """The search on a simulated server.

    Returns:
        Estimated rate and GPU seconds. The rate is 0 if the promised one did not hold.
    """
    runner, stream = SimRunner(profile.engine, seed), count()
    rate = search(lambda qps: _run(runner, profile, qps, seed, next(stream), keeps_percentile), promised_rps)
    return rate, runner.clock.now()
