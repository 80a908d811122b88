"""A load on 1,000 GPUs, as far as one small machine can tell: arithmetic, and runs in virtual time.

    python benchmarks/fleet/thousand.py            # under five minutes; also writes results/thousand.json

Measured here: building, splitting and sending the schedule; 1,000 simulated replicas behind every policy; the same load
split over one generator per node of eight, and the merged journal; clocks of real processes. Taken from elsewhere, with
the place named: events per second of a load worker, the cost of telemetry, GPU seconds of a check.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pytest_gpucap.fleet.clock_offset import MOST_DRIFT, read_offset
from pytest_gpucap.fleet.remote_messages import Phase, column, encoded
from pytest_gpucap.fleet.remote_runner import ProcessRunner
from pytest_gpucap.fleet.split_phase import split
from pytest_gpucap.fleet.split_runner import CLOCK_SHARE, Part, SplitRunner
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import LoadPhase, OpenLoop, PhaseSpan, Progress
from pytest_gpucap.load.runner import EVENTS_PER_WORKER, REQUESTS_PER_WORKER
from pytest_gpucap.load.shared_memory import HISTOGRAM_BINS, HistogramKind, PhaseTable
from pytest_gpucap.measure.procedure import check
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import Requirement
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.fleet import FleetSimRunner, Policy

RESULTS = Path(__file__).parent / "results" / "thousand.json"
GPUS_PER_NODE = 8
SHARE = 0.95
"""Of what the replicas sustain one by one: the load of the run in virtual time."""
PEAK_EVENTS = 103_000
"""Events per second on one core, at 36% of it (benchmarks/loadgen/RESULTS.md, "Peak and scaling")."""
MOST_EVENTS = 193_000
"""Events per second of one worker at its limit (the same table, 16 cores)."""
PAGE_BYTES, PAGES_PER_S, TELEMETRY_CORE = 57_000, 2, 0.0064
"""A server's metrics page, how often it is read, and the core share of all telemetry of one GPU (benchmarks/RESULTS.md,
"Telemetry")."""
CHECK_S = (35.0, 68.0)
"""GPU seconds of one check of one replica (docs/statistics.md): of an easy one, and the median over drawn servers."""
PORTS = 60_999 - 32_768 + 1
"""Linux's usual range of local ports, for one source address and one destination."""

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


def schedules(phase: OpenLoop, build_s: float, nodes: int) -> dict[str, Any]:
    """What the rows of a phase cost before they are sent."""
    pieces, split_s = timed(lambda: split(phase, nodes))

    def messages() -> list[bytes]:
        found = []
        for piece in pieces:
            assert isinstance(piece, OpenLoop)
            prompts, outputs = column(piece.prompt_tokens), column(piece.output_tokens)
            found.append(encoded(Phase(piece.duration_s, prompts, outputs, piece.first_prompt, column(piece.due_s))))
        return found

    sent, encode_s = timed(messages)
    return {
        "rows": int(phase.due_s.size),
        "build_s": build_s,
        "split_s": split_s,
        "encode_s": encode_s,
        "bytes": sum(map(len, sent)),
        "bytes_a_node": max(map(len, sent)),
    }


def in_virtual_time(replicas: int, seconds: float) -> list[dict[str, Any]]:
    """All replicas behind each policy, and the same replicas with one load generator for each node."""
    fast = profiles.load("fast")
    rate_rps = SHARE * fast.true_rate_rps * replicas
    engines = [fast.engine.settled()] * replicas
    phase = schedule.open_loop(fast.workload, rate_rps, seconds, 1, 0)
    found = []

    def carried(runner: FleetSimRunner | SplitRunner, name: str) -> None:
        span, run_s = timed(lambda: runner.run(phase))
        _, settle_s = timed(lambda: runner.settle(60.0))
        journal, journal_s = timed(runner.journal)
        assert span.end_row == phase.due_s.size
        found.append(
            {
                "how": name,
                "rows": span.end_row,
                "tokens": int(journal.tokens.sum()),
                "e2e_p95_s": float(np.quantile(journal.e2e_s, 0.95)),
                "ttft_p95_s": float(np.quantile(journal.ttft_s, 0.95)),
                "run_s": run_s + settle_s,
                "journal_s": journal_s,
            }
        )
        runner.close()

    for policy in Policy:
        carried(FleetSimRunner(engines, policy, 1), policy.value)
    nodes = replicas // GPUS_PER_NODE
    parts = [
        Part(f"node{k}", FleetSimRunner(engines[:GPUS_PER_NODE], Policy.LEAST_OUTSTANDING, 1 + k)) for k in range(nodes)
    ]
    carried(SplitRunner(parts, virtual=True), f"{nodes} generators, each for {GPUS_PER_NODE} replicas")
    return found


