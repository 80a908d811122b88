"""False alarms and delays of alarm rules on simulated nights.

    python benchmarks/history/study.py run [--rule NAME] [--nights NAME] [--histories N] [--drops N]
    python benchmarks/history/study.py table

`run` adds to results/alarms.json, `table` prints it as Markdown. Otava is needed for its own row only:
pip install --no-deps apache-otava==0.8.0
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from nights import History, Nights  # type: ignore[import-not-found,unused-ignore]
from rules import RULES  # type: ignore[import-not-found,unused-ignore]
from scipy import stats
from tabulate import tabulate

RESULTS = Path(__file__).parent / "results" / "alarms.json"
LENGTH = 1000
WATCHED = 40
DROPS = (0.02, 0.03, 0.05, 0.10)

PLAIN = Nights()
SCENARIOS = {
    "plain": PLAIN,
    "outliers only ever low, 3% to 15%": replace(PLAIN, kind="low"),
    "low, and the whole night: both runs": replace(PLAIN, kind="low", shared=True),
    "no outliers": replace(PLAIN, outliers=0.0),
    "sd 1.0%": replace(PLAIN, sd=0.010),
    "sd 2.5%": replace(PLAIN, sd=0.025),
    "20 nights before the drop": replace(PLAIN, reference=20),
    "30 nights before the drop": replace(PLAIN, reference=30),
    "120 nights before the drop": replace(PLAIN, reference=120),
    "half of the noise lasts for days": replace(PLAIN, sd=0.012, lasting=0.012),
}


def quiet(task: tuple[str, str, int]) -> tuple[int, int, int]:
    """One history in which nothing changes, from its first night on: false drops, false rises, second runs."""
    name, scenario, seed = task
    nights = SCENARIOS[scenario]
    rule, history = RULES[name](nights), History(nights, np.random.default_rng([1, seed]))
    alarms, runs = [], 0
    for number in range(LENGTH):
        night = history.night(0.0)
        alarms.append(rule.night(number, night.measure))
        runs += night.runs
    return alarms.count("drop"), alarms.count("rise"), runs - LENGTH


def delay(task: tuple[str, str, float, int]) -> int:
    """Nights until a drop is found, its first night counting as 1; 0 where it is not within `WATCHED`."""
    name, scenario, drop, seed = task
    nights = SCENARIOS[scenario]
    rule, history = RULES[name](nights), History(nights, np.random.default_rng([2, seed]))
    for number in range(nights.reference + WATCHED):
        since = number - nights.reference
        alarm = rule.night(number, history.night(drop if since >= 0 else 0.0).measure)
        if since >= 0 and alarm == "drop":
            return int(since + 1)
    return 0


def run(options: argparse.Namespace) -> None:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with ProcessPoolExecutor(options.processes) as pool:
        for name in options.rule or RULES:
            for scenario in options.nights or ["plain"]:
                begun = time.perf_counter()
                alarms = np.array(
                    list(pool.map(quiet, [(name, scenario, seed) for seed in range(options.histories)], chunksize=5))
                ).sum(axis=0)
                delays = {}
                for drop in DROPS:
                    tasks = [(name, scenario, drop, seed) for seed in range(options.drops)]
                    delays[f"{drop:.2f}"] = np.bincount(
                        list(pool.map(delay, tasks, chunksize=20)), minlength=WATCHED + 1
                    ).tolist()
                found[f"{name} | {scenario}"] = {
                    "nights": LENGTH * options.histories,
                    "drops": int(alarms[0]),
                    "rises": int(alarms[1]),
                    "second_runs": int(alarms[2]),
                    "delays": delays,
                    "scatter": asdict(SCENARIOS[scenario]),
                    "wall_s": round(time.perf_counter() - begun, 1),
                }
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n")
                print(name, "|", scenario, found[f"{name} | {scenario}"]["wall_s"], "s", flush=True)


def table() -> str:
    found = json.loads(RESULTS.read_text())
    plain = [key for name in RULES if (key := f"{name} | plain") in found]
    others = [key for scenario in SCENARIOS if (key := f"ours | {scenario}") in found]
    return "\n\n".join(
        _table([(key.partition(" | ")[part], found[key]) for key in keys], head)
        for keys, part, head in ((plain, 0, "rule"), (others, 2, "ours, nights"))
    )


def _table(rows: list[tuple[str, dict[str, Any]]], head: str) -> str:
    headers = [head, "false alarms in 1000 nights (95%)", "false rises", "second runs"]
    headers += [f"{drop:.0%} drop" for drop in DROPS]
    lines = []
    for name, cell in rows:
        per = 1000 / cell["nights"]
        low, high = stats.chi2.ppf(0.025, 2 * cell["drops"]) / 2, stats.chi2.ppf(0.975, 2 * cell["drops"] + 2) / 2
        spread = f"{cell['drops'] * per:.2f} ({np.nan_to_num(low) * per:.2f} to {high * per:.2f})"
        lines.append([name, spread, f"{cell['rises'] * per:.2f}", f"{cell['second_runs'] * per:.0f}"])
        lines[-1] += [_delay(cell["delays"][f"{drop:.2f}"]) for drop in DROPS]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def _delay(counts: list[int]) -> str:
    """Median nights and the share missed; where more than half are missed there is no median."""
    total, missed = sum(counts), counts[0]
    reached = np.cumsum(counts[1:])
    middle = int(np.searchsorted(reached, total / 2)) + 1
    return f"{middle if reached[-1] >= total / 2 else '> 40'}, {missed / total:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--rule", action="append", choices=RULES, help="all of them where none is named")
    parser.add_argument("--nights", action="append", choices=SCENARIOS, help="plain where none is named")
    parser.add_argument("--histories", type=int, default=1000, help=f"of {LENGTH} nights each, nothing changing")
    parser.add_argument("--drops", type=int, default=4000, help="histories with a drop, for each size")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.what == "run":
        run(options)
    else:
        print(table())


if __name__ == "__main__":
    main()
