"""Hours of load at a share of a server's measured capacity: does the load generator stay as it was?

    python benchmarks/soak.py --server simulator --minutes 120 --share 0.8

Measures the server's sustainable rate first, then sends that share of it, one phase a minute, through the load path of
every measurement. A row a minute goes to the CSV file: resident memory and open descriptors of this process, of each
worker and of the server, the p99 lateness of sends, the rate that was due and that was sent, and failed requests. The
table at the end compares the first quarter with the last, and ends with exit status 1 if something has grown.

    python benchmarks/soak.py --table soak.csv      # the table again, from the rows so far
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tabulate import tabulate

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import ERRORS
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.self_check import LATENESS_FLOOR_S
from pytest_gpucap.measure.procedure import measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import ApiKind, LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.simulator.serve import start_simulator
from pytest_gpucap.vllm_arguments import VllmArguments

ROOT = Path(__file__).parents[1]
WORKLOAD = Workload(Length.fixed(128), Length.fixed(64), endpoint=ApiKind.COMPLETIONS)
LIMITS = {"simulator": "4s", "vllm": "1s"}
"""p95 E2E: with the simulated profile `slow` it leaves some 20 req/s, which cost little of a core."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Judged:
    """How a figure is judged.

    Attributes:
        unit: shown behind its name.
        share, least: it is flat if its median in the last quarter differs from the one in the first by less than this
            share of it, or by less than `least`. A fall is flat.
    """

    unit: str
    share: float
    least: float


KINDS = {
    "memory": Judged("MiB", 0.02, 2.0),
    "descriptors": Judged("", 0.0, 1.0),
    "connections": Judged("", 0.5, 10.0),
    "lateness_p99": Judged("ms", 0.0, LATENESS_FLOOR_S * 1e3),
    "rate_lost": Judged("%", 0.0, 0.5),
    "errors": Judged("", 0.0, 0.5),
}
"""By the end of a column's name."""
SHOWN = (*KINDS, "load_average")


def resident(role: str, pid: int) -> dict[str, float]:
    """Memory, descriptors and connections of a process, a server's with its children.

    Connections to the server come and go with the load, so they are counted apart.
    """
    root = psutil.Process(pid)
    family = [root, *(root.children(recursive=True) if role == "server" else [])]
    connections = sum(len(each.net_connections("inet")) for each in family)
    return {
        f"{role} memory": round(sum(each.memory_info().rss for each in family) / MIB, 2),
        f"{role} descriptors": sum(each.num_fds() for each in family) - connections,
        f"{role} connections": connections,
    }


def soak(options: argparse.Namespace) -> None:
    """Measure, load, and write a row a minute."""
    with ExitStack() as stack:
        server: Any
        if options.server == "simulator":
            server = stack.enter_context(start_simulator(options.profile, seed=1))
            key, sequences, tokens = "none", server.profile.engine.max_num_seqs, server.profile.engine.kv_tokens
        else:
            arguments = VllmArguments({"max_model_len": 1024, "enable_prefix_caching": False})
            server = stack.enter_context(start_vllm(ServerSpec("synthetic:tiny", arguments, options.python)))
            key, sequences, tokens = server.api_key, server.max_num_seqs, server.kv_tokens
        slo = Slo((LatencyLimit.parse("e2e_p95", LIMITS[options.server]),))
        wanted = Requirement("soak", Fraction(20), 1, Fraction(1), 1, WORKLOAD, slo)
        rate_rps = options.rate
        if rate_rps is None:
            with HttpLoadRunner(server.base_url, server.model, key, WORKLOAD, 1) as runner:
                runner.prepare()
                found = measure(runner, wanted, Settings(300, 1, sequences, tokens))
            if found.sustainable_rate is None:
                sys.exit(f"no capacity was measured: {found.problems}")
            rate_rps = options.share * found.sustainable_rate.value
            print(f"capacity {found.sustainable_rate.value:.4g} req/s {[p.text for p in found.problems]}", flush=True)
        print(f"{rate_rps:.4g} req/s for {options.minutes} minutes", flush=True)
        runner = stack.enter_context(HttpLoadRunner(server.base_url, server.model, key, WORKLOAD, 2))
        drive(runner, rate_rps, options.minutes, min(server.pids()), options.csv)