def procedure(replicas: int) -> dict[str, Any]:
    """One check of a fleet that sustains 1.1 times what is asked for: server time, and what the procedure computes."""
    fast = profiles.load("fast")
    runner = FleetSimRunner([fast.engine] * replicas, Policy.ROUND_ROBIN, 5)
    settings = Settings(600.0, 3, runner.max_num_seqs, runner.kv_tokens, runner.max_num_batched_tokens)
    qps = Fraction(fast.true_rate_rps * replicas / 1.1)
    wanted = Requirement("fleet", qps, 1, Fraction(1), 1, fast.workload, fast.slo)
    simulated_s = 0.0
    carry = runner.run

    def run(phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        nonlocal simulated_s
        span, seconds = timed(lambda: carry(phase, should_stop))
        simulated_s += seconds
        return span

    runner.run = run  # type: ignore[method-assign]
    verdict, seconds = timed(lambda: check(runner, wanted, settings))
    return {
        "replicas": replicas,
        "outcome": verdict.outcome.value,
        "fleet_s": sum(verdict.measurement.spent_s.values()),
        "thinking_s": seconds - simulated_s,
        "requests": int(runner.journal().due_s.size),
    }


def clocks() -> dict[str, float]:
    """A reading of the clock of a real process on this machine, through its pipes."""
    fast = profiles.load("fast")
    runner = ProcessRunner(None, "http://127.0.0.1:9", "m", None, fast.workload, 1, nonce=1, clock_shift_s=1000.0)
    readings, seconds = timed(lambda: [read_offset(runner.exchange) for _ in range(50)])
    runner.close()
    return {
        "bound_s": float(np.median([each.bound_s for each in readings])),
        "error_s": max(abs(each.offset_s - 1000.0) for each in readings),
        "reading_s": seconds / 50,
    }


def longest_phase_s(limit_s: float, bound_s: float) -> float:
    """How long a phase may last before drift brings the clocks' error to its share of a limit (`OffsetTrack.skew_s`).

    Beside the bound of one reading, the clock may have moved by the drift since the phase began.
    """
    return max(0.0, (CLOCK_SHARE * limit_s - 2 * bound_s) / MOST_DRIFT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of load in virtual time")
    parser.add_argument("--phase", type=float, default=30.0, help="seconds of the phase whose schedule is built")
    options = parser.parse_args()
    n = options.replicas
    fast = profiles.load("fast")
    rps = fast.true_rate_rps * n
    mean_output = fast.workload.output_tokens.mean
    events = rps * mean_output
    nodes = math.ceil(n / GPUS_PER_NODE)
    phase, build_s = timed(lambda: schedule.open_loop(fast.workload, rps, options.phase, 1, 0))
    plans = schedules(phase, build_s, nodes)
    row_bytes = PhaseTable.size(1, 0)
    runs = in_virtual_time(n, options.seconds)
    clock = clocks()
    procedure(1)  # compiles
    checks = [procedure(each) for each in (1, 4, 16, 64)]
    in_flight = rps * float(np.mean([run["e2e_p95_s"] for run in runs]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "replicas": n,
        "requests_per_s": rps,
        "events_per_s": events,
        "workers": {
            "by events": math.ceil(events / EVENTS_PER_WORKER),
            "by requests": math.ceil(rps / REQUESTS_PER_WORKER),
            "at the measured peak": math.ceil(events / PEAK_EVENTS),
            "at the limit of one worker": math.ceil(events / MOST_EVENTS),
        },
        "schedule": plans,
        "row_bytes": row_bytes,
        "journal_bytes_per_s": rps * row_bytes,
        "histogram_bytes_a_worker_and_phase": 8 * HISTOGRAM_BINS * len(HistogramKind),
        "metrics_bytes_per_s": n * PAGE_BYTES * PAGES_PER_S,
        "telemetry_cores": n * TELEMETRY_CORE,
        "connections": in_flight,
        "source_addresses": math.ceil(in_flight / PORTS),
        "descriptors": {"soft": soft, "hard": hard},
        "clock": clock,
        "longest_phase_s": {
            f"{limit_s * 1e3:g} ms": longest_phase_s(limit_s, clock["bound_s"]) for limit_s in (0.02, 0.05, 0.2, 0.5, 4)
        },
        "virtual": runs,
        "checks": checks,
        "gpu_hours_a_check": {str(gpus): [gpus * seconds / 3600 for seconds in CHECK_S] for gpus in (1, 4, 64, 1000)},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
