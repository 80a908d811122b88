"""Real vLLM servers on one GPU: `measure()` again and again, and long runs of another client on both sides of it.

    python benchmarks/h200/real_servers.py run ROWS --servers 14b,long,front --measures 2 --direct-s 80 --within 580
    python benchmarks/h200/real_servers.py table ROWS

All servers start at once and share the GPU's memory, but only one has load at a time. Each call starts them afresh, so
two calls show what differs from start to start. A direct run is ``vllm bench serve`` at 0.93 and 1.07 times the mean of
the rates measured so far, and counts what share of its requests broke the limit. Rows are appended to ROWS as they
come, one JSON object a line, so an interrupted run loses nothing; an ended `--within` ends the call in between steps.
``CUDA_VISIBLE_DEVICES`` chooses the GPU, so two calls can use two GPUs of one host at the same time.
The weights are random, which does not change the speed. `--cpu` rehearses the script with the tiny model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.gpu.inventory import take_inventory
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.measure.procedure import check, measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import ApiKind, LatencyLimit, Length, Metric, Requirement, Slo, Workload
from pytest_gpucap.results.measured import Measurement
from pytest_gpucap.vllm_arguments import VllmArguments

BENCH = Path(__file__).parents[1] / "loadgen" / "vllm_bench.py"
SIDES = (0.93, 1.07)
"""Rates of the checks and direct runs, as shares of the rate measured."""
MOST_S = 150.0
"""Time limit of one measurement."""
GIB = 2**30


@dataclass(frozen=True)
class Server:
    """One server, and what is asked of it."""

    model: str
    input_tokens: int
    output_tokens: int
    limit: tuple[str, str]
    guess_rps: int
    kv_gib: float
    arguments: dict[str, object] = field(default_factory=dict)
    shared_tokens: int = 0
    """Of every prompt's start."""

    @property
    def workload(self) -> Workload:
        """Fixed lengths, so that another client can send the same."""
        return Workload(
            Length.fixed(self.input_tokens),
            Length.fixed(self.output_tokens),
            endpoint=ApiKind.COMPLETIONS,
            shared_prefix_tokens=self.shared_tokens,
        )

    def requirement(self, qps: Fraction) -> Requirement:
        """What one GPU shall carry."""
        return Requirement("real", qps, 1, Fraction(1), 1, self.workload, Slo((LatencyLimit.parse(*self.limit),)))


SERVERS = {
    "14b": Server("synthetic:qwen2.5-14b", 256, 512, ("e2e_p95", "8s"), 10, 24.0),
    "7b": Server("synthetic:qwen2.5-7b", 256, 512, ("e2e_p95", "6s"), 20, 12.0),
    "7b fp8": Server("synthetic:qwen2.5-7b", 256, 512, ("e2e_p95", "6s"), 20, 12.0, {"quantization": "fp8"}),
    "14b fp8": Server("synthetic:qwen2.5-14b", 256, 512, ("e2e_p95", "8s"), 15, 24.0, {"quantization": "fp8"}),
    "front": Server("synthetic:qwen2-1.5b", 256, 512, ("e2e_p95", "4s"), 20, 10.0),
    "long": Server("synthetic:qwen2.5-7b", 8192, 100, ("ttft_p95", "2s"), 2, 16.0),
    "n-gram": Server(
        "synthetic:qwen2-1.5b",
        256,
        512,
        ("e2e_p95", "6s"),
        10,
        10.0,
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}},
    ),
    "16 sequences": Server("synthetic:qwen2.5-7b", 256, 512, ("e2e_p95", "8s"), 3, 12.0, {"max_num_seqs": 16}),
    "prefix": Server(
        "synthetic:qwen2.5-7b", 2048, 128, ("e2e_p95", "4s"), 20, 12.0, {"enable_prefix_caching": True}, 1792
    ),
    "tiny": Server("synthetic:tiny", 64, 32, ("e2e_p95", "500ms"), 20, 0.0),
}


def started(name: str, python: str, *, cpu: bool) -> VllmServer:
    """The server, ready."""
    server = SERVERS[name]
    given: dict[str, object] = {"max_model_len": server.input_tokens + server.output_tokens + 64}
    given |= {"enable_prefix_caching": False, **server.arguments}
    if not cpu:
        # A fixed cache needs no look at the free memory, which the other servers change while they start.
        given |= {"kv_cache_memory_bytes": int(server.kv_gib * GIB), "gpu_memory_utilization": 0.05}
    devices = [] if cpu else [str(take_inventory().devices[0].index)]
    return start_vllm(ServerSpec(server.model, VllmArguments(given), python), devices=devices)


