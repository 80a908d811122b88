"""Processor time of a verdict, by server: what the server waits for between open loops.

    python benchmarks/verdict/processor_time.py                        # all drawn servers, two checks each
    python benchmarks/verdict/processor_time.py --profiles seen-stops --reps 4

A simulated server answers in virtual time, so nearly all of the time is that of the estimates. The requests that the
queue model draws for a workload are left out (0.2 to 0.3 s, once in a session). So is what numba compiles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import study  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.estimate import queue_model
from pytest_gpucap.estimate.queue_simulation import QueueServer, Replications, simulate_replications
from pytest_gpucap.estimate.traffic import traffic_for

RATIO = 0.98
"""True capacity over the requirement: so near that most checks make all their cycles."""


@contextmanager
def counted() -> Iterator[list[int]]:
    """The number of simulated requests of each evaluation meanwhile."""
    requests: list[int] = []

    def seen(server: QueueServer, replications: Replications, *others: Any) -> None:
        requests.append(replications.in_flight.size * replications.rows)
        simulate_replications(server, replications, *others)

    with patch.object(queue_model, "simulate_replications", seen):
        yield requests


def main() -> None:
    """Print a row for each server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profiles", default="seen,unseen", help="by name; seen, unseen: all of these")
    parser.add_argument("--reps", type=int, default=2)
    options = parser.parse_args()
    study.one_check("seen-calm", RATIO, 0)
    study.one_check("seen-tails", RATIO, 0)
    print("| server | outcomes | processor s | evaluations | requests simulated |\n|---|---|---|---|---|")
    for name in (n for each in options.profiles.split(",") for n in study.profiles_of(each)):
        traffic_for(study.profile_of(name).workload)
        with counted() as requests:
            began_s = time.process_time()
            outcomes = [study.one_check(name, RATIO, rep)[1] for rep in range(options.reps)]
            each_s = (time.process_time() - began_s) / options.reps
        evaluations, simulated = len(requests) / options.reps, sum(requests) / options.reps
        print(f"| {name} | {', '.join(outcomes)} | {each_s:.2f} | {evaluations:.0f} | {simulated:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
