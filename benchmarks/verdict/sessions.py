"""Simulated servers whose traffic is multi-turn sessions: turns wait for answers, and find in the cache what was said.

    python benchmarks/verdict/sessions.py                   # their true rates, from long runs, into sessions.toml
    python benchmarks/verdict/sessions.py --bounds kv-sessions evicting-sessions    # as if they forgot nothing, or all
    python benchmarks/verdict/sessions.py --draw            # declare those that are drawn, before their rates are known
    python benchmarks/verdict/study.py run --parts check,measure --profiles sessions --reps 40 --jobs 1 --minutes 35
    python benchmarks/verdict/study.py table                # the section on sessions of RESULTS.md

The engine is that of a profile that comes with the plugin.

- `plain-sessions`: a middling engine whose cache keeps every session, under limits on TTFT and TPOT.
- `slow-sessions`: a slow one, whose cache keeps every session as well, under limits on TTFT and E2E.
- `kv-sessions`: requests wait for space in the KV cache. Pauses are short, so what was said is mostly found.
- `evicting-sessions`: the KV cache is too small for the sessions under way, so the server forgets what was said as the
  rate rises. What it forgets it computes again, which makes it forget more: above some rate it collapses now and then.
- `seen-sessions-1` to `-6`, `unseen-sessions-1` to `-6`: engines, sessions and limits are drawn at random, of each half
  from a seed of its own. From first to last, KV caches hold 0.5 to 4 times what all sessions under way have said.
  The procedure was developed with the first half in sight, and the other was looked at once it was finished.
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
from pytest_gpucap.load.sessions import typical_turns, with_session_lengths
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.simulator.truth import simulated_saturation_rps, true_rate_rps
from pytest_gpucap.workloads.sessions import with_sessions

KEYS: Final = ("profile", "input_tokens", "output_tokens", "sessions")
DRAWN: Final = 6
DRAW_SEEDS: Final = {"seen": 77_201, "unseen": 77_202}
LEAST_ROOM, MOST_ROOM = 0.5, 4.0
"""Tokens of the KV cache over those of all sessions under way, of the first and of the last drawn server."""


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
    engine = replace(profile.engine, kv_tokens=int(table.get("kv_tokens", profile.engine.kv_tokens)))
    return replace(profile, engine=engine, workload=with_session_lengths(workload))


KIND: Final = Kind("sessions", with_its_sessions)


def drawn() -> dict[str, dict[str, Any]]:
    """Servers drawn at random, as the file declares them, without their rates."""
    found: dict[str, dict[str, Any]] = {}
    for half, seed in DRAW_SEEDS.items():
        rng = np.random.default_rng(seed)
        found |= {f"{half}-sessions-{number + 1}": _drawn(rng, number) for number in range(DRAWN)}
    return found


def _drawn(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """One of them, without its rates."""
    mean_in, mean_out = (int(rng.integers(*span)) for span in ((80, 500), (100, 400)))
    turns, think_s = int(rng.integers(3, 9)), round(float(np.exp(rng.uniform(np.log(2.0), np.log(20.0)))), 1)
    limits = ({"ttft_p95": "2s"}, {"ttft_p95": "1s", "tpot_p95": "100ms"})[int(rng.integers(2))]
    table: dict[str, Any] = {
        "profile": ("mixed", "slow", "bursty")[int(rng.integers(3))],
        "input_tokens": f"lognormal:mean={mean_in},cv=1,low=10,high={8 * mean_in}",
        "output_tokens": f"lognormal:mean={mean_out},cv=0.8,low=5,high={4 * mean_out}",
        "sessions": f"turns=lognormal:mean={turns},cv=0.5,high={3 * turns} "
        f"think=lognormal:mean={think_s}s,cv=1 context=16384",
        "slo": limits,
    }
    room = LEAST_ROOM * (MOST_ROOM / LEAST_ROOM) ** (number / (DRAWN - 1))
    table["kv_tokens"] = max(20_000, int(room * _said_by_all(table)))
    return table


def _said_by_all(table: Mapping[str, Any]) -> float:
    """Tokens that all sessions under way have said, by Little's law, at a rate near the engine's best."""
    profile = with_its_sessions(profiles.load(table["profile"]), {**table, "kv_tokens": 10_000_000})
    turns = typical_turns(profile.workload)
    step_s = profile.engine.base_s + 64 * profile.engine.per_seq_s
    kept_s = turns.output * step_s + np.where(turns.left > 0, np.roll(turns.think_s, -1), 0.0)
    said = float((kept_s * (turns.prompt.astype(float) + turns.output)).mean())
    return 0.7 * simulated_saturation_rps(profile.engine, profile.workload, 1, Keeping) * said


def text_of(declared: Mapping[str, Mapping[str, Any]]) -> str:
    """The file. A rate that is not yet determined is not in it."""
    lines = []
    for name, table in declared.items():
        lines += [f"[{name}]", *(f'{key} = "{table[key]}"' for key in KEYS), slo_text(table)]
        lines += [f"kv_tokens = {table['kv_tokens']}"] if "kv_tokens" in table else []
        lines += [f"{key} = {table[key]:.5g}" for key in ("true_rate_rps", *BOUNDS) if key in table]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Determine the true rates, and write them into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24, help="long runs at each rate")
    parser.add_argument("--bounds", action="store_true", help="what they would sustain if they forgot nothing, or all")
    parser.add_argument("--draw", action="store_true", help="declare the drawn servers that are not in the file")
    parser.add_argument("names", nargs="*", help="servers whose rates are determined; all (default)")
    options = parser.parse_args()
    declared = KIND.tables()
    if options.draw:
        KIND.file.write_text(
            text_of({**declared, **{k: v for k, v in drawn().items() if k not in declared}}), encoding="utf-8"
        )
        return
    for name in options.names or declared:
        for key, server in (BOUNDS if options.bounds else {"true_rate_rps": SimRunner}).items():
            declared[name][key] = true_rate_rps(KIND.load(name), options.runs, server=server)
            print(f"{name}: {key} {declared[name][key]:.5g}", flush=True)
            KIND.file.write_text(text_of(declared), encoding="utf-8")


if __name__ == "__main__":
    main()
