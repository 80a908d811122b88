"""Simulated servers whose answers have no tokens: embeddings, pooling, classes, scores. Only E2E is known of them.

    python benchmarks/verdict/prefill_only.py               # the servers, drawn anew from their seed, into their file
    python benchmarks/verdict/study.py run --parts check --profiles prefill_only --ratios 0.9,0.95,1.05,1.1 --reps 12
    python benchmarks/verdict/study.py table                # the section on answers without tokens of RESULTS.md

Such a server shows no pace, so `check()` judges a long open loop by what it sees, and `measure()` refuses. Engine,
lengths, arrivals, the percentile and the rate come from a fixed seed. The limit is the percentile that long runs at
that rate show, so it is the true rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import servers  # type: ignore[import-not-found,unused-ignore]
from declared import Kind, latencies_at, own_text  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, Length, Slo, Workload
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.truth import RUN_S, simulated_saturation_rps

KIND: Final = Kind("prefill_only")
SEED: Final = 7_340_033
REQUESTS: Final = 1_500_000
"""Of the long runs of one server: a percentile of so many is known to less than 0.3% of the rate."""
MOST_RUNS: Final = 8
INPUTS: Final = {
    ApiKind.EMBEDDINGS: (100, 600),
    ApiKind.CLASSIFY: (30, 200),
    ApiKind.POOLING: (200, 1000),
    ApiKind.RERANK: (1500, 5000),
}
"""Endpoints, and between what the mean tokens of their prompts lie."""
PERCENTILES: Final = (95, 99, 90, 95)


def drawn(index: int, endpoint: ApiKind) -> list[str]:
    """The lines of one server."""
    server = servers.plain(np.random.default_rng([SEED, index]))
    engine = profiles.EngineModel(
        base_s=float(f"{server.about(0.002, 0.008):.4g}"),
        per_seq_s=float(f"{server.about(1e-5, 1e-4):.4g}"),
        per_prompt_token_s=float(f"{server.about(4e-6, 3e-5):.4g}"),
        per_prompt_context_s=float(f"{server.about(1e-10, 1e-9):.4g}"),
        noise=float(f"{server.within(0.02, 0.08):.4g}"),
    )
    inputs = servers.lengths(server, server.about(*INPUTS[endpoint]), 5)
    workload = Workload(Length.parse(inputs, "input_tokens"), Length.fixed(1), endpoint=endpoint)
    if index % 2:
        workload = replace(workload, arrivals=Arrivals(ArrivalKind.GAMMA, round(server.within(1.2, 2.0), 2)))
    profile = profiles.Profile("", "", True, engine, workload, Slo())
    rate_rps = float(f"{server.within(0.55, 0.85) * simulated_saturation_rps(engine, workload, 1):.4g}")
    percent = PERCENTILES[index]
    runs = min(MOST_RUNS, max(1, round(REQUESTS / RUN_S / rate_rps)))
    limit_s = float(np.nanquantile(latencies_at(profile, rate_rps, runs, SEED).e2e_s, percent / 100))
    return [
        f"[prefill-{endpoint.value}]",
        *own_text(profile, inputs),
        f'slo = {{ e2e_p{percent} = "{1000 * limit_s:.5g}ms" }}',
        f"true_rate_rps = {rate_rps}",
        "",
    ]


def main() -> None:
    """Write the file anew."""
    lines = [line for index, endpoint in enumerate(INPUTS) for line in drawn(index, endpoint)]
    KIND.file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
