"""Error rates of one verdict from N starts of a server, where every start has a pace of its own.

    python benchmarks/verdict/starts.py run     # raw checks, one per start: benchmarks/verdict/results/starts-*.csv
    python benchmarks/verdict/starts.py table   # the table of RESULTS.md

A simulated server whose drift has a time constant of a hundred years keeps the pace that it was started with for the
length of a check. So the drift's standard deviation is that from start to start, and there is no other drift. The
truth is the rate of the mean start.
Checks are kept as they come, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import study  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.decisions.pooling import decided, pooled
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.results.measured import Interval, Outcome
from pytest_gpucap.simulator.runner import SimRunner

RESULTS = Path(__file__).parent / "results"
PROFILE = "fast"
SPREADS = (0.007, 0.012, 0.018)
"""Standard deviation of ln(step time) from start to start. That of the rate is larger by the elasticity."""
ELASTICITY = 1.7
"""Of this profile: the rates of starts whose step times spread by 1.2% spread by 2.1%."""
RATIOS = (0.95, 0.98, 1.02, 1.05)
CHECKS = 420
"""Per cell."""
REPEATS = (1, 2, 3, 5)
FIELDS = ("rep", "outcome", "gpu_s", "rate", "low", "high")
LONG_S = 3e9
SEED = 7_700_000


def path_of(spread: float, ratio: float) -> Path:
    """The checks of one cell."""
    return RESULTS / f"starts-{PROFILE}-{spread:.3f}-{ratio:.2f}.csv"


def one_start(spread: float, ratio: float, rep: int) -> tuple[int, str, float, float, float, float]:
    """The check of one start."""
    engine = replace(study.profile_of(PROFILE).engine, drift_sd=spread, drift_tau_s=LONG_S)
    seed = SEED + 1_000_000 * SPREADS.index(spread) + 10_000 * RATIOS.index(ratio) + rep
    verdict = check(SimRunner(engine, seed), study.requirement(PROFILE, ratio), study.settings(PROFILE, seed))
    rate, nan = verdict.measurement.sustainable_rate, math.nan
    figures = (rate.value, rate.low, rate.high) if rate else (nan, nan, nan)
    return rep, verdict.outcome.value, sum(verdict.measurement.spent_s.values()), *figures


def run(starts: int) -> None:
    """Fill the cells, all of them evenly."""
    done = {(spread, ratio): len(rows_of(spread, ratio)) for spread in SPREADS for ratio in RATIOS}
    for rep in range(starts):
        for (spread, ratio), have in done.items():
            if rep >= have:
                path = path_of(spread, ratio)
                new = not path.exists()
                with path.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file)
                    if new:
                        writer.writerow(FIELDS)
                    writer.writerow(one_start(spread, ratio, rep))


def rows_of(spread: float, ratio: float) -> list[dict[str, str]]:
    """The checks so far."""
    path = path_of(spread, ratio)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def verdict_of(rows: Sequence[dict[str, str]], design_rps: float) -> Outcome:
    """One verdict from the starts of `rows`; a single one is the check's own."""
    if len(rows) == 1:
        return Outcome(rows[0]["outcome"])
    rates = [Interval(float(row["rate"]), float(row["low"]), float(row["high"])) for row in rows]
    return decided(pooled(rates), design_rps)


def table() -> Iterable[str]:
    """The table's lines. Verdicts of N starts use N checks each, none twice."""
    truth_rps = study.profile_of(PROFILE).true_rate_rps
    heads = (
        "sd of ln(rate) between starts",
        "starts",
        "verdicts per cell",
        f"wrong at r = {' / '.join(f'{ratio:.2f}' for ratio in RATIOS)}, %",
        "undecided, same, %",
        "95% interval covers the mean start, %",
    )
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for spread in SPREADS:
        for repeats in REPEATS:
            wrong, undecided, covered, verdicts = [], [], [], []
            for ratio in RATIOS:
                rows = rows_of(spread, ratio)
                groups = [rows[i : i + repeats] for i in range(0, len(rows) - repeats + 1, repeats)]
                found = Counter(verdict_of(group, truth_rps / ratio) for group in groups)
                bad = Outcome.FAIL if ratio > 1 else Outcome.PASS
                wrong.append(f"{100 * found[bad] / len(groups):.1f}")
                undecided.append(f"{100 * found[Outcome.INCONCLUSIVE] / len(groups):.0f}")
                verdicts.append(len(groups))
                for group in groups:
                    each = [Interval(float(row["rate"]), float(row["low"]), float(row["high"])) for row in group]
                    rate = each[0] if repeats == 1 else pooled(each).rate
                    covered.append(rate.low <= truth_rps <= rate.high)
            cover = 100 * sum(covered) / len(covered)
            yield (
                f"| {100 * ELASTICITY * spread:.1f}% | {repeats} | {min(verdicts)} | {' / '.join(wrong)} | "
                f"{' / '.join(undecided)} | {cover:.1f} |"
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--starts", type=int, default=CHECKS, help="checks per cell")
    options = parser.parse_args()
    if options.what == "run":
        run(options.starts)
    else:
        print("\n".join(table()))


if __name__ == "__main__":
    main()
