"""Simulated servers whose sustainable rate is limited by goodput: several thresholds that a request keeps together.

    python benchmarks/verdict/goodput.py truth              # true rates of the named ones, from long runs: minutes
    python benchmarks/verdict/goodput.py draw               # the drawn ones, into goodput.toml
    python benchmarks/verdict/study.py run --parts check --profiles goodput --ratios 0.95,1.05 --reps 40
    python benchmarks/verdict/study.py run --parts measure --profiles goodput --reps 20
    python benchmarks/verdict/study.py table                # the section on goodput of RESULTS.md

Engine and workload of the named servers are those of a profile that comes with the plugin. The thresholds are such that
requests are late in one latency or the other: each percentile alone holds at a higher rate.

The drawn servers are for results only. Engine, lengths and arrivals come from a fixed seed, and so do the rate and the
share of requests that are late in the second latency there. The thresholds are then those that long runs at that rate
ask for, so it is the true rate.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, Final

import numpy as np
import servers  # type: ignore[import-not-found,unused-ignore]
from declared import Kind, latencies_at, own_text, slo_text  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.load.latencies import metric_s
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, Length, Metric, Slo, Workload
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.truth import simulated_saturation_rps, true_rate_rps

KIND: Final = Kind("goodput")
SEED: Final = 55_119_637
"""Of the drawn servers."""
DRAWN: Final = 6
RUNS: Final = 8
BAD: Final = 0.05
"""Share of the requests that may break a threshold."""
PAIRS: Final = ((Metric.TTFT, Metric.TPOT), (Metric.TTFT, Metric.E2E), (Metric.TPOT, Metric.E2E))
"""What drawn servers have thresholds on, in turn."""


def alone(profile: profiles.Profile) -> dict[str, float]:
    """The true rate under each threshold alone, at the percentile that goodput asks for."""
    goodput = profile.slo.goodput
    assert goodput is not None
    parts = {each.metric: replace(goodput, thresholds=(each,)) for each in goodput.thresholds}
    return {metric.value: true_rate_rps(replace(profile, slo=Slo((part,)))) for metric, part in parts.items()}


def thresholds_at(
    profile: profiles.Profile, rate_rps: float, metrics: tuple[Metric, Metric], late: float
) -> tuple[float, float]:
    """Thresholds that 95% of the requests keep together at a rate, in seconds.

    Args:
        profile: the server.
        rate_rps: the rate.
        metrics: that have a threshold.
        late: share of the requests that break the second one.
    """
    found = latencies_at(profile, rate_rps, RUNS, SEED)
    first, second = (metric_s(found, metric) for metric in metrics)
    second_s = float(np.nanquantile(second, 1.0 - late))
    # Of those that keep the second one, so many may break the first.
    kept = np.sort(first[~(second > second_s)])
    return float(kept[int((1.0 - BAD) * first.size)]), second_s


def drawn(index: int) -> list[str]:
    """The lines of one drawn server."""
    server = servers.plain(np.random.default_rng([SEED, index]))
    metrics = PAIRS[index % len(PAIRS)]
    inputs, outputs = servers.lengths(server, server.inputs, 5), servers.lengths(server, server.outputs, 5)
    both = Length.parse(inputs, "input_tokens"), Length.parse(outputs, "output_tokens")
    workload = Workload(*both, endpoint=ApiKind.COMPLETIONS)
    if index % 2:
        workload = replace(workload, arrivals=Arrivals(ArrivalKind.GAMMA, round(server.within(1.2, 2.0), 2)))
    rounded: dict[str, Any] = {  # whole numbers among others
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in server.engine.items()
    }
    engine = profiles.EngineModel(**rounded)
    profile = profiles.Profile("", "", True, engine, workload, Slo())
    rate_rps = float(f"{server.within(0.55, 0.85) * simulated_saturation_rps(engine, workload, 1):.4g}")
    late = server.within(0.01, 0.04)
    limits = [f"{1000 * limit_s:.5g}ms" for limit_s in thresholds_at(profile, rate_rps, metrics, late)]
    named = ", ".join(f'{metric.value} = "{limit}"' for metric, limit in zip(metrics, limits, strict=True))
    return [
        f"[drawn-{index + 1}-goodput]",
        *own_text(profile, inputs, outputs),
        f'slo = {{ goodput = "{1.0 - BAD:.0%}", {named} }}',
        f"true_rate_rps = {rate_rps}",
        f"late = {{ {metrics[1].value} = {late:.3f} }}",
        "",
    ]


def named() -> list[str]:
    """The lines of the named servers, with true rates anew."""
    lines = []
    for name, table in KIND.tables().items():
        if "profile" not in table:
            continue
        profile = KIND.load(name)
        rate = true_rate_rps(profile)
        each = alone(profile)
        print(f"{name}: {rate:.5g} req/s; {each}", flush=True)
        by_one = ", ".join(f"{metric} = {value:.5g}" for metric, value in each.items())
        lines += [
            f"[{name}]",
            f'profile = "{table["profile"]}"',
            slo_text(table),
            f"true_rate_rps = {rate:.5g}",
            f"alone_rps = {{ {by_one} }}",
            "",
        ]
    return lines


def main() -> None:
    """Write one half of the file anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["truth", "draw"])
    what = parser.parse_args().what
    before = KIND.file.read_text(encoding="utf-8")
    at = before.find("[drawn-")
    first, second = (before, "") if at < 0 else (before[:at].rstrip() + "\n\n", before[at:])
    if what == "truth":
        first = "\n".join([*named(), ""])
    else:
        second = "\n".join(line for index in range(DRAWN) for line in drawn(index))
    KIND.file.write_text(f"{first.rstrip()}\n\n{second}".rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
