"""`check()` and `measure()` of simulated fleets of known capacity, each driven as if it were one server.

    python benchmarks/fleet/study.py run --reps 40      # raw results: benchmarks/fleet/results/study.jsonl
    python benchmarks/fleet/study.py table

The truth is found as for one server (`pytest_gpucap.simulator.truth`): the rate at which the worst limit just holds
over long runs. Every figure is kept as it comes, so an interrupted run goes on where it stopped. One process, on
purpose: run it with ``chrt -i 0`` beside other work. Times are virtual, so other work changes nothing but the wait.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pytest_gpucap.load import schedule
from pytest_gpucap.load.latencies import limited
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import FleetSimRunner, Policy
from pytest_gpucap.simulator.profile import EngineModel, Profile

RESULTS = Path(__file__).parent / "results" / "study.jsonl"
SIZES = (1, 2, 4, 8)
RATIOS = (0.95, 1.05)
MAX_TIME_S = 600.0
SEED = 7_300_000
"""Where the seeds of checks begin; none of them was used by the study of single servers."""
RUN_S, DISCARD_S = 3000.0, 300.0
REPLICA_RUNS = 16
"""Long runs times replicas behind one percentile of the truth."""
CLOSE = 0.002
"""Of ln(percentile / limit), between the last two rates of the search; a straight line bridges the rest."""
SLOWER = 1.25
"""The slow replica of a mixed fleet takes this much longer for everything."""


def models(profile: Profile, replicas: int, mix: str) -> list[EngineModel]:
    """The engines of a fleet: all alike, or with one slow one."""
    found = [profile.engine] * replicas
    return [profile.engine.scaled(SLOWER), *found[1:]] if mix == "one slow" else found


def worst_ratio(profile: Profile, engines: list[EngineModel], policy: str, rate_rps: float) -> float:
    """The worst of the limits' percentiles over their limits, over long runs at a rate; without ITL."""
    warm = [each.settled() for each in engines]
    values: dict[str, list[np.ndarray]] = {limit.name: [] for limit in profile.slo.limits}
    for run in range(max(2, REPLICA_RUNS // len(engines))):
        runner = FleetSimRunner(warm, policy, 900_000 + run)
        runner.run(schedule.open_loop(profile.workload, rate_rps, DISCARD_S, 7, 2 * run))
        span = runner.run(schedule.open_loop(profile.workload, rate_rps, RUN_S - DISCARD_S, 7, 2 * run + 1))
        runner.settle(600.0)
        journal = runner.journal()
        rows = slice(span.first_row, span.end_row)
        ok = journal.status[rows] == Status.OK
        for limit in profile.slo.limits:
            values[limit.name].append(np.where(ok, limited(journal, limit)[rows], np.inf))
    return max(
        float(np.nanquantile(np.concatenate(values[limit.name]), float(limit.quantile), method="higher")) / limit.most
        for limit in profile.slo.limits
    )


def truth_rps(profile: Profile, engines: list[EngineModel], policy: str) -> float:
    """The rate at which the worst limit just holds."""

    def worst(log_rate: float) -> float:
        return math.log(min(1e3, worst_ratio(profile, engines, policy, math.exp(log_rate))))

    guess = math.log(profile.true_rate_rps * len(engines))
    low, high = guess - 0.02, guess + 0.05
    f_low, f_high = worst(low), worst(high)
    while f_low > 0:
        high, f_high, low = low, f_low, low - 0.1
        f_low = worst(low)
    while f_high < 0:
        low, f_low, high = high, f_high, high + 0.05
        f_high = worst(high)
    for _ in range(6):
        middle = low + (high - low) * min(0.8, max(0.2, f_low / (f_low - f_high)))
        f_middle = worst(middle)
        if f_middle > 0:
            high, f_high = middle, f_middle
        else:
            low, f_low = middle, f_middle
        if min(abs(f_low), abs(f_high)) < CLOSE:
            break
    return math.exp(low + (high - low) * f_low / (f_low - f_high))


def carried(cell: dict[str, Any], truth: float) -> dict[str, Any]:
    """One check or measurement of a fleet; seconds are those of the fleet, not of its GPUs together."""
    profile = profiles.load(cell["profile"])
    engines = models(profile, cell["replicas"], cell["mix"])
    seed = SEED + cell["rep"]
    runner = FleetSimRunner(engines, cell["policy"], seed + 10_000)
    settings = Settings(MAX_TIME_S, seed, runner.max_num_seqs, runner.kv_tokens, runner.max_num_batched_tokens)
    qps = Fraction(truth / cell["ratio"])
    wanted = Requirement("fleet", qps, 1, Fraction(1), 1, profile.workload, profile.slo)
    began = time.perf_counter()
    if cell["what"] == "check":
        verdict = check(runner, wanted, settings)
        outcome, measured = verdict.outcome.value, verdict.measurement
    else:
        measured = measure(runner, wanted, settings)
        outcome = "INVALID" if measured.problems else "OK"
    rate = measured.sustainable_rate
    return {
        "outcome": outcome,
        "why": [str(problem) for problem in measured.problems],
        "fleet_s": sum(measured.spent_s.values()),
        "rate": rate.value if rate else None,
        "low": rate.low if rate else None,
        "high": rate.high if rate else None,
        "wall_s": round(time.perf_counter() - began, 3),
    }


def cells(profile: str, reps: int) -> Iterator[dict[str, Any]]:
    """What is to be done, the most wanted first."""

    def of(replicas: int, policy: Policy, mix: str, each: range) -> Iterator[dict[str, Any]]:
        common = {"profile": profile, "replicas": replicas, "policy": policy.value, "mix": mix}
        for rep in each:
            for ratio in RATIOS:
                yield {"what": "check", **common, "ratio": ratio, "rep": rep}
            yield {"what": "measure", **common, "ratio": 1.0, "rep": rep}

    for first in range(0, reps, 40):
        some = range(first, min(reps, first + 40))
        yield from of(1, Policy.ROUND_ROBIN, "equal", some)
        for replicas in SIZES[1:]:
            for policy in Policy:
                yield from of(replicas, policy, "equal", some)
        for policy in Policy:
            yield from of(4, policy, "one slow", some)


def known(path: Path) -> dict[str, dict[str, Any]]:
    """Results so far, by what they are of."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        found[json.dumps(row["of"], sort_keys=True)] = row
    return found


def run(profile: str, reps: int, path: Path) -> None:
    done = known(path)
    with path.open("a") as file:

        def once(of: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
            row = {"of": of, **found}
            file.write(json.dumps(row) + "\n")
            file.flush()
            return done.setdefault(json.dumps(of, sort_keys=True), row)

        for cell in cells(profile, reps):
            of = {"what": "truth", **{key: cell[key] for key in ("profile", "replicas", "policy", "mix")}}
            row = done.get(json.dumps(of, sort_keys=True))
            if row is None:
                loaded = profiles.load(profile)
                engines = models(loaded, cell["replicas"], cell["mix"])
                row = once(of, {"rate": truth_rps(loaded, engines, cell["policy"])})
                print(of, row["rate"], flush=True)
            if json.dumps(cell, sort_keys=True) not in done:
                once(cell, carried(cell, row["rate"]))


def table(profile: str, path: Path) -> None:
    rows = list(known(path).values())
    print(
        "| replicas | policy | truth, req/s | over N x one | checks a cell | wrong at 0.95 | wrong at 1.05 | "
        "undecided | fleet s, median | measure: bias | sd | in its 95% interval |"
    )
    print("| --- " * 12 + "|")
    one = next(r["rate"] for r in rows if r["of"]["what"] == "truth" and r["of"]["replicas"] == 1)
    for truth in rows:
        if truth["of"]["what"] != "truth" or truth["of"]["profile"] != profile:
            continue
        of = truth["of"]
        mine = [r for r in rows if r is not truth and all(r["of"].get(k) == v for k, v in of.items() if k != "what")]
        checks = [r for r in mine if r["of"]["what"] == "check"]
        if not checks:
            continue
        below = [r["outcome"] for r in checks if r["of"]["ratio"] < 1]
        above = [r["outcome"] for r in checks if r["of"]["ratio"] > 1]
        open_ended = sum(r["outcome"] == "INCONCLUSIVE" for r in checks)
        invalid = sum(r["outcome"] == "INVALID" for r in checks)
        measured = [r for r in mine if r["of"]["what"] == "measure" and r["rate"]]
        errors = np.log([r["rate"] / truth["rate"] for r in measured])
        inside = sum(r["low"] <= truth["rate"] <= r["high"] for r in measured)
        name = of["policy"] + ("" if of["mix"] == "equal" else f", {of['mix']}")
        also = f" (+{invalid} INVALID)" if invalid else ""
        print(
            f"| {of['replicas']} | {name} | {truth['rate']:.2f} | {truth['rate'] / of['replicas'] / one - 1:+.1%} | "
            f"{min(len(below), len(above))} | {below.count('PASS')} of {len(below)} | "
            f"{above.count('FAIL')} of {len(above)} | {open_ended} of {len(checks)}{also} | "
            f"{np.median([r['fleet_s'] for r in checks]):.0f} | {errors.mean():+.1%} | {errors.std(ddof=1):.1%} | "
            f"{inside} of {len(measured)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "table"))
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--reps", type=int, default=40)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.do == "run":
        run(options.profile, options.reps, options.results)
    else:
        table(options.profile, options.results)


if __name__ == "__main__":
    main()
