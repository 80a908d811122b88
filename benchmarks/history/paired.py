"""Base against head: alternation on one machine, or two separate measurements? Power and server time of both.

    python benchmarks/history/paired.py simulate [--profile fast] [--runs 200] [--drift 0.02]
    python benchmarks/history/paired.py cpu --python .venv-vllm/bin/python [--head-args "--max-num-seqs 6"]

`simulate` draws machines that drift slowly and servers that differ a little from start to start. `cpu` has two real
vLLM servers on this machine: in alternation as the plugin runs it, or (``--procedure separate``) measured one after the
other. Tables go to standard output.
"""

from __future__ import annotations

import argparse
import math
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from tabulate import tabulate

from pytest_gpucap.capacity.paired import PAIR_START_SD
from pytest_gpucap.capacity.regression import Change, decide, mean_of, ratio_of
from pytest_gpucap.capacity.results import Interval
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.measure.pairing import Paired, Side, compare
from pytest_gpucap.measure.procedure import measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.server.spec import ServerSpec
from pytest_gpucap.server.vllm import start_vllm
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.machine import Machine, SharedRunner
from pytest_gpucap.simulator.profile import Engine
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.suite.pairs import parsed

ALLOWED = 0.05
PACES = (1.0, 1.03, 1.05, 1.07)
REPEATS = (1, 2, 4, 8)
DRIFT_TAU_S = 1200.0


def simulate(options: argparse.Namespace) -> None:
    """Power at several losses: paired, and separate measurements repeated so many times."""
    profile = profiles.load(options.profile)
    calm = replace(profile.engine, drift_sd=options.drift, drift_tau_s=DRIFT_TAU_S)
    rate = Fraction(profile.true_rate_rps * 0.9).limit_denominator(1000)
    requirement = Requirement(
        profile.name, qps=rate, gpus=1, headroom=Fraction(1), workload=profile.workload, slo=profile.slo
    )
    rng = np.random.default_rng(options.seed)

    def started(engine: Engine) -> Engine:
        return engine.scaled(math.exp(PAIR_START_SD * rng.standard_normal()))

    def known(engine: Engine, seed: int) -> Settings:
        return Settings(seed=seed, max_num_seqs=engine.max_num_seqs, kv_tokens=engine.kv_tokens)

    separate: dict[float, list[tuple[Interval, float]]] = {}
    for pace in PACES:
        separate[pace] = []
        for run in range(options.runs):
            engine, seed = started(calm.scaled(pace)), options.seed + int(1e6 * pace) + run
            found = measure(SimRunner(engine, seed), requirement, known(engine, seed))
            if found.sustainable_rate is not None:
                separate[pace].append((found.sustainable_rate, sum(found.spent_s.values())))
    rows = []
    for pace in PACES:
        pairs: list[Paired] = []
        for run in range(options.runs):
            machine, seed = Machine(), options.seed + int(2e6 * pace) + 2 * run
            sides = [
                Side(SharedRunner(engine, machine, seed + side), known(engine, seed))
                for side, engine in enumerate((started(calm), started(calm.scaled(pace))))
            ]
            pairs.append(compare(sides[0], sides[1], requirement, ALLOWED))
        ratios = [found.ratio for found in pairs if found.ratio is not None]
        rows.append([f"{pace - 1:.0%}", "paired", *_row(ratios, [found.about.spent_s for found in pairs])])
        for repeats in REPEATS:
            drawn, spent = [], []
            for _ in range(options.runs):
                before, after = (rng.integers(len(separate[p]), size=repeats) for p in (1.0, pace))
                bases, heads = [separate[1.0][i] for i in before], [separate[pace][i] for i in after]
                drawn.append(ratio_of(mean_of([b for b, _ in bases]), mean_of([h for h, _ in heads])))
                spent.append(sum(seconds for _, seconds in (*bases, *heads)))
            rows.append([f"{pace - 1:.0%}", f"separate, {repeats} of each", *_row(drawn, spent)])
    print(f"SIMULATED {profile.name}, drift sd {options.drift:.1%} over {DRIFT_TAU_S:.0f} s, {options.runs} runs a row")
    print(tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True))


