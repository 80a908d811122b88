"""Error rates and GPU seconds of `check()` and of other ways to decide, on simulated servers of known capacity.

    python benchmarks/verdict/study.py run --reps 1000        # raw results: benchmarks/verdict/results/*.csv
    python benchmarks/verdict/study.py run --parts aiperf,guidellm,mlperf --profiles seen,unseen --reps 100
    python benchmarks/verdict/study.py table                  # RESULTS.md, and the operating characteristic curves

Results are kept cell by cell, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import goodput  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import prefill_only  # type: ignore[import-not-found,unused-ignore]
import servers  # type: ignore[import-not-found,unused-ignore]
import sessions  # type: ignore[import-not-found,unused-ignore]
import tables  # type: ignore[import-not-found,unused-ignore]
from rivals import aiperf, guidellm, mlperf, simple  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.telemetry.time_series import counter_growth

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RATIOS = (0.95, 1.05, 0.98, 1.02)
CURVE_RATIOS = (0.90, 0.97, 1.0, 1.03, 1.10)
TUNED = ("fast", "slow", "mixed", "h200", "cpu_tiny")
HELD_OUT = ("bursty", "longprompt", "few")
FIELDS = ("rep", "outcome", "gpu_s", "rate", "low", "high")
CHUNK = 50
MAX_TIME_S = 600.0
KINDS_DECLARED = (goodput.KIND, prefill_only.KIND, sessions.KIND)
"""Servers in files of their own, beside the profiles that come with the plugin and the drawn ones."""
FRESH = 4_600_000
"""Where the seeds of the final study begin; none of them was drawn while constants were set."""

Row = tuple[int, str, float, float, float, float]
Method = Callable[[str, float, int], Row]
Rival = Callable[..., tuple[float, float]]
"""A profile, a seed and perhaps a rate; the estimate, or whether the rate holds, and GPU seconds."""


def profile_of(name: str) -> profiles.Profile:
    """A profile that comes with the plugin, one of the drawn servers, or one of a declared kind."""
    for kind in KINDS_DECLARED:
        if name in kind.names():
            found: profiles.Profile = kind.load(name)
            return found
    drawn = servers.path_of(name)
    return profiles.load(drawn if drawn.is_file() else name)


def profiles_of(name: str) -> list[str]:
    """All drawn servers of a half, all that goodput limits, all with sessions, or the profile of this name."""
    for kind in KINDS_DECLARED:
        if name == kind.name:
            return list(kind.names())
    return servers.names(name) if name in servers.KINDS else [name]


def requirement(name: str, ratio: float) -> Requirement:
    """What a server of this profile sustains `ratio` times."""
    profile = profile_of(name)
    return Requirement(name, Fraction(profile.true_rate_rps / ratio), 1, Fraction(1), 1, profile.workload, profile.slo)


def settings(name: str, seed: int) -> Settings:
    """As the plugin fills them in from the server."""
    engine = profile_of(name).engine
    return Settings(MAX_TIME_S, seed, engine.max_num_seqs, engine.kv_tokens, engine.max_num_batched_tokens)


def hits_of(runner: SimRunner) -> Callable[[float, float], float | None]:
    """The hit rate of a simulated server's prefix cache, from the counters that a real one has."""

    def hit_rate(start_s: float, end_s: float) -> float | None:
        readings = runner.readings()
        asked, found = (
            counter_growth(readings["time_s"], readings[name], start_s, end_s)
            for name in ("prefix_queries", "prefix_hits")
        )
        return found[0] / asked[0] if asked and found and asked[0] > 0 else None

    return hit_rate


def one_check(name: str, ratio: float, rep: int) -> Row:
    """One verdict of ours."""
    runner = SimRunner(profile_of(name).engine, FRESH + 10_000 + rep)
    verdict = check(runner, requirement(name, ratio), replace(settings(name, FRESH + rep), hit_rate=hits_of(runner)))
    spent = sum(verdict.measurement.spent_s.values())
    rate = verdict.measurement.sustainable_rate
    nan = math.nan
    figures = (rate.value, rate.low, rate.high) if rate else (nan, nan, nan)
    return rep, verdict.outcome.value, spent, *figures


def one_measure(name: str, ratio: float, rep: int) -> Row:
    """One estimate of ours; the search begins at `ratio` times too high a guess."""
    return measured(profile_of(name).engine, name, ratio, rep)


def measured(engine: profiles.EngineModel, name: str, ratio: float, rep: int, seed: int = FRESH) -> Row:
    """One estimate of ours, of an engine that may be another than the profile's."""
    runner = SimRunner(engine, seed + 20_000 + rep)
    measurement = measure(
        runner, requirement(name, ratio), replace(settings(name, seed + rep), hit_rate=hits_of(runner))
    )
    rate = measurement.sustainable_rate
    nan = math.nan
    figures = (rate.value, rate.low, rate.high) if rate else (nan, nan, nan)
    return rep, "INVALID" if measurement.problems else "OK", sum(measurement.spent_s.values()), *figures


