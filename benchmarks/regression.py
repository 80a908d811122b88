"""How often a comparison with a baseline is wrong, and what it finds: the tables of docs/baselines.md, SIMULATED.

    python benchmarks/regression.py [--times 20000]
    python benchmarks/regression.py --profiles fast slow [--checks 120]

Every run draws ln(rate) around the true loss. Its error has three parts: the measurement's own (sd 1.2%), that of one
server start (sd 1.2%; together 1.7% from run to run), and in 2% of the runs an odd start of -10%. 5% may be lost.

With profiles, runs are measured instead of drawn: `--checks` sessions on simulated servers whose rates differ by 1.2%
from start to start. Each is a check at 85% of the true rate, and a `measure` where the check did not learn the rate
well enough, as in the plugin. Every comparison draws a base, a head and the head's second run from these sessions.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np

from pytest_gpucap.decisions.pooling import pooled
from pytest_gpucap.decisions.regression import (
    START_SD,
    ComparedRate,
    confirmed,
    decide,
    head_of,
    median_of,
    own_errors,
    ratio_of,
)
from pytest_gpucap.history.compare import PRECISE
from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.profile import Profile
from pytest_gpucap.simulator.runner import SimRunner

OWN_SD = 0.012
ODD_SHARE, ODD_LN = 0.02, math.log(0.9)
ALLOWED = 0.05
NIGHTS = 10
OUTCOMES = ("REGRESSED", "not confirmed", "INCONCLUSIVE", "SAME", "IMPROVED")
ELASTICITIES = {"fast": 1.6, "slow": 2.6}
"""Relative loss of a profile's sustainable rate per relative increase of its step times."""


def run(rng: np.random.Generator, loss: float, start_sd: float = START_SD, odd_share: float = ODD_SHARE) -> Interval:
    """One measurement from one start."""
    odd = ODD_LN if rng.random() < odd_share else 0.0
    rate = 20.0 * (1.0 - loss) * math.exp(rng.normal(0.0, OWN_SD) + rng.normal(0.0, start_sd) + odd)
    return Interval(rate, rate * math.exp(-1.96 * OWN_SD), rate * math.exp(1.96 * OWN_SD))


def compare(rng: np.random.Generator, loss: float, nights: int) -> str:
    """The decision on one pull request, confirmed where it is REGRESSED."""
    base = median_of([run(rng, 0.0) for _ in range(nights)]) if nights > 1 else ComparedRate(run(rng, 0.0))
    return decided(base, lambda: run(rng, loss))


def drawn(rng: np.random.Generator, bases: Sequence[Interval], heads: Sequence[Interval]) -> str:
    """The same, with runs drawn from measured ones."""
    return decided(ComparedRate(bases[int(rng.integers(len(bases)))]), lambda: heads[int(rng.integers(len(heads)))])


def several(rng: np.random.Generator, loss: float, starts: int, start_sd: float, allowed: float, *, again: bool) -> str:
    """The decision on several starts a side (`--gpucap-repeat`), none of them odd."""

    def side(lost: float) -> Interval:
        return pooled([run(rng, lost, start_sd, odd_share=0.0) for _ in range(starts)]).rate

    return decided(ComparedRate(side(0.0), math.inf), lambda: side(loss), allowed, repeated=True, again=again)


def decided(
    base: ComparedRate,
    head: Callable[[], Interval],
    allowed: float = ALLOWED,
    *,
    repeated: bool = False,
    again: bool = True,
) -> str:
    """The decision on a head; a second run confirms a REGRESSED.

    Args:
        base: the baseline's rate.
        head: measures the head once more.
        allowed: share of the rate that may be lost.
        repeated: each rate is of several starts and contains their spread.
        again: whether a REGRESSED is measured again.
    """
    first = head()
    decision = decide(ratio_of(base, head_of([first], base, spread_known=repeated)), allowed)
    if not again or decision is not RegressionDecision.REGRESSED:
        return decision.value
    return decision.value if confirmed(base, first, head(), allowed, spread_known=repeated) else "not confirmed"


def session(profile: Profile, requirement: Requirement, pace: float, seed: int) -> Interval | None:
    """The rate that one session on a simulated server of this pace compares; None where it found none."""
    engine = profile.engine.scaled(pace)
    settings = Settings(seed=seed, max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)
    found = [check(SimRunner(engine, seed), requirement, settings).measurement.sustainable_rate]
    if found[0] is None or max(own_errors(found[0])) > PRECISE:
        found.append(measure(SimRunner(engine, seed), requirement, settings).sustainable_rate)
    return min((rate for rate in found if rate is not None), key=lambda rate: max(own_errors(rate)), default=None)


def measured(name: str, checks: int) -> dict[float, list[Interval]]:
    """Sessions by the true loss: none, and steps long enough to lose about 10%."""
    profile = profiles.load(name)
    rate = Fraction(0.85 * profile.true_rate_rps).limit_denominator(1000)
    requirement = Requirement(name, rate, gpus=1, headroom=Fraction(1), workload=profile.workload, slo=profile.slo)
    rng = np.random.default_rng(3)
    found: dict[float, list[Interval]] = {}
    for loss in (0.0, 0.10):
        paces = np.exp((rng.normal(0.0, START_SD, checks) - math.log(1.0 - loss)) / ELASTICITIES[name])
        rates = (session(profile, requirement, float(pace), 5000 + run) for run, pace in enumerate(paces))
        found[loss] = [each for each in rates if each is not None]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20_000)
    parser.add_argument("--profiles", nargs="*", choices=sorted(ELASTICITIES), default=[])
    parser.add_argument("--checks", type=int, default=120)
    options = parser.parse_args()
    print(f"| baseline | true loss | {' | '.join(OUTCOMES)} |")
    print(f"| --- | --- | {' | '.join(['---'] * len(OUTCOMES))} |")
    for name in options.profiles:
        pool = measured(name, options.checks)
        typical = math.exp(np.mean([math.log(rate.value) for rate in pool[0.0]]))
        for rates in pool.values():
            rng = np.random.default_rng(0)
            draw = functools.partial(drawn, rng, pool[0.0], rates)
            lost = 1 - math.exp(np.mean([math.log(rate.value) for rate in rates])) / typical
            print_row(f"`{name}`, one run", lost, (draw() for _ in range(options.times)), options.times)
    if options.profiles:
        return
    for nights, label in ((1, "one run"), (NIGHTS, f"median of {NIGHTS} runs")):
        for loss in (0.0, 0.02, 0.05, 0.08, 0.10):
            rng = np.random.default_rng([nights, int(1000 * loss)])
            print_row(label, loss, (compare(rng, loss, nights) for _ in range(options.times)), options.times)


def print_row(label: str, loss: float, outcomes: Iterable[str], times: int) -> None:
    """One row: the share of each outcome."""
    counts = Counter(outcomes)
    shares = " | ".join(f"{100 * counts[outcome] / times:.2f}%" for outcome in OUTCOMES)
    print(f"| {label} | {100 * loss:.0f}% | {shares} |", flush=True)


if __name__ == "__main__":
    main()
