"""Base against head: alternation on one machine, or two separate measurements? Power and server time of both.

    python benchmarks/history/paired.py simulate [--profile fast] [--runs 200] [--drift 0.02]
    python benchmarks/history/paired.py cpu --python .venv-vllm/bin/python [--minutes 12] [--slower 0.05] [--write]

`simulate` draws machines that drift slowly and servers that differ a little from start to start. `cpu` has two equal
vLLM servers on this machine, one of them slowed by a share that is known, and compares them by either procedure in
turn, so that what else the machine does hits both alike. Tables go to standard output.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np
from tabulate import tabulate

from pytest_gpucap.decisions.paired import PAIR_START_SD
from pytest_gpucap.decisions.regression import decide, mean_of, ratio_of
from pytest_gpucap.engines.protocol import LoadRequest, over_http
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.measure import alternation as pairing
from pytest_gpucap.measure import constants
from pytest_gpucap.measure.alternation import Paired, PairedServer, compare
from pytest_gpucap.measure.procedure import measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.results.comparison import RegressionDecision
from pytest_gpucap.results.measured import Interval, Measurement
from pytest_gpucap.session.harness import settings_on
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.machine import Machine, SharedRunner
from pytest_gpucap.simulator.profile import EngineModel
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.vllm_arguments import VllmArguments

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

    def started(engine: EngineModel) -> EngineModel:
        return engine.scaled(math.exp(PAIR_START_SD * rng.standard_normal()))

    def known(engine: EngineModel, seed: int) -> Settings:
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
                PairedServer(SharedRunner(engine, machine, seed + side), known(engine, seed))
                for side, engine in enumerate((started(calm), started(calm.scaled(pace))))
            ]
            pairs.append(compare(sides[0], sides[1], requirement, ALLOWED, latencies_after=()))
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


HEADERS = (
    "steps longer by",
    "procedure",
    "server s (median)",
    "change of rate, mean",
    "its sd",
    *map(str, RegressionDecision),
)


def _row(ratios: Sequence[Interval], spent: Sequence[float]) -> list[str]:
    counts = Counter(decide(ratio, ALLOWED) for ratio in ratios)
    logs = [math.log(ratio.value) for ratio in ratios]
    return [
        f"{median(spent):.0f}",
        f"{math.exp(fmean(logs)) - 1:+.1%}",
        f"{stdev(logs):.1%}",
        *(f"{counts[change] / len(ratios):.0%}" for change in RegressionDecision),
    ]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison of the two real servers."""

    round: int
    procedure: str
    server_s: float
    ratio: Interval | None
    problem: str = ""

    def cells(self) -> list[str]:
        """As the table has it."""
        if self.ratio is None:
            return [str(self.round), self.procedure, f"{self.server_s:.0f}", "", self.problem or "no rate in the time"]
        said = f"{self.ratio.value - 1:+.1%} ({self.ratio.low - 1:+.1%} to {self.ratio.high - 1:+.1%})"
        return [str(self.round), self.procedure, f"{self.server_s:.0f}", said, str(decide(self.ratio, ALLOWED))]


STOPPER = """
import os, select, signal, sys, time
share, period_s, pids = float(sys.argv[1]), 0.1, [int(pid) for pid in sys.argv[2:]]
stopped, began = 0.0, time.monotonic()
while not select.select([sys.stdin], [], [], max(0.0, stopped / share - (time.monotonic() - began)) + period_s)[0]:
    at = time.monotonic()
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(share * period_s)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    stopped += time.monotonic() - at
print(stopped / (time.monotonic() - began))
"""
"""Stops processes for a share of the time, ten times a second, until its input ends; says what share it came to. Where
a stop took longer than it should, the next one waits for it: the share is kept on any machine."""


@contextmanager
def slowed(server: VllmServer, share: float) -> Iterator[None]:
    """A server that stands still for a share of the time: its pace is 1 - share of what it was, whatever it runs."""
    if not share:
        yield
        return
    command = [sys.executable, "-c", STOPPER, str(share), *map(str, sorted(server.pids()))]
    stopper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        said, _ = stopper.communicate()
        print(f"the head stood still for {float(said):.2%} of the time")


def shorten(factor: float) -> None:
    """Phases of both procedures so many times as long."""
    for name in ("WARM_UP_S", "LOW_HOLD_S", "HOLD_S", "SEARCH_HOLD_S", "OPEN_S"):
        setattr(constants, name, factor * getattr(constants, name))
    pairing.BLOCK_S *= factor


