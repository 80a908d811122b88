"""Does the interval of `measure()` hold where a simulated server's pace wanders more than is assumed?

    python benchmarks/verdict/wander.py --reps 60 [PROFILE ...]

Every profile with pace noise of several sizes and lengths (Ornstein-Uhlenbeck: standard deviation, time constant): the
spread of the estimates, the median half width of their intervals (of the logarithm), and the share of intervals that
hold the true rate, which is that of the profile without the wandering.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from dataclasses import replace

import numpy as np
from study import requirement, settings  # type: ignore[import-not-found,unused-ignore]
from tabulate import tabulate

from pytest_gpucap.measure.procedure import measure
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

WANDERING = ((0.007, 90.0), (0.05, 5.0), (0.15, 5.0), (0.05, 30.0), (0.03, 90.0))


def one(cell: tuple[str, float, float, int]) -> tuple[float, float, float]:
    """Rate, low and high of one measurement; NaN where there was none."""
    name, sd, tau_s, rep = cell
    engine = replace(profiles.load(name).engine, drift_sd=sd, drift_tau_s=tau_s)
    rate = measure(SimRunner(engine, 9000 + rep), requirement(name, 0.7), settings(name, rep)).sustainable_rate
    return (rate.value, rate.low, rate.high) if rate else (math.nan,) * 3


def main() -> None:
    """Measure, and print a row a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", default=["fast", "slow", "h200"])
    parser.add_argument("--reps", type=int, default=60)
    options = parser.parse_args()
    rows = []
    with multiprocessing.Pool() as pool:
        for name in options.profiles:
            truth = profiles.load(name).true_rate_rps
            for sd, tau_s in WANDERING:
                found = np.array(pool.map(one, [(name, sd, tau_s, rep) for rep in range(options.reps)], chunksize=2))
                rate, low, high = found[~np.isnan(found[:, 0])].T
                holds = float(np.mean((low <= truth) & (truth <= high)))
                half = float(np.median(np.log(high / low))) / 2
                spread = float(np.std(np.log(rate), ddof=1))
                rows.append([name, f"{sd:.1%}, {tau_s:g} s", rate.size, f"{spread:.1%}", f"{half:.3f}", f"{holds:.0%}"])
    print(tabulate(rows, ["profile", "wanders by, for", "measured", "sd", "half width", "holds the truth"], "github"))


if __name__ == "__main__":
    main()
