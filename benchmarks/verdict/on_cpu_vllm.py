"""Repeated `measure()` on the real CPU build of vLLM: do the reported intervals explain the spread?

    python benchmarks/verdict/on_cpu_vllm.py --runs 10

One server with a small synthetic model; every run sends other requests. Rows go to results/cpu-vllm.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from fractions import Fraction
from pathlib import Path

from study import FIELDS, RESULTS  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import start_vllm
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.measure.procedure import measure
from pytest_gpucap.measure.settings import Settings
from pytest_gpucap.requirement import ApiKind, LatencyLimit, Length, Requirement, Slo, Workload
from pytest_gpucap.vllm_arguments import VllmArguments

WORKLOAD = Workload(Length.fixed(256), Length.fixed(64), endpoint=ApiKind.COMPLETIONS)
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Measure again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--e2e-p95", default="1s")
    parser.add_argument("--python", default=str(ROOT / ".venv-vllm" / "bin" / "python"))
    options = parser.parse_args()
    slo = Slo((LatencyLimit.parse("e2e_p95", options.e2e_p95),))
    wanted = Requirement("cpu", Fraction(20), 1, Fraction(1), 1, WORKLOAD, slo)
    spec = ServerSpec(
        "synthetic:tiny", VllmArguments({"max_model_len": 1024, "enable_prefix_caching": False}), options.python
    )
    RESULTS.mkdir(exist_ok=True)
    with start_vllm(spec) as server, (RESULTS / "cpu-vllm.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for run in range(options.runs):
            began = time.monotonic()
            with HttpLoadRunner(server.base_url, server.model, server.api_key, WORKLOAD, run, workers=1) as runner:
                runner.prepare()
                found = measure(runner, wanted, Settings(300, run, server.max_num_seqs, server.kv_tokens))
            rate = found.sustainable_rate
            figures = [rate.value, rate.low, rate.high] if rate else [math.nan] * 3
            spent = sum(found.spent_s.values())
            writer.writerow(
                [run, "INVALID" if found.problems else "OK", f"{spent:.1f}", *(f"{x:.5g}" for x in figures)]
            )
            file.flush()
            print(f"{run}: {figures} {found.binding} {time.monotonic() - began:.0f} s {found.problems}", flush=True)


if __name__ == "__main__":
    main()