def drive(runner: HttpLoadRunner, rate_rps: float, minutes: int, server_pid: int, path: Path) -> None:
    """One phase a minute."""
    began_s, first_prompt, failed_before = time.monotonic(), 0, 0
    with path.open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for minute in range(minutes):
            phase = schedule.open_loop(WORKLOAD, rate_rps, 60.0, 2, minute, first_prompt)
            first_prompt += phase.prompt_tokens.size
            check = runner.run(phase).check
            failed = int(np.isin(runner.journal().status, [int(each) for each in ERRORS]).sum())
            row: dict[str, float] = {"minute": round((time.monotonic() - began_s) / 60, 2)}
            for role, pid in [("controller", os.getpid()), *named(runner.worker_pids), ("server", server_pid)]:
                row |= resident(role, pid)
            row |= {
                "lateness_p99": round(check.send_lateness_p99_s * 1e3, 3),
                "due_rps": round(check.intended_rps, 3),
                "sent_rps": round(check.achieved_rps, 3),
                "rate_lost": round(100 * (1 - check.achieved_rps / check.intended_rps), 3),
                "worker_cpu_share": round(max(check.worker_cpu_share), 4),
                "load_average": round(os.getloadavg()[0], 2),
                "errors": failed - failed_before,
            }
            failed_before = failed
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            file.flush()


def named(pids: Sequence[int]) -> list[tuple[str, int]]:
    """The workers, numbered."""
    return [(f"worker {number}", pid) for number, pid in enumerate(pids)]


def table(path: Path) -> tuple[str, bool]:
    """The judged figures as Markdown, and whether each is flat."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    at_h = np.array([float(row["minute"]) for row in rows]) / 60
    quarter = max(1, len(rows) // 4)
    shown, whole = [], True
    for name in rows[0]:
        if not name.endswith(SHOWN):
            continue
        judged = next((each for end, each in KINDS.items() if name.endswith(end)), None)
        values = np.array([float(row[name]) for row in rows])
        first, last = float(np.median(values[:quarter])), float(np.median(values[-quarter:]))
        slope = float(np.polyfit(at_h, values, 1)[0]) if len(rows) > 1 else math.nan
        # Neither the server nor the machine's load is ours: they are shown, and not judged.
        told = ""
        if judged is not None and not name.startswith("server"):
            flat = last - first < max(judged.least, judged.share * abs(first))
            whole &= flat
            told = "flat" if flat else "GROWS"
        figures = [f"{value:.4g}" for value in (first, last, float(values.max()), slope)]
        shown.append([f"{name} {judged.unit if judged else ''}".strip(), *figures, told])
    heads = [f"{len(rows)} minutes", "first quarter", "last quarter", "highest", "slope per hour", ""]
    sent = np.mean([float(row["sent_rps"]) for row in rows])
    text = tabulate(shown, heads, "github", disable_numparse=True)
    return f"{text}\n\n{sent:.4g} req/s were sent on average.\n", whole


def main() -> None:
    """Run a soak, or show its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["simulator", "vllm"], default="simulator")
    parser.add_argument("--profile", default="slow", help="of the simulator")
    parser.add_argument("--python", default=str(ROOT / ".venv-vllm" / "bin" / "python"), help="that has vLLM")
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--share", type=float, default=0.8, help="of the measured capacity")
    parser.add_argument("--rate", type=float, help="req/s in place of a share; measures no capacity")
    parser.add_argument("--csv", type=Path, default=Path("soak.csv"), help="the rows")
    parser.add_argument("--out", type=Path, help="a file for the table, beside the screen")
    parser.add_argument("--table", type=Path, metavar="CSV", help="show the table of these rows, and run nothing")
    options = parser.parse_args()
    if options.table is None:
        soak(options)
    text, flat = table(options.table or options.csv)
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    main()