def measured(name: str, server: VllmServer, seed: int) -> dict[str, Any]:
    """One `measure()`."""
    asked = SERVERS[name]
    found = _driven(server, asked, seed, Fraction(asked.guess_rps))
    rate = found.sustainable_rate
    figures = [rate.value, rate.low, rate.high] if rate else [math.nan] * 3
    return {"what": "measure", "rate": figures, "binding": found.binding, **_told(found), "reason": found.reason}


def checked(name: str, server: VllmServer, seed: int, side: float, rate_rps: float) -> dict[str, Any]:
    """One `check()`."""
    asked = SERVERS[name]
    wanted = asked.requirement(Fraction(f"{rate_rps:.4g}"))
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", asked.workload, seed) as runner:
        runner.prepare()
        verdict = check(runner, wanted, _settings(server, seed))
    return {
        "what": "check",
        "side": side,
        "at_rps": rate_rps,
        "outcome": verdict.outcome.value,
        **_told(verdict.measurement),
        "reason": verdict.reason,
    }


def _driven(server: VllmServer, asked: Server, seed: int, qps: Fraction) -> Measurement:
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", asked.workload, seed) as runner:
        runner.prepare()
        return measure(runner, asked.requirement(qps), _settings(server, seed))


def _settings(server: VllmServer, seed: int) -> Settings:
    return Settings(MOST_S, seed, server.max_num_seqs, server.kv_tokens, server.max_num_batched_tokens)


def _told(found: Measurement) -> dict[str, Any]:
    return {"server_s": round(sum(found.spent_s.values()), 1), "problems": [str(each) for each in found.problems]}


