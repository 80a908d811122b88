"""The true capacity of a simulated server, from very long runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pytest_gpucap.load import schedule
from pytest_gpucap.load.latencies import limited
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.sessions import under_way
from pytest_gpucap.requirement import Slo, Workload
from pytest_gpucap.simulator.profile import EngineModel, Profile
from pytest_gpucap.simulator.runner import SimRunner

RUN_S = 3000.0
"""One run; long against every time constant of the model."""
CLOSE = 0.004
"""Of ln(percentile / limit): a straight line bridges the rest."""
FAR = 1e3
"""Percentiles beyond this multiple of the limit are all the same: the server is overloaded."""
RISE_LN = 0.1
"""Steps in ln(rate) by which a search goes beyond the engine's best where limits still hold there."""
DISCARD_S = 300.0
"""Its beginning, in which the queue has not found its level."""


def long_run(
    engine: EngineModel,
    workload: Workload,
    slo: Slo,
    rate_rps: float,
    runs: int,
    seed: int = 0,
    server: type[SimRunner] = SimRunner,
) -> Mapping[str, float]:
    """Each limit's percentile over what it allows at a rate, from `runs` runs of `RUN_S`, without warm-up.

    Also ``backlog``: requests in flight over the whole at the end of the runs, against those after the discarded start.
    """
    warm = engine.settled()
    pooled: dict[str, list[np.ndarray]] = {limit.name: [] for limit in slo.limits}
    counts = np.zeros(0, np.int64)
    growth = []
    for run in range(runs):
        runner = server(warm, seed * 100_003 + run)
        discarded = schedule.open_loop(workload, rate_rps, DISCARD_S, seed + 7, 2 * run)
        runner.run(discarded)
        before, sessions = runner.in_flight, under_way(runner.journal())
        kept = schedule.open_loop(
            workload, rate_rps, RUN_S - DISCARD_S, seed + 7, 2 * run + 1, discarded.prompts, sessions
        )
        span = runner.run(kept)
        growth.append((runner.in_flight - before) / (span.end_row - span.first_row))
        runner.settle(600.0)
        journal = runner.journal()
        rows = slice(span.first_row, span.end_row)
        ok = journal.status[rows] == Status.OK
        for limit in slo.limits:
            if limit.of_gaps:
                counts = span.gaps.counts if counts.size == 0 else counts + span.gaps.counts
            else:
                # A request that never ended broke every limit.
                values = np.where(ok, limited(journal, limit)[rows], np.inf)
                pooled[limit.name].append(values[~np.isnan(values)])
    ratios = {"backlog": float(np.mean(growth))}
    for limit in slo.limits:
        if limit.of_gaps:
            value = replace(span.gaps, counts=counts).quantile_s(float(limit.quantile))
        else:
            # A value that occurred: between two of requests that never ended lies no number.
            value = float(np.quantile(np.concatenate(pooled[limit.name]), float(limit.quantile), method="higher"))
        ratios[limit.name] = value / limit.most
    return ratios


def simulated_saturation_rps(
    engine: EngineModel, workload: Workload, runs: int = 4, server: type[SimRunner] = SimRunner
) -> float:
    """Requests per second with the engine never short of work: the bound without any latency limit.

    The engine's alone: with so much in flight a front end (`front_token_s`) would be far beyond its best.
    """
    warm = replace(engine.settled(), front_token_s=0.0, front_request_s=0.0)
    rates = []
    for run in range(runs):
        runner = server(warm, 31 + run)
        target = warm.max_num_seqs + 64
        discarded = schedule.closed_loop(workload, target, DISCARD_S, 2000.0, 5, 2 * run)
        first = runner.run(discarded)
        most_rps = max(500.0, 1.2 * (first.end_row - first.first_row) / DISCARD_S)
        kept = schedule.closed_loop(
            workload,
            target,
            RUN_S,
            most_rps,
            5,
            2 * run + 1,
            hot=False,
            first_prompt=discarded.prompts,
            before=under_way(runner.journal()),
        )
        span = runner.run(kept)
        journal = runner.journal()
        rates.append(((journal.end_s > span.start_s) & (journal.end_s <= span.end_s)).sum() / RUN_S)
    return float(np.mean(rates))


def true_rate_rps(profile: Profile, runs: int = 24, seed: int = 1, server: type[SimRunner] = SimRunner) -> float:
    """The highest rate at which every limit of the profile's SLO holds over long runs.

    The same noise and arrivals at every rate; bisection on the logarithm of the worst limit's ratio, then a straight
    line through the last two rates that bracket it. `server` is how the engine is run, for a server that differs in
    more than its profile can say.
    """
    bound = simulated_saturation_rps(profile.engine, profile.workload, server=server)
    if not profile.slo.limits:
        return bound

    def worst(log_rate: float, many: int) -> float:
        ratios = long_run(profile.engine, profile.workload, profile.slo, math.exp(log_rate), many, seed, server)
        return math.log(min(FAR, max(ratios[limit.name] for limit in profile.slo.limits)))

    low, high = math.log(bound / 50), math.log(bound)
    # With all that it can hold in flight, a server may forget more of its sessions than it does at a higher rate.
    while profile.workload.sessions is not None and worst(high, 2) <= 0:
        high += RISE_LN
    for many, width in ((2, 0.08), (8, 0.02)):
        while high - low > width:
            middle = (low + high) / 2
            if worst(middle, many) > 0:
                high = middle
            else:
                low = middle
        low, high = low - width / 2, high + width / 2
    f_low, f_high = worst(low, runs), worst(high, runs)
    for _ in range(4):
        middle = low + (high - low) * min(0.8, max(0.2, f_low / (f_low - f_high)))
        f_middle = worst(middle, runs)
        if f_middle > 0:
            high, f_high = middle, f_middle
        else:
            low, f_low = middle, f_middle
        if min(abs(f_low), abs(f_high)) < CLOSE:
            break
    return math.exp(low + (high - low) * f_low / (f_low - f_high))
