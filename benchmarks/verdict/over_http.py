"""`check()` over real HTTP: simulated servers just above and just below the requirement, each started afresh.

    python benchmarks/verdict/over_http.py --profile slow --checks 30 --at-once 3

Every check drives a server process of its own through the real load generator, in real time. Rows go to
results/http-PROFILE.csv, the same columns as the study's, for comparison with the virtual-time cells.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from study import FIELDS, RESULTS, requirement, settings  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.simulator.serve import start_simulator


def one(profile: str, ratio: float, rep: int) -> tuple[list[object], str]:
    """One check: its row, and the reason given."""
    wanted = requirement(profile, ratio)
    with (
        start_simulator(profile, seed=rep) as server,
        HttpLoadRunner(server.base_url, server.model, "none", wanted.workload, rep, workers=1) as runner,
    ):
        runner.prepare()
        verdict = check(runner, wanted, settings(profile, rep))
    rate = verdict.measurement.sustainable_rate
    spent = sum(verdict.measurement.spent_s.values())
    figures = [rate.value, rate.low, rate.high] if rate else [math.nan] * 3
    return [rep, verdict.outcome.value, f"{spent:.1f}", *(f"{x:.5g}" for x in figures)], verdict.reason


def main() -> None:
    """Run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="slow")
    parser.add_argument("--checks", type=int, default=30)
    parser.add_argument("--ratios", default="0.95,1.05")
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    ratios = [float(r) for r in options.ratios.split(",")]
    tasks = [(options.profile, ratios[i % len(ratios)], i) for i in range(options.checks)]
    files = {r: Path(RESULTS / f"http-{options.profile}-{r:.2f}.csv") for r in ratios}
    for path in files.values():
        path.write_text(",".join(FIELDS) + "\n")
    began = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        for task, (row, reason) in zip(tasks, pool.map(lambda t: one(*t), tasks), strict=True):
            with files[task[1]].open("a", newline="") as file:
                csv.writer(file).writerow(row)
            print(f"{time.monotonic() - began:6.0f} s  r={task[1]} {row}  {reason}", flush=True)


if __name__ == "__main__":
    main()
