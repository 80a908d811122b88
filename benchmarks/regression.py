"""How often a comparison with a baseline is wrong, and what it sees: the table of docs/baselines.md, SIMULATED.

    python benchmarks/regression.py [--times 20000]

Every run draws ln(rate) from the loss that is true, a measurement's own error (sd 1.2%), what one start differs from
the next (sd 1.2%; together 1.7% from run to run), and in 2% of the runs an odd start of -10%. 5% may be lost.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter

import numpy as np

from pytest_gpucap.capacity.regression import START_SD, Change, Side, confirmed, decide, median_of, ratio_of
from pytest_gpucap.capacity.results import Interval

OWN_SD = 0.012
ODD_SHARE, ODD_LN = 0.02, math.log(0.9)
ALLOWED = 0.05
NIGHTS = 10


def run(rng: np.random.Generator, loss: float) -> Interval:
    """One measurement from one start."""
    odd = ODD_LN if rng.random() < ODD_SHARE else 0.0
    rate = 20.0 * (1.0 - loss) * math.exp(rng.normal(0.0, OWN_SD) + rng.normal(0.0, START_SD) + odd)
    return Interval(rate, rate * math.exp(-1.96 * OWN_SD), rate * math.exp(1.96 * OWN_SD))


def compare(rng: np.random.Generator, loss: float, nights: int) -> str:
    """The decision on one pull request, confirmed where it is REGRESSED."""
    base = median_of([run(rng, 0.0) for _ in range(nights)]) if nights > 1 else Side(run(rng, 0.0))
    first = run(rng, loss)
    decision = decide(ratio_of(base, Side(first, repeat=base.repeat)), ALLOWED)
    if decision is Change.REGRESSED and not confirmed(base, first, run(rng, loss), ALLOWED):
        return "not confirmed"
    return decision.value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20_000)
    times = parser.parse_args().times
    outcomes = ("REGRESSED", "not confirmed", "INCONCLUSIVE", "SAME", "IMPROVED")
    print(f"| baseline | true loss | {' | '.join(outcomes)} |")
    print(f"| --- | --- | {' | '.join(['---'] * len(outcomes))} |")
    for nights, label in ((1, "one run"), (NIGHTS, f"median of {NIGHTS} runs")):
        for loss in (0.0, 0.02, 0.05, 0.08, 0.10):
            rng = np.random.default_rng([nights, int(1000 * loss)])
            counts = Counter(compare(rng, loss, nights) for _ in range(times))
            shares = " | ".join(f"{100 * counts[outcome] / times:.2f}%" for outcome in outcomes)
            print(f"| {label} | {100 * loss:.0f}% | {shares} |")


if __name__ == "__main__":
    main()
