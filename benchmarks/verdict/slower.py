"""The drawn servers made slower: all steps longer by the factor that costs a known share of the true rate.

    python benchmarks/verdict/slower.py    # slowdowns.csv, where servers are missing: about a minute of CPU each

Latency limits stay as they are, so steps that are longer by 5% cost more than 5% of the rate. At each lower rate the
factor is found at which the worst limit just holds over long runs. A parabola through these smooths what the long runs
are off by. Its value without a loss is how far they are off the true rate, and is taken out. `lost` checks a factor: by
how much the rate falls over long runs of other seeds. Where a latency hardly changes with the rate (a staircase of step
times), or a server tips over by chance (a front end that grows less efficient), no run knows the rate to a few percent.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import servers  # type: ignore[import-not-found,unused-ignore]
from scipy.optimize import brentq

from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.profile import EngineModel, Profile
from pytest_gpucap.simulator.truth import FAR, long_run

SLOWDOWNS = Path(__file__).parent / "slowdowns.csv"
LOSSES = (0.05, 0.10, 0.15, 0.20)
CHECKED = (0.10, 0.20)
FIELDS = ("server", "loss", "factor", "lost")
SEED, CHECK_SEED = 11, 12
REQUESTS = 6e6
"""Over all long runs at one rate; there are 4 to 16 of them. Servers with few requests need more runs."""
NEAR = 0.03
"""Of ln(rate) or ln(factor), around what is expected: the search begins with this on either side."""
WIDTH = 5e-4
"""Of ln(rate) or ln(factor), where the search ends."""


def worst(profile: Profile, log_factor: float, log_rate: float, seed: int) -> float:
    """ln(percentile / limit) of the worst limit at a rate, with steps longer by a factor."""
    runs = round(min(16.0, max(4.0, REQUESTS / 3000 / profile.true_rate_rps)))
    engine = profile.engine.scaled(math.exp(log_factor))
    found = long_run(engine, profile.workload, profile.slo, math.exp(log_rate), runs, seed)
    return math.log(min(FAR, max(found[limit.name] for limit in profile.slo.limits)))


def root(rising: Callable[[float], float], near: float) -> float:
    """Where a function that rises passes zero."""
    half = NEAR
    while rising(near - half) > 0 or rising(near + half) < 0:
        half *= 2
    return float(brentq(rising, near - half, near + half, xtol=WIDTH))


def log_factor(profile: Profile, loss: float, near: float = 0.0, seed: int = SEED) -> float:
    """ln(factor) at which the limits just hold at a rate lower by the loss than the profile's true rate."""
    log_rate = math.log((1 - loss) * profile.true_rate_rps)
    return root(functools.lru_cache(lambda log: worst(profile, log, log_rate, seed)), near)


def log_rate(profile: Profile, factor: float, near: float, seed: int = CHECK_SEED) -> float:
    """ln(rate) at which the limits just hold with steps longer by a factor; it is about `near`."""
    return root(functools.lru_cache(lambda rate: worst(profile, math.log(factor), rate, seed)), near)


def factors(profile: Profile) -> dict[float, float]:
    """The factor for each loss."""
    logs, lost = [log_factor(profile, 0.0)], -np.log1p(-np.array([0.0, *LOSSES]))
    for loss in LOSSES:
        # The next is about as far away as the last was; the first is about half of the loss.
        logs.append(log_factor(profile, loss, logs[-1] + (logs[-1] - logs[-2] if len(logs) > 1 else loss / 2)))
    curve = np.polynomial.Polynomial.fit(lost, logs, 2)
    return {loss: math.exp(curve(-math.log1p(-loss)) - curve(0.0)) for loss in LOSSES}


def lost(profile: Profile, found: Mapping[float, float]) -> dict[float, float]:
    """Share of the rate that a factor costs with other seeds, for some losses."""
    near = math.log(profile.true_rate_rps)
    before = log_rate(profile, 1.0, near)
    return {loss: 1 - math.exp(log_rate(profile, found[loss], near + math.log(1 - loss)) - before) for loss in CHECKED}


@functools.lru_cache
def known() -> Mapping[tuple[str, float], tuple[float, float]]:
    """Factor, and the loss found with other seeds (NaN where it was not looked for), by server and loss."""
    if not SLOWDOWNS.is_file():
        return {}
    with SLOWDOWNS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["server"], float(row["loss"])): (float(row["factor"]), float(row["lost"])) for row in rows}


def engine_of(name: str, loss: float) -> EngineModel:
    """The engine of a drawn server that has lost a share of its true rate."""
    engine = profiles.load(servers.path_of(name)).engine
    return engine.scaled(known()[name, loss][0]) if loss else engine


def rows_of(name: str) -> list[tuple[str, str, str, str]]:
    """A server's rows of the file."""
    profile = profiles.load(servers.path_of(name))
    found = factors(profile)
    checked = lost(profile, found)
    return [
        (name, f"{loss:.2f}", f"{factor:.5f}", f"{checked.get(loss, math.nan):.4f}") for loss, factor in found.items()
    ]


def main() -> None:
    """Add the servers that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    there = {name for name, _ in known()}
    missing = [name for half in servers.KINDS for name in servers.names(half) if name not in there]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for rows in pool.imap(rows_of, missing):
            new = not SLOWDOWNS.exists()
            with SLOWDOWNS.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([FIELDS, *rows] if new else rows)
            print(*rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
