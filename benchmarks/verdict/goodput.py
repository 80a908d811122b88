"""Simulated servers whose sustainable rate is limited by goodput: several thresholds that a request keeps together.

    python benchmarks/verdict/goodput.py                    # their true rates, from long runs, into goodput.toml
    python benchmarks/verdict/study.py run --parts check --profiles goodput --ratios 0.95,1.05 --reps 40
    python benchmarks/verdict/study.py run --parts measure --profiles goodput --reps 20
    python benchmarks/verdict/study.py table                # the section on goodput of RESULTS.md

Engine and workload are those of a profile that comes with the plugin. The thresholds are such that requests are late in
one latency or the other: each percentile alone holds at a higher rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from declared import limited, slo_text, tables_of  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.requirement import Slo
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.truth import true_rate_rps

FILE: Final = Path(__file__).with_name("goodput.toml")
KIND: Final = "goodput"


def tables() -> dict[str, dict[str, Any]]:
    """What the file declares, by the server's name."""
    found: dict[str, dict[str, Any]] = tables_of(FILE)
    return found


def names() -> list[str]:
    """All servers."""
    return list(tables())


def load(name: str) -> profiles.Profile:
    """A server, with its true rate under its own limits; NaN until it is determined."""
    found: profiles.Profile = limited(name, tables()[name])
    return found


def alone(profile: profiles.Profile) -> dict[str, float]:
    """The true rate under each threshold alone, at the percentile that goodput asks for."""
    goodput = profile.slo.goodput
    assert goodput is not None
    parts = {each.metric: replace(goodput, thresholds=(each,)) for each in goodput.thresholds}
    return {metric.value: true_rate_rps(replace(profile, slo=Slo((part,)))) for metric, part in parts.items()}


def main() -> None:
    """Determine the true rates, and write them into the file."""
    lines = []
    for name, table in tables().items():
        profile = load(name)
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
    FILE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
