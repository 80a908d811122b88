"""Simulated servers whose traffic is multi-turn sessions: turns wait for answers, and find in the cache what was said.

    python benchmarks/verdict/sessions.py                   # their true rates, from long runs, into sessions.toml
    python benchmarks/verdict/sessions.py --bounds kv-sessions evicting-sessions    # as if they forgot nothing, or all
    python benchmarks/verdict/study.py run --parts check,measure --profiles sessions --reps 40 --jobs 1 --minutes 35
    python benchmarks/verdict/study.py table                # the section on sessions of RESULTS.md

The engine is that of a profile that comes with the plugin.

- `plain-sessions`: a middling engine whose cache keeps every session, under limits on TTFT and TPOT.
- `slow-sessions`: a slow one, whose cache keeps every session as well, under limits on TTFT and E2E.
- `kv-sessions`: requests wait for space in the KV cache. Pauses are short, so what was said is mostly found.
- `evicting-sessions`: the KV cache is too small for the sessions under way, so the server forgets what was said as the
  rate rises. What it forgets it computes again, which makes it forget more: above some rate it collapses now and then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from declared import Kind, slo_text  # type: ignore[import-not-found,unused-ignore]

from pytest_gpucap.arrays import Ints
from pytest_gpucap.load.protocol import LoadPhase, PhaseSpan, Progress, Turns
from pytest_gpucap.load.sessions import with_session_lengths
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.simulator.truth import true_rate_rps
from pytest_gpucap.workloads.sessions import with_sessions

KEYS: Final = ("profile", "input_tokens", "output_tokens", "sessions")


class Keeping(SimRunner):
    """A server whose prefix cache forgets nothing, however full its KV cache is."""

    def run(self, phase: LoadPhase, should_stop: Callable[[Progress], bool] | None = None) -> PhaseSpan:
        """See `LoadRunner.run`. What was written since a release is taken back several times a second."""

        def taken_back(progress: Progress) -> bool:
            self._whole[engine.WRITTEN] -= 1_000_000
            return should_stop is not None and should_stop(progress)

        return super().run(phase, taken_back)


class WithoutCache(SimRunner):
    """A server without a prefix cache: it computes every prompt in full."""

    def _begin_sessions(self, phase: LoadPhase, planned: Turns, paces: Ints) -> None:
        super()._begin_sessions(phase, replace(planned, cached=np.zeros_like(planned.cached)), paces)


BOUNDS: Final[Mapping[str, type[SimRunner]]] = {"keeping_rps": Keeping, "without_cache_rps": WithoutCache}


def with_its_sessions(profile: profiles.Profile, table: Mapping[str, Any]) -> profiles.Profile:
    """The server under its own sessions."""
    new, answers = (Length.parse(table[key], key) for key in ("input_tokens", "output_tokens"))
    workload = with_sessions(Workload(new, answers, endpoint=ApiKind.COMPLETIONS), table["sessions"])
    return replace(profile, workload=with_session_lengths(workload))


KIND: Final = Kind("sessions", with_its_sessions)


def text_of(declared: Mapping[str, Mapping[str, Any]]) -> str:
    """The file. A rate that is not yet determined is not in it."""
    lines = []
    for name, table in declared.items():
        lines += [f"[{name}]", *(f'{key} = "{table[key]}"' for key in KEYS), slo_text(table)]
        lines += [f"{key} = {table[key]:.5g}" for key in ("true_rate_rps", *BOUNDS) if key in table]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Determine the true rates, and write them into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24, help="long runs at each rate")
    parser.add_argument("--bounds", action="store_true", help="what they would sustain if they forgot nothing, or all")
    parser.add_argument("names", nargs="*", help="servers whose rates are determined; all (default)")
    options = parser.parse_args()
    declared = KIND.tables()
    for name in options.names or declared:
        for key, server in (BOUNDS if options.bounds else {"true_rate_rps": SimRunner}).items():
            declared[name][key] = true_rate_rps(KIND.load(name), options.runs, server=server)
            print(f"{name}: {key} {declared[name][key]:.5g}", flush=True)
            KIND.file.write_text(text_of(declared), encoding="utf-8")


if __name__ == "__main__":
    main()