def direct(
    name: str, server: VllmServer, options: argparse.Namespace, seed: int, side: float, rate_rps: float
) -> dict[str, Any]:
    """One long run of ``vllm bench serve``: the share of its requests that broke the limit."""
    asked = SERVERS[name]
    limit, seconds = LatencyLimit.parse(*asked.limit), options.direct_s
    with tempfile.TemporaryDirectory() as folder:
        command = [options.vllm_python, str(BENCH), "--backend", "vllm", "--endpoint", "/v1/completions"]
        command += ["--base-url", server.root_url, "--model", server.model]
        command += ["--tokenizer", str(synthetic.make_model(asked.model)), "--dataset-name", "random"]
        own = asked.input_tokens - asked.shared_tokens
        command += ["--random-input-len", f"{own}", "--random-output-len", f"{asked.output_tokens}"]
        command += ["--random-prefix-len", f"{asked.shared_tokens}"]
        command += ["--request-rate", f"{rate_rps}", "--num-prompts", f"{round(rate_rps * seconds)}"]
        command += ["--seed", f"{seed}", "--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]
        command += ["--result-dir", folder, "--result-filename", "result.json"]
        environment = {**os.environ, "OPENAI_API_KEY": f"{server.api_key}", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds * 4 + 120, check=False
        )
        if done.returncode:
            return {"what": "direct", "side": side, "error": done.stderr[-1500:]}
        result = json.loads(Path(folder, "result.json").read_text())
    first = np.array(result["ttfts"])
    value = first if limit.metric is Metric.TTFT else first + np.array([sum(gaps) for gaps in result["itls"]])
    return {
        "what": "direct",
        "side": side,
        "at_rps": rate_rps,
        "requests": int(value.size),
        "completed_rps": result["request_throughput"],
        "p95_s": float(np.quantile(value, 0.95)),
        "broke": float((value > limit.limit_s).mean()),
    }


def run(options: argparse.Namespace) -> None:
    """Start the servers, then all measurements in turn, then checks and direct runs."""
    began = time.monotonic()
    start = f"{time.time():.0f}"
    servers = all_started(options, start)
    print(f"{sorted(servers)} after {time.monotonic() - began:.0f} s", flush=True)
    seed = int(start) % 100_000
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
        for name, needs_s, step in steps(options, servers, seed):
            if time.monotonic() - began + needs_s < options.within:
                keep(options.rows, name, start, step())


def all_started(options: argparse.Namespace, start: str) -> dict[str, VllmServer]:
    """The servers that start, by name; a row tells why another did not."""
    servers: dict[str, VllmServer] = {}

    def begin(name: str) -> None:
        try:
            servers[name] = started(name, options.vllm_python, cpu=options.cpu)
        except Exception as error:  # noqa: BLE001 - the others go on
            keep(options.rows, name, start, {"what": "start", "error": str(error)[-1500:]})

    threads = [threading.Thread(target=begin, args=(name,)) for name in options.servers.split(",")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return servers


def steps(
    options: argparse.Namespace, servers: Mapping[str, VllmServer], seed: int
) -> Iterator[tuple[str, float, Callable[[], dict[str, Any]]]]:
    """Every step: the server's name, the seconds that must be left for it, and what gives its row."""
    for turn in range(options.measures):
        for name, server in servers.items():
            yield name, MOST_S / 2, partial(measured, name, server, seed + turn)
    for side, (name, server) in itertools.product(options.sides, servers.items()):
        at_rps = side * mean_rate(options.rows, name)
        if math.isnan(at_rps):
            continue
        if options.checks:
            yield name, MOST_S / 2, partial(checked, name, server, seed + 50, side, at_rps)
        if options.direct_s:
            needs_s = 1.3 * options.direct_s + 20.0
            yield name, needs_s, partial(direct, name, server, options, seed, side, at_rps)


def mean_rate(path: Path, name: str) -> float:
    """Geometric mean of the rates measured so far, req/s; NaN before there is one."""
    rates = [row["rate"][0] for row in rows_of(path, name, "measure")]
    known = [math.log(rate) for rate in rates if not math.isnan(rate)]
    return math.exp(float(np.mean(known))) if known else math.nan


def keep(path: Path, name: str, start: str, row: dict[str, Any]) -> None:
    """Append one row."""
    whole = {"server": name, "start": start, **row}
    with path.open("a") as file:
        file.write(json.dumps(whole) + "\n")
    print(whole, flush=True)


def rows_of(path: Path, name: str, what: str) -> list[dict[str, Any]]:
    """The rows of one server and kind so far."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["server"] == name and row["what"] == what]


def table(path: Path) -> None:
    """A Markdown table of intervals against scatter, and of verdicts against direct runs."""
    print("| server | limit | `measure()`, req/s | scatter, half width | check at 0.93, 1.07 | direct at 0.93, 1.07 |")
    print("|---|---|---|---|---|---|")
    for name, asked in SERVERS.items():
        rows = [row for row in rows_of(path, name, "measure") if not math.isnan(row["rate"][0])]
        if not rows:
            continue
        logs = np.log([row["rate"] for row in rows])
        scatter = f"{100 * float(np.std(logs[:, 0], ddof=1)):.1f}%" if len(rows) > 1 else "-"
        half = 100 * float(np.mean((logs[:, 2] - logs[:, 1]) / 2.0))
        told = ", ".join(f"{v:.3g} ({low:.3g} to {high:.3g})" for v, low, high in (row["rate"] for row in rows))
        checks = ", ".join(f"{row['outcome']}" for row in _by_side(rows_of(path, name, "check")))
        directs = ", ".join(
            f"{row['broke']:.0%} broke it (p95 {row['p95_s']:.3g} s)"
            for row in _by_side(rows_of(path, name, "direct"))
            if "broke" in row
        )
        limit = " ".join(asked.limit)
        print(f"| {name} | {limit} | {told} | {scatter}, {half:.1f}% | {checks or '-'} | {directs or '-'} |")


def _by_side(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: float(row["side"]))


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("rows", type=Path)
    parser.add_argument("--servers", default="14b,long,front")
    parser.add_argument("--measures", type=int, default=2, help="of each server")
    parser.add_argument("--checks", action="store_true", help="one check on either side of the rate measured")
    parser.add_argument("--sides", type=float, nargs="+", default=SIDES, help="of checks and direct runs")
    parser.add_argument("--direct-s", type=float, default=0.0, help="length of each direct run; 0: none")
    parser.add_argument("--within", type=float, default=580.0, help="seconds after which no step begins")
    parser.add_argument("--vllm-python", default=sys.executable)
    parser.add_argument("--cpu", action="store_true", help="on the CPU")
    options = parser.parse_args()
    if options.action == "run":
        run(options)
    else:
        table(options.rows)


if __name__ == "__main__":
    main()