def promised_rps(name: str, rep: int) -> float:
    """A rate well below the true one, where a search begins that needs such a rate."""
    return profile_of(name).true_rate_rps * float(np.random.default_rng(rep).uniform(0.1, 0.3))


def decided(run: Rival, first_seed: int) -> Method:
    """A rival that says whether the design rate holds."""

    def one(name: str, ratio: float, rep: int) -> Row:
        profile = profile_of(name)
        passed, gpu_s = run(profile, first_seed + rep, profile.true_rate_rps / ratio)
        return rep, "PASS" if passed else "FAIL", gpu_s, math.nan, math.nan, math.nan

    return one


def searched(run: Rival, first_seed: int, *, promised: bool = False) -> Method:
    """A rival that estimates the rate: one estimate decides for every ratio."""

    def one(name: str, ratio: float, rep: int) -> Row:
        del ratio
        start = (promised_rps(name, rep),) if promised else ()
        rate, gpu_s = run(profile_of(name), first_seed + rep, *start)
        return rep, "OK", gpu_s, rate, math.nan, math.nan

    return one


METHODS: dict[str, Method] = {
    "check": one_check,
    "measure": one_measure,
    "fixed": decided(simple.fixed_run, 30_000),
    "sweep": searched(simple.sweep, 40_000),
    "bisection": searched(simple.bisection, 50_000, promised=True),
    "aiperf": searched(aiperf.concurrency, 60_000),
    "aiperf-rate": searched(aiperf.rate, 70_000),
    "guidellm": searched(guidellm.goodput, 80_000),
    "mlperf": decided(mlperf.server_run, 90_000),
    "mlperf-peak": searched(mlperf.find_peak, 100_000, promised=True),
}


def chunk(task: tuple[str, str, float, int, int]) -> list[Row]:
    """Some replications of one cell."""
    method, name, ratio, first, end = task
    return [METHODS[method](name, ratio, rep) for rep in range(first, end)]


def path_of(method: str, name: str, ratio: float) -> Path:
    """Where a cell's rows are."""
    return RESULTS / f"{method}-{name}-{ratio:.2f}.csv"


def read(method: str, name: str, ratio: float) -> list[dict[str, str]]:
    """A cell's rows; none where it was not run."""
    path = path_of(method, name, ratio)
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def run(cells: Iterable[tuple[str, str, float]], reps: int, jobs: int, until_s: float = math.inf) -> None:
    """Fill the cells up to `reps` replications each. None is begun after `until_s` of the monotonic clock."""
    RESULTS.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for method, name, ratio in cells:
            have = len(read(method, name, ratio))
            if have >= reps or time.monotonic() > until_s:
                continue
            began = time.monotonic()
            each = min(CHUNK, math.ceil((reps - have) / jobs))
            tasks = [(method, name, ratio, i, min(i + each, reps)) for i in range(have, reps, each)]
            rows = [row for part in pool.imap(chunk, tasks) for row in part]
            path = path_of(method, name, ratio)
            new = not path.exists()
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(FIELDS)
                writer.writerows([r, o, f"{g:.1f}", f"{a:.5g}", f"{b:.5g}", f"{c:.5g}"] for r, o, g, a, b, c in rows)
            print(f"{path.name}: {len(rows)} in {time.monotonic() - began:.0f} s", flush=True)


def cells_of(what: str, names: tuple[str, ...], checked: tuple[float, ...] = RATIOS) -> list[tuple[str, str, float]]:
    """The cells of one part of the study; `checked`: the ratios of its verdicts."""
    ratios = {
        "curve": CURVE_RATIOS,
        "far": tables.FAR_RATIOS,
        "measure": (tables.MEASURED_AT,),
        **dict.fromkeys(tables.ESTIMATING, (1.0,)),
    }
    method = "check" if what in ("curve", "far") else what
    return [(method, n, r) for r in ratios.get(what, checked) for n in names]


def main() -> None:
    """Run a part of the study, or write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--parts", default="check,measure,fixed,bisection,sweep")
    parser.add_argument(
        "--profiles",
        default=",".join((*TUNED, *HELD_OUT)),
        help="by name; seen, unseen, goodput, prefill_only, sessions: all of these",
    )
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)), help="true capacity over the requirement")
    parser.add_argument("--reps", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--rounds", type=int, default=1, help="fill all cells evenly, in so many rounds, for runs that may end early"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so many minutes")
    options = parser.parse_args()
    if options.what == "table":
        tables.write(RESULTS, HERE / "RESULTS.md", platform.processor() or platform.machine())
        return
    names = tuple(n for name in options.profiles.split(",") for n in profiles_of(name))
    until_s = time.monotonic() + 60.0 * options.minutes
    ratios = tuple(map(float, options.ratios.split(",")))
    for done in range(1, options.rounds + 1):
        for part in options.parts.split(","):
            run(cells_of(part, names, ratios), math.ceil(options.reps * done / options.rounds), options.jobs, until_s)


if __name__ == "__main__":
    main()