class Bench:
    """Two equal real servers, and a clock that says how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._began, self._most_s = time.monotonic(), 60.0 * float(options.minutes)
        self._spec = ServerSpec("synthetic:tiny", python=options.python, args=VllmArguments({"max_model_len": 512}))
        self._limit = LatencyLimit.parse("e2e_p95", options.e2e)
        self._workload = Workload(Length.fixed(64), Length.fixed(32))
        self._rate = float(options.rate)

    def left_s(self) -> float:
        """Seconds until no round may begin."""
        return self._most_s - (time.monotonic() - self._began)

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._began:4.0f} s, load {os.getloadavg()[0]:.1f}] {text}", flush=True)

    @contextmanager
    def servers(self) -> Iterator[tuple[VllmServer, VllmServer]]:
        """Base and head; measures once what the base sustains, which the rate asked for follows from."""
        self.say("starting two servers")
        with start_vllm(self._spec) as base, start_vllm(self._spec) as head:
            known = self._measured(base, 1)
            if (rate := known.sustainable_rate) is None:
                why = "; ".join(map(str, known.problems)) or "time ended"
                self.say(f"what the base sustains was not found, so --rate {self._rate:g} stands: {why}")
            else:
                self.say(f"the base sustains {rate.value:.1f} req/s within {self._limit.limit_s:g} s")
                self._rate = 0.9 * rate.value
            yield base, head

    def paired(self, base: VllmServer, head: VllmServer, number: int) -> Row:
        """Both in alternation."""
        with self._side(base, 1000 + number) as one, self._side(head, 1000 + number) as other:
            found = compare(one, other, self._requirement(), ALLOWED, latencies_after=())
        return Row(number, "paired", found.about.spent_s, found.ratio, "; ".join(map(str, found.problems)))

    def separate(self, base: VllmServer, head: VllmServer, number: int) -> Row:
        """The base measured by itself, then the head."""
        results = [self._measured(server, 2000 + number) for server in (base, head)]
        spent_s = sum(sum(found.spent_s.values()) for found in results)
        before, after = (found.sustainable_rate for found in results)
        if before is None or after is None:
            return Row(
                number, "separate", spent_s, None, "; ".join(str(each) for found in results for each in found.problems)
            )
        return Row(number, "separate", spent_s, ratio_of(mean_of([before]), mean_of([after])))

    def _requirement(self) -> Requirement:
        design = Fraction(self._rate).limit_denominator(1000)
        slo = Slo((self._limit,))
        return Requirement("cpu", design, gpus=1, headroom=Fraction(1), workload=self._workload, slo=slo)

    @contextmanager
    def _side(self, server: VllmServer, seed: int) -> Iterator[PairedServer]:
        most_s = max(90.0, min(240.0, self.left_s()))
        runner = over_http(server, LoadRequest(workload=self._workload, seed=seed))
        try:
            yield PairedServer(runner, settings_on(server, Settings(seed=seed, max_time_s=most_s), None))
        finally:
            runner.close()

    def _measured(self, server: VllmServer, seed: int) -> Measurement:
        with self._side(server, seed) as lone:
            return measure(lone.runner, self._requirement(), lone.settings)


def cpu(options: argparse.Namespace) -> None:
    """Two equal vLLM servers on this machine's CPU, one of them slowed; both procedures in turn until time is over."""
    shorten(options.phases)
    bench, load = Bench(options), os.getloadavg()[0]
    rows: list[Row] = []
    with bench.servers() as (base, head), slowed(head, options.slower):
        number, longest_s = 0, 0.0
        while number == 0 or bench.left_s() > 1.1 * longest_s:
            number, left_s = number + 1, bench.left_s()
            for procedure in (bench.paired, bench.separate) if number % 2 else (bench.separate, bench.paired):
                rows.append(procedure(base, head, number))
                bench.say(" | ".join(rows[-1].cells()))
            longest_s = max(longest_s, left_s - bench.left_s())
    section = _cpu_section(options, rows, load)
    print(section)
    if options.write:
        page = Path(__file__).with_name("PAIRED.md")
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        page.write_text(f"{before}{begin}\n{section}\n{end}{after}", encoding="utf-8")


BEGIN, END = "<!-- from here: paired.py cpu --write -->", "<!-- to here -->"


def _cpu_section(options: argparse.Namespace, rows: Sequence[Row], load: float) -> str:
    """The rows, what they come to, and how they came about."""
    summary = []
    for name in ("paired", "separate"):
        found = [row for row in rows if row.procedure == name and row.ratio is not None]
        logs = [math.log(row.ratio.value) for row in found if row.ratio is not None]
        halves = [math.log(row.ratio.high / row.ratio.low) / 2 for row in found if row.ratio is not None]
        if not found:
            continue
        spent_s, half = fmean(row.server_s for row in found), fmean(halves)
        decided = sum(
            decide(row.ratio, ALLOWED) is RegressionDecision.REGRESSED for row in found if row.ratio is not None
        )
        summary.append(
            [
                name,
                f"{spent_s:.0f}",
                f"{math.exp(fmean(logs)) - 1:+.1%}",
                f"{stdev(logs):.1%}" if len(logs) > 1 else "",
                f"{half:.1%}",
                f"{spent_s * (half / WANTED_HALF) ** 2:.0f}",
                f"{decided} of {len(found)}",
            ]
        )
    headers = (
        "procedure", "server s", "change of rate, mean", "its sd", "half a 95% interval", "server s for one of 4%",
        "REGRESSED",
    )  # fmt: skip
    said = (
        f"Two equal servers (`synthetic:tiny`, {os.cpu_count()} cores, load average {load:.1f} as it began), the head "
        f"made to stand still for {options.slower:.1%} of the time. Both procedures in turn, phases {options.phases:g} "
        f"times as long as usual in both: `paired.py cpu --minutes {options.minutes:g} --phases {options.phases:g} "
        f"--slower {options.slower:g}`."
    )
    each = ("round", "procedure", "server s", "change of rate (95% interval)", "decision")
    tables = [
        tabulate(summary, headers=headers, tablefmt="github", disable_numparse=True),
        tabulate([row.cells() for row in rows], headers=each, tablefmt="github", disable_numparse=True),
    ]
    return "\n\n".join([textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False), *tables])


WANTED_HALF = 0.04
"""Half an interval that shows a loss of 8% where 5% may be lost."""


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
    real.add_argument("--minutes", type=float, default=12.0, help="begin no round that would end later")
    real.add_argument("--phases", type=float, default=0.5, help="length of all phases, of what it is in the plugin")
    real.add_argument("--slower", type=float, default=0.05, help="share of the time that the head stands still")
    real.add_argument("--rate", default="10", help="first guess at the base's rate, req/s")
    real.add_argument("--e2e", default="1s")
    real.add_argument("--write", action="store_true", help="put the section into PAIRED.md")
    real.set_defaults(run=cpu)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
