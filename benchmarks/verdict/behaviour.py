"""Whether a change of the code changed the procedure: verdicts, rates and intervals on simulated servers, to the digit.

    python benchmarks/verdict/behaviour.py record    # behaviour.json beside this file: before the change
    python benchmarks/verdict/behaviour.py compare   # after it: exit 1 and a line for everything that differs

200 checks, 40 measurements and 8 sweeps over all profiles: one or two minutes on two cores. Every seed is fixed. On one
machine, with one version of NumPy and Numba, all figures are equal, or the procedure does something else.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

from study import requirement, settings  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.measure.procedure import check, measure, sweep
from pytest_gpucap.results.measured import Interval, Measurement
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner

RECORD = Path(__file__).with_name("behaviour.json")
RATIOS = (0.5, 0.95, 1.0, 1.05, 2.0)
REPETITIONS = 5
SEED = 7_000_000

Task = tuple[str, str, float, int]


def tasks() -> list[Task]:
    """(method, profile, true capacity over requirement, repetition)."""
    checks = [
        ("check", name, ratio, rep) for name in profiles.names() for ratio in RATIOS for rep in range(REPETITIONS)
    ]
    measurements = [("measure", name, 1.1, rep) for name in profiles.names() for rep in range(REPETITIONS)]
    return [*checks, *measurements, *(("sweep", name, 1.1, 0) for name in profiles.names())]


def key_of(task: Task) -> str:
    """The name of a task in the record."""
    method, name, ratio, rep = task
    return f"{method} {name} {ratio:g} #{rep}"


def figures(measurement: Measurement) -> list[object]:
    """What must not change: the rates with their intervals, what binds, the time spent, how many problems there are."""
    return [
        _interval(measurement.sustainable_rate),
        _interval(measurement.saturated_rate),
        measurement.binding,
        sum(measurement.spent_s.values()),
        len(measurement.samples),
        len(measurement.problems),
    ]


def _interval(found: Interval | None) -> list[float] | None:
    return None if found is None else [found.value, found.low, found.high]


def carried_out(task: Task) -> tuple[str, list[object]]:
    """One task's key and what it found."""
    method, name, ratio, rep = task
    runner = SimRunner(profiles.load(name).engine, SEED + 10_000 + rep)
    wanted, how = requirement(name, ratio), settings(name, SEED + rep)
    if method == "check":
        verdict = check(runner, wanted, how)
        return key_of(task), [verdict.outcome.value, verdict.reason, *figures(verdict.measurement)]
    if method == "measure":
        return key_of(task), figures(measure(runner, wanted, how))
    curve = sweep(runner, wanted, how)
    return key_of(task), [
        curve.knee_rps,
        _interval(curve.batching_gain),
        len(curve.points),
        *figures(curve.measurement),
    ]


def differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """A line for every task that found something else."""
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in before | now if before.get(key) != now.get(key)]


def main() -> int:
    """Record, or compare with what was recorded."""
    if sys.argv[1:] not in (["record"], ["compare"]):
        print(__doc__)
        return 2
    with multiprocessing.Pool() as pool:
        now = json.loads(json.dumps(dict(pool.imap(carried_out, tasks()))))
    if sys.argv[1] == "record":
        RECORD.write_text(json.dumps(now, indent=0) + "\n", encoding="utf-8")
        print(f"{RECORD}: {len(now)} tasks")
        return 0
    found = differences(json.loads(RECORD.read_text(encoding="utf-8")), now)
    print("\n".join(found) or f"{len(now)} tasks, all equal to the last digit")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
