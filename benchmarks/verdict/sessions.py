"""Simulated servers whose traffic is multi-turn sessions: turns wait for answers, and find in the cache what was said.

    python benchmarks/verdict/sessions.py                   # their true rates, from long runs, into sessions.toml
    python benchmarks/verdict/study.py run --parts check --profiles sessions --ratios 0.95,1.05 --reps 40
    python benchmarks/verdict/study.py run --parts measure --profiles sessions --reps 20
    python benchmarks/verdict/study.py table                # the section on sessions of RESULTS.md

The engine is that of a profile that comes with the plugin. `evicting-sessions` has a KV cache that is too small for the
sessions under way, so the server forgets what was said as the rate rises.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from declared import limited, slo_text, tables_of  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.load.sessions import with_session_lengths
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.truth import true_rate_rps
from pytest_gpucap.workloads.sessions import with_sessions

FILE: Final = Path(__file__).with_name("sessions.toml")
KIND: Final = "sessions"


def tables() -> dict[str, dict[str, Any]]:
    """What the file declares, by the server's name."""
    found: dict[str, dict[str, Any]] = tables_of(FILE)
    return found


def names() -> list[str]:
    """All servers."""
    return list(tables())


def load(name: str) -> profiles.Profile:
    """A server, with its true rate under its own sessions and limits; NaN until it is determined."""
    table = tables()[name]
    new, answers = (Length.parse(table[key], key) for key in ("input_tokens", "output_tokens"))
    workload = with_sessions(Workload(new, answers, endpoint=ApiKind.COMPLETIONS), table["sessions"])
    declared: profiles.Profile = limited(name, table)
    return replace(declared, workload=with_session_lengths(workload))


def main() -> None:
    """Determine the true rates, and write them into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24, help="long runs at each rate")
    runs = parser.parse_args().runs
    lines = []
    for name, table in tables().items():
        rate = true_rate_rps(load(name), runs)
        print(f"{name}: {rate:.5g} req/s", flush=True)
        lines += [
            f"[{name}]",
            *(f'{key} = "{table[key]}"' for key in ("profile", "input_tokens", "output_tokens", "sessions")),
            slo_text(table),
            f"true_rate_rps = {rate:.5g}",
            "",
        ]
    FILE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
