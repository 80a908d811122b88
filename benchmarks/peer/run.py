"""Do we and ``vllm bench serve`` see the same server? One real vLLM, the same rate, in alternation.

Both send open-loop Poisson load of the same lengths to the same server, turn by turn; each turn has its own seed, so
the spread over turns is the noise that repeated runs show. Printed and written as JSON: median TTFT and throughput
of every turn, the difference of the means and its 95% interval (Welch)::

    python benchmarks/peer/run.py --vllm-python .venv-vllm/bin/python [--turns 5] [--rate 4]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pytest_gpucap.engines import synthetic
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.gpu.inventory import take_inventory
from pytest_gpucap.load.protocol import ERRORS, LoadPhase, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop, open_loop
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.vllm_arguments import VllmArguments

BENCH = Path(__file__).parents[1] / "loadgen" / "vllm_bench.py"


def ours(server: VllmServer, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """One turn of our load generator; the server's own counters must agree with our records."""
    workload = Workload(
        Length.fixed(options.input_tokens), Length.fixed(options.output_tokens), endpoint=ApiKind.COMPLETIONS
    )
    with HttpLoadRunner(server.base_url, server.model, f"{server.api_key}", workload, seed) as runner:
        runner.prepare()
        before = counters(server)
        runner.run(phase_of(workload, options, seed))
        assert runner.settle(120.0)
        journal = runner.journal()
    after = counters(server)
    served = journal.status == Status.OK
    assert not np.isin(journal.status, list(ERRORS)).any(), "errors spoil the comparison"
    seen = {
        "requests": float(served.sum()),
        "prompt_tokens": float(journal.counted_prompt_tokens.sum()),
        "output_tokens": float(journal.counted_output_tokens.sum()),
    }
    told = {name: after[name] - before[name] for name in seen}
    assert seen == told, f"our records {seen} and the server's counters {told} disagree"
    # Throughput as the peer defines it: completed requests from the first one sent to the last one finished.
    span_s = float(journal.end_s.max() - journal.sent_s.min())
    return {"ttft_p50_ms": float(np.median(journal.ttft_s) * 1e3), "rps": float(served.sum()) / span_s, **seen}


def phase_of(workload: Workload, options: argparse.Namespace, seed: int) -> LoadPhase:
    """The load of one turn: Poisson arrivals at a rate, or a number of requests kept in flight."""
    if options.concurrency is None:
        return open_loop(workload, options.rate, options.seconds, seed, stream=0)
    return closed_loop(workload, options.concurrency, options.seconds, options.rate, seed, stream=0, hot=False)


def counters(server: VllmServer) -> dict[str, float]:
    """The server's own counts so far."""
    metrics = server.metrics()
    return {
        "requests": metrics.value("vllm:request_success_total"),
        "prompt_tokens": metrics.value("vllm:prompt_tokens_total"),
        "output_tokens": metrics.value("vllm:generation_tokens_total"),
    }


def theirs(server: VllmServer, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """One turn of ``vllm bench serve``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [options.vllm_python, str(BENCH), "--backend", "vllm", "--endpoint", "/v1/completions"]
        command += [
            "--base-url",
            server.root_url,
            "--model",
            server.model,
            "--tokenizer",
            str(synthetic.make_model(options.model)),
        ]
        command += ["--dataset-name", "random", "--random-input-len", str(options.input_tokens)]
        command += ["--random-output-len", str(options.output_tokens), "--ignore-eos", "--disable-tqdm"]
        rate = "inf" if options.concurrency else str(options.rate)
        command += ["--request-rate", rate, "--num-prompts", str(round(options.rate * options.seconds))]
        command += ["--max-concurrency", str(options.concurrency)] if options.concurrency else []
        command += ["--seed", str(seed), "--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        environment = {**os.environ, "OPENAI_API_KEY": f"{server.api_key}", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            raise RuntimeError(f"vllm bench serve failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        result = json.loads(Path(folder, "result.json").read_text())
    return {
        "ttft_p50_ms": result["median_ttft_ms"],
        "rps": result["request_throughput"],
        "requests": result["completed"],
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=".venv-vllm/bin/python")
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rate", type=float, default=4.0, help="req/s; in a closed loop, what to expect at most")
    parser.add_argument("--concurrency", type=int, help="closed loop with so many in flight, instead of the rate")
    parser.add_argument("--gpu", action="store_true", help="on the first GPU, instead of the CPU")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    given = {name: str(value) for name, value in vars(options).items() if name != "json"}
    options.vllm_python = str(Path(options.vllm_python).absolute())
    turns: dict[str, list[dict[str, float]]] = {"ours": [], "vllm bench serve": []}
    devices = [str(take_inventory().devices[0].index)] if options.gpu else []
    longest = max(1024, options.input_tokens + options.output_tokens)
    spec = ServerSpec(options.model, args=VllmArguments({"max_model_len": longest}), python=options.vllm_python)
    with start_vllm(spec, devices=devices) as server:
        ours(server, options, seed=99)  # a fresh server is slower; neither is charged for that
        for turn in range(options.turns):
            turns["ours"].append(ours(server, options, seed=turn))
            turns["vllm bench serve"].append(theirs(server, options, seed=turn))
            for name, rows in turns.items():
                ttft_ms, rps = rows[-1]["ttft_p50_ms"], rows[-1]["rps"]
                print(f"turn {turn + 1} {name:18} median TTFT {ttft_ms:7.2f} ms, {rps:.3f} req/s", flush=True)
    result: dict[str, Any] = {
        "options": given,
        "turns": turns,
        "differences": {},
    }
    for figure in ("ttft_p50_ms", "rps"):
        a, b = ([row[figure] for row in rows] for rows in turns.values())
        interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        result["differences"][figure] = {"mean": np.mean(a) - np.mean(b), "low": interval.low, "high": interval.high}
        print(f"{figure}: ours {np.mean(a):.3f} (sd {np.std(a, ddof=1):.3f})", end=", ")
        print(f"theirs {np.mean(b):.3f} (sd {np.std(b, ddof=1):.3f})", end=", ")
        print(f"difference {np.mean(a) - np.mean(b):+.3f} ({interval.low:+.3f} to {interval.high:+.3f})", end=": ")
        print("agree" if interval.low <= 0 <= interval.high else "DISAGREE")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
