"""AIPerf's search for the load at which latency limits just hold, in virtual time: `smooth_isotonic`.

Source: AIPerf 0.13.0, `aiperf.orchestrator.search_planner.smooth_isotonic.SmoothIsotonicSLAPlanner` with
`_smooth_isotonic_phases`, `_smooth_isotonic_fit` and `_cliff_detect`. Bounds and the number of probes are those of the
recipe `max-concurrency-under-sla` (`aiperf.search_recipes._max_concurrency_under_sla`), whose default style this is.
Times and numbers of requests are those of `aiperf.common.environment._SearchPlannerSettings`.

As in the tool:

- A probe sends 1000 requests (`sla_precision` "normal") and waits for all. Before it, as many requests as the
  load's number are kept in flight, in a search of the rate too (`_apply_sla_warmup`): for 60 s
  (`FIRST_PROBE_WARMUP_FLOOR`), or for 30 s at a load that was probed before (`DEFAULT_WARMUP_SECONDS`).
  The probe begins when all of those are answered (`aiperf.timing.config._build_warmup_config`: no end to the grace).
- The search doubles from 1 up to 1000 until a limit breaks. Three probes follow within the bracket. Isotonic regression
  smooths their margins, a monotone cubic (PCHIP) goes through them, and the next probe is where the cubic is 0. The
  search ends once the bracket is within 5%, once that load was probed before, or after 30 probes.
- The limit that binds is the one with the largest margin, in seconds, at the largest load.
- A fit with too few points gets two more, three times at most. Without new loads the last one is probed again.
- There are no replicates. They are off by default, and their automatic number needs some to begin with.

Otherwise, and why:

- The recipe has percentiles of its own (p99 end to end). Here they are the limits', as `--search-sla` sets them.
- The recipe searches a concurrency, and our question is one of a rate. `concurrency` takes the request throughput that
  the tool reports at the highest concurrency that passed. `rate` searches the rate of Poisson arrivals instead, as the
  same planner does with `--search-space rate:1,1000:int`. The planner knows whole numbers only.
- Without `--request-count` the command line sends 10 requests a probe. The preset and the tool's guide say 1000.
- The time between two probes does not count as GPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

from pytest_gpucap.arrays import Floats
from pytest_gpucap.load.protocol import Journal
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.runner import SimRunner

from .probes import DRAIN_S, closed, hold, opened, percentile

LOW, HIGH = 1, 1000
MAX_PROBES = 30
PRECISION = 0.05
REQUESTS = 1000
WARMUP_S, WARMUP_AGAIN_S = 60.0, 30.0
INTERNAL_PROBES = 3
MIN_POINTS, MIN_DISTINCT, MAX_REFITS = 4, 3, 3
REFIT_PLACES = (0.125, 0.625)
CLIFF_SIGMAS, CLIFF_POINTS = 3.0, 3

Probe = Callable[[int], Sequence[float]]
"""Margins of a load, one for each limit: the percentile minus the limit."""


def isotonic(margins: Floats) -> Floats:
    """The nearest series that does not fall."""
    rising: Floats = isotonic_regression(margins, increasing=True).x
    return rising


def smooth(margins: Floats) -> Floats:
    """Isotonic regression, then made to rise everywhere by a trifle, as `_strictify` does."""
    rising = isotonic(margins)
    span = float(rising[-1] - rising[0])
    lifted: Floats = rising + 1e-9 * (span if span > 0 else 1.0) * np.arange(rising.size)
    return lifted


@dataclass(slots=True)
class Planner:
    """State of a search.

    Attributes:
        passed, failed: the highest load that kept the limits and the lowest that did not; 0: none yet.
        margins: of every probe, by load.
        queue: loads to probe next.
        phase: ``bracket``, ``fit`` or ``cliff``.
        fits: fits so far.
    """

    passed: int = 0
    failed: int = 0
    margins: dict[int, list[Floats]] = field(default_factory=dict)
    queue: list[int] = field(default_factory=list)
    phase: str = "bracket"
    fits: int = 0

    def tell(self, load: int, margins: Floats) -> bool:
        """Take in a probe, and plan the next. True once the search has ended."""
        self.margins.setdefault(load, []).append(margins)
        feasible = bool((margins < 0).all())
        if feasible and (not self.failed or load < self.failed):
            self.passed = max(self.passed, load)
        elif not feasible and load > self.passed:
            self.failed = min(self.failed or load, load)
        if self.phase == "bracket":
            return self._double(load) if feasible else self._begin_fits()
        if self.queue:
            return False
        return self._fit() if self.phase == "fit" else self._halve()

    @property
    def gap(self) -> int:
        """Width of the bracket."""
        return self.failed - self.passed

    @property
    def precise(self) -> bool:
        """Whether the bracket is narrow enough."""
        return self.gap <= 1 or self.gap / self.failed < PRECISION

    def _double(self, load: int) -> bool:
        self.queue.append(min(2 * load, HIGH))
        return load >= HIGH

    def _begin_fits(self) -> bool:
        self.phase = "fit"
        self._enqueue([k / (INTERNAL_PROBES + 1) for k in range(1, INTERNAL_PROBES + 1)])
        return not self.passed

    def _enqueue(self, places: Sequence[float]) -> None:
        """Queue loads at these places within the bracket, without those probed before."""
        for place in places if self.gap > 1 else ():
            load = max(min(self.passed + max(1, round(self.gap * place)), self.failed - 1), self.passed + 1)
            if load not in self.margins and load not in self.queue:
                self.queue.append(load)

    def _fit(self) -> bool:
        self.fits += 1
        loads = np.array(sorted(self.margins), np.float64)
        means = np.array([np.mean(self.margins[int(load)], axis=0) for load in loads])
        margins: Floats = means[:, int(np.argmax(means[-1]))]
        rising = smooth(margins)
        crossing = self._crossing(loads, rising)
        if not crossing:
            return True
        few = loads.size < MIN_POINTS or np.unique(isotonic(margins).round(9)).size < MIN_DISTINCT
        if few and self.fits < MAX_REFITS:
            self._enqueue(REFIT_PLACES)
            return False
        scatter = CLIFF_SIGMAS * float(margins[-CLIFF_POINTS:].std())
        if 0 < scatter < abs(float(margins[-1] - rising[-1])) and self.gap > PRECISION * HIGH:
            self.phase = "cliff"
            return self._halve()
        if self.precise or crossing in self.margins:
            return True
        self.queue.append(crossing)
        return False

    def _crossing(self, loads: Floats, rising: Floats) -> int:
        """The load within the bracket at which the margin is 0, else the bracket's middle; 0 if it has no middle."""
        roots = PchipInterpolator(loads, rising).solve(0.0, extrapolate=False)
        inside = [float(root) for root in roots if self.passed <= root <= self.failed]
        if inside:
            return min(max(round(inside[0]), self.passed + 1), self.failed - 1)
        return self.passed + self.gap // 2 if self.gap > 1 else 0

    def _halve(self) -> bool:
        """After a cliff the curve says nothing: bisection."""
        if not self.precise:
            self.queue.append(self.passed + self.gap // 2)
        return self.precise


def search(probe: Probe) -> int:
    """The highest load that passed; 0 if the lowest did not."""
    planner, load = Planner(), LOW
    for _ in range(MAX_PROBES):
        if planner.tell(load, np.asarray(probe(load), np.float64)):
            break
        load = planner.queue.pop(0) if planner.queue else load
    return planner.passed


def _margins(profile: Profile, journal: Journal, rows: slice) -> list[float]:
    return [percentile(journal, rows, limit) - limit.most for limit in profile.slo.limits]


def _searched(profile: Profile, seed: int, send: Callable[[SimRunner, int, int], slice]) -> tuple[int, float, float]:
    """The load found, the request throughput there, and GPU seconds; `send` makes a probe's requests."""
    runner, stream = SimRunner(profile.engine, seed), count()
    throughput: dict[int, float] = {0: 0.0}

    def probe(load: int) -> list[float]:
        warmup_s = WARMUP_AGAIN_S if load in throughput else WARMUP_S
        hold(runner, profile.workload, load, warmup_s, seed, next(stream))
        runner.settle(DRAIN_S)
        rows = send(runner, load, next(stream))
        journal = runner.journal()
        spent_s = float(np.nanmax(journal.end_s[rows]) - np.nanmin(journal.due_s[rows]))
        throughput[load] = float((~np.isnan(journal.end_s[rows])).sum()) / spent_s
        return _margins(profile, journal, rows)

    found = search(probe)
    return found, throughput[found], runner.clock.now()


def concurrency(profile: Profile, seed: int) -> tuple[float, float]:
    """The recipe: the highest concurrency that keeps the limits.

    Returns:
        Estimated rate and GPU seconds. The rate is 0 if one request at a time did not keep the limits.
    """

    def send(runner: SimRunner, load: int, stream: int) -> slice:
        return closed(runner, profile.workload, load, REQUESTS, seed, stream)

    _, rate, gpu_s = _searched(profile, seed, send)
    return rate, gpu_s


def rate(profile: Profile, seed: int) -> tuple[float, float]:
    """The same planner on the rate of Poisson arrivals.

    Returns:
        Estimated rate and GPU seconds. The rate is 0 if 1 request/s did not keep the limits.
    """

    def send(runner: SimRunner, load: int, stream: int) -> slice:
        return opened(runner, profile.workload, float(load), REQUESTS, seed, stream)

    found, _, gpu_s = _searched(profile, seed, send)
    return float(found), gpu_s
