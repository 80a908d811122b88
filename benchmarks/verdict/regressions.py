"""Regression gates on the drawn servers: against a baseline, and base against head in alternation.

    python benchmarks/verdict/regressions.py run --reps 2 --pairs 4 --jobs 1    # raw results, then REGRESSIONS.md
    python benchmarks/verdict/regressions.py table                              # REGRESSIONS.md alone

The head is the same server with longer steps, so that its true rate is lower by 0, 5, 10, 15 or 20% (`slower.py`).

`slower` cells hold measurements of such servers, as the `measure` cells of `study.py` hold those of the unchanged ones.
Comparisons with a baseline are drawn from both. `paired` cells hold whole comparisons in alternation. Cells that are
full are not run again. After a change of the procedure run `study.py run --parts measure` anew, and this with
`--afresh`, which forgets the cells of its own.
"""

from __future__ import annotations

import argparse
import math
import platform
from pathlib import Path

import numpy as np
import regression_tables  # type: ignore[import-not-found,unused-ignore]
import servers  # type: ignore[import-not-found,unused-ignore]
import slower  # type: ignore[import-not-found,unused-ignore]
import study  # type: ignore[import-not-found,unused-ignore]
import tables  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.decisions.paired import PAIR_START_SD
from pytest_gpucap.measure.comparing import Paired, PairedServer, compare
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.simulator.machine import Machine, SharedRunner

HERE = Path(__file__).parent
RESULTS = HERE / "results"
REPORT = HERE / "REGRESSIONS.md"
ALLOWED = 0.05
BASES = 4
"""Measurements of each unchanged server at least: a base, a head and its second run, and one to spare."""
BUDGET = 0.75
"""The tests of the alternation ask for this share of the base's true rate: every head keeps its budget."""
SEED = study.FRESH + 1_000_000
CONFIRMING = 500_000

Row = tuple[int, str, float, float, float, float]


def seed_of(loss: float, rep: int) -> int:
    """A seed of its own for each replication at each loss."""
    return int(SEED + 1000 * round(100 * loss) + rep)


def one_slower(name: str, loss: float, rep: int) -> Row:
    """One estimate of a server that lost a share of its rate. The search begins where that of the base does."""
    found: Row = study.measured(slower.engine_of(name, loss), name, tables.MEASURED_AT, rep, seed_of(loss, 0))
    return found


def one_paired(name: str, loss: float, rep: int) -> Row:
    """Base and head in alternation, confirmed by both started afresh: decision, server seconds and the ratio."""
    cell = ("slower", name, loss) if loss else ("measure", name, tables.MEASURED_AT)
    measurements = [*filter(None, map(regression_tables.rate_of, study.read(*cell)))]
    head_rate = measurements[rep % len(measurements)] if measurements else None
    found = alternated(name, loss, seed_of(loss, rep), head_rate)
    spent_s, decision = found.about.spent_s, found.change.value
    if found.change is RegressionDecision.REGRESSED:
        found = alternated(name, loss, CONFIRMING + seed_of(loss, rep), head_rate, again=True)
        spent_s += found.about.spent_s
        decision = decision if found.change is RegressionDecision.REGRESSED else "not confirmed"
    ratio = found.ratio
    figures = (ratio.value, ratio.low, ratio.high) if ratio else (math.nan,) * 3
    return rep, "INVALID" if found.problems else decision, spent_s, *figures


def alternated(name: str, loss: float, seed: int, head_rate: Interval | None, *, again: bool = False) -> Paired:
    """One comparison as the plugin runs it. The pace of either server differs a little from start to start."""
    starts = np.exp(PAIR_START_SD * np.random.default_rng(seed).standard_normal(2))
    engines = (slower.engine_of(name, 0.0), slower.engine_of(name, loss))
    machine = Machine()
    base, head = (
        PairedServer(SharedRunner(engine.scaled(float(pace)), machine, 2 * seed + side), study.settings(name, seed))
        for side, (engine, pace) in enumerate(zip(engines, starts, strict=True))
    )
    after = set(RegressionDecision) - (set() if again else {RegressionDecision.REGRESSED})
    return compare(base, head, study.requirement(name, 1 / BUDGET), ALLOWED, head_rate, latencies_after=after)


# `study.run` finds them by name, in its worker processes too, which load this file.
study.METHODS.update(slower=one_slower, paired=one_paired)


def main() -> None:
    """Run what is missing and write the tables, or only write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--servers", default=",".join(name for half in servers.KINDS for name in servers.names(half)))
    parser.add_argument("--reps", type=int, default=2, help="measurements of each server at each loss; 2 or more")
    parser.add_argument("--pairs", type=int, default=4, help="comparisons in alternation of each server at each loss")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--afresh", action="store_true", help="forget the results of this script first")
    options = parser.parse_args()
    if options.reps < 2:
        parser.error("--reps: a REGRESSED is confirmed by a second measurement, so 2 is the least")
    if options.what == "run":
        if options.afresh:
            for path in (*RESULTS.glob("slower-*.csv"), *RESULTS.glob("paired-*.csv")):
                path.unlink()
        names = options.servers.split(",")
        study.run([("measure", name, tables.MEASURED_AT) for name in names], BASES, options.jobs)
        study.run([("slower", name, loss) for name in names for loss in slower.LOSSES], options.reps, options.jobs)
        cells = [("paired", name, loss) for name in names for loss in (0.0, *slower.LOSSES)]
        study.run(cells, options.pairs, options.jobs)
    regression_tables.write(RESULTS, REPORT, platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
