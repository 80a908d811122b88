"""Three simple ways to find a server's capacity, which need no tool: a fixed run, bisection and a sweep of rates."""

from __future__ import annotations

import numpy as np

from pytest_gpucap.load import schedule
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.runner import SimRunner

from .probes import DRAIN_S, hold, keeps_limits

SWEEP_POINTS = 8
SWEEP_POINT_S = 60.0
PROBE_PROMPTS = 300
PROBE_TOLERANCE = 0.05
FIXED_S, FIXED_LEAD_S = 120.0, 20.0


def sweep(profile: Profile, seed: int) -> tuple[float, float]:
    """One request at a time, saturation, then 8 evenly spaced rates, a minute each; the highest that keeps the limits.

    Returns:
        Estimated rate and GPU seconds.
    """
    runner = SimRunner(profile.engine, seed)
    rates = []
    for stream, concurrency in ((0, 1), (1, profile.engine.max_num_seqs)):
        span = hold(runner, profile.workload, concurrency, SWEEP_POINT_S, seed, stream)
        journal = runner.journal()
        rates.append(float(((journal.end_s > span.start_s) & (journal.end_s <= span.end_s)).sum()) / SWEEP_POINT_S)
        runner.settle(DRAIN_S, cancel=True)
    low, high = max(rates[0], 0.02 * max(rates)), rates[1]
    best = 0.0
    for i, rate in enumerate(np.linspace(low, high, SWEEP_POINTS + 1)[:SWEEP_POINTS]):
        span = runner.run(schedule.open_loop(profile.workload, float(rate), SWEEP_POINT_S, seed, 2 + i))
        if keeps_limits(runner, span, profile):
            best = float(rate)
        runner.settle(DRAIN_S, cancel=True)
    return best or low, SWEEP_POINT_S * (SWEEP_POINTS + 2)


def bisection(profile: Profile, seed: int, start_rps: float, prompts: int = PROBE_PROMPTS) -> tuple[float, float]:
    """Doubling until a probe of so many prompts fails, then halving the bracket to 5%; each probe to its last answer.

    Returns:
        Estimated rate and GPU seconds.
    """
    runner = SimRunner(profile.engine, seed)
    stream = 0

    def passes(rate: float) -> bool:
        nonlocal stream
        phase = schedule.open_loop(profile.workload, rate, prompts / rate, seed, stream)
        stream += 1
        span = runner.run(phase)
        runner.settle(DRAIN_S)
        return keeps_limits(runner, span, profile)

    low, high = 0.0, start_rps
    while passes(high) and stream < 12:
        low, high = high, 2 * high
    if low == 0.0:
        low = high / 2
        while not passes(low) and stream < 12:
            low, high = low / 2, low
    while high / low > 1 + PROBE_TOLERANCE and stream < 24:
        middle = (low * high) ** 0.5
        if passes(middle):
            low = middle
        else:
            high = middle
    return low, runner.clock.now()


def fixed_run(profile: Profile, seed: int, design_rps: float) -> tuple[bool, float]:
    """120 s of Poisson arrivals at the design rate after a lead-in of 20 s: do the requests keep the limits?

    Returns:
        The verdict, and GPU seconds up to the last answer counted.
    """
    runner = SimRunner(profile.engine, seed)
    runner.run(schedule.open_loop(profile.workload, design_rps, FIXED_LEAD_S, seed, 0))
    span = runner.run(schedule.open_loop(profile.workload, design_rps, FIXED_S, seed, 1))
    runner.settle(DRAIN_S)
    return keeps_limits(runner, span, profile), FIXED_LEAD_S + FIXED_S