HEADERS = ("steps longer by", "procedure", "server s (median)", "change of rate, mean", "its sd", *map(str, Change))


def _row(ratios: Sequence[Interval], spent: Sequence[float]) -> list[str]:
    counts = Counter(decide(ratio, ALLOWED) for ratio in ratios)
    logs = [math.log(ratio.value) for ratio in ratios]
    return [
        f"{median(spent):.0f}",
        f"{math.exp(fmean(logs)) - 1:+.1%}",
        f"{stdev(logs):.1%}",
        *(f"{counts[change] / len(ratios):.0%}" for change in Change),
    ]


def cpu(options: argparse.Namespace) -> None:
    """Two real servers on this machine's CPU."""
    requirement = Requirement(
        "cpu",
        qps=Fraction(options.rate),
        gpus=1,
        headroom=Fraction(1),
        workload=Workload(Length.fixed(64), Length.fixed(32)),
        slo=Slo((LatencyLimit.parse("e2e_p95", options.e2e),)),
    )
    base = ServerSpec("synthetic:tiny", python=options.python, args={"max_model_len": 512})
    head = replace(base, args={**base.args, **parsed(options.head_args)})
    rows: list[list[Any]] = []
    with start_vllm(base) as one, start_vllm(head) as other:

        def side(server: Any, seed: int) -> Side:
            runner = HttpLoadRunner(server.base_url, server.model, str(server.api_key), requirement.workload, seed)
            known = Settings(
                seed=seed, max_time_s=options.max_time, max_num_seqs=server.max_num_seqs, kv_tokens=server.kv_tokens
            )
            return Side(runner, known)

        for run in range(options.runs):
            if options.procedure == "paired":
                sides = side(one, 1000 + run), side(other, 1000 + run)
                found = compare(sides[0], sides[1], requirement, ALLOWED)
                for each in sides:
                    each.runner.close()
                rows.append(_cpu_row("paired", found.ratio, found.about.spent_s, found.problems))
                differences = " ".join(f"{pair.difference:+.3f}" for pair in found.pairs)
                held = f"{found.about.concurrency} in flight, elasticity {found.elasticity:.2f}"
                print(f"{held}, ln(head / base) of the pairs: {differences}", flush=True)
            else:
                began = time.monotonic()
                rates = []
                for server in (one, other):
                    lone = side(server, 2000 + run)
                    rates.append(measure(lone.runner, requirement, lone.settings).sustainable_rate)
                    lone.runner.close()
                before, after = rates
                ratio = None if before is None or after is None else ratio_of(mean_of([before]), mean_of([after]))
                rows.append(_cpu_row("separate", ratio, time.monotonic() - began, ()))
            print(rows[-1], flush=True)
    print(f"vLLM on the CPU, head {shlex.quote(options.head_args)}")
    headers = ("procedure", "server s", "change of rate (95% interval)", "decision", "problems")
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


def _cpu_row(name: str, ratio: Interval | None, spent_s: float, problems: Sequence[str]) -> list[str]:
    said = "" if ratio is None else f"{ratio.value - 1:+.1%} ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})"
    decision = "" if ratio is None else str(decide(ratio, ALLOWED))
    return [name, f"{spent_s:.0f}", said, decision, "; ".join(problems)]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    simulated = commands.add_parser("simulate")
    simulated.add_argument("--profile", default="fast")
    simulated.add_argument("--runs", type=int, default=200)
    simulated.add_argument("--drift", type=float, default=0.02)
    simulated.add_argument("--seed", type=int, default=1)
    simulated.set_defaults(run=simulate)
    real = commands.add_parser("cpu")
    real.add_argument("--python", default=".venv-vllm/bin/python")
    real.add_argument("--head-args", default="")
    real.add_argument("--rate", default="4")
    real.add_argument("--e2e", default="3s")
    real.add_argument("--runs", type=int, default=1)
    real.add_argument("--max-time", type=float, default=180.0)
    real.add_argument("--procedure", choices=("paired", "separate"), default="paired")
    real.set_defaults(run=cpu)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
