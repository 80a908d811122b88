"""Simulated servers that a TOML file declares, under limits of their own.

Each has the engine and the workload of a profile that comes with the plugin, or its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pytest_gpucap.load import schedule
from pytest_gpucap.load.latencies import Ended
from pytest_gpucap.requirement import ApiKind, ArrivalKind, Arrivals, Length, Slo, Workload, declared_limits
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.simulator.truth import DISCARD_S, RUN_S


def as_limited(profile: profiles.Profile, _: Mapping[str, Any]) -> profiles.Profile:
    """Nothing of its table is left to say."""
    return profile


@dataclass(frozen=True, slots=True)
class Kind:
    """Servers of one kind, all in one file.

    Attributes:
        name: of the kind, and of its file.
        completed: gives a server what its table says beside engine, workload and limits.
    """

    name: str
    completed: Callable[[profiles.Profile, Mapping[str, Any]], profiles.Profile] = as_limited

    @property
    def file(self) -> Path:
        """Declares them."""
        return Path(__file__).with_name(f"{self.name}.toml")

    def tables(self) -> dict[str, dict[str, Any]]:
        """What the file declares, by the server's name."""
        return tomllib.loads(self.file.read_text(encoding="utf-8"))

    def names(self) -> list[str]:
        """All servers."""
        return list(self.tables())

    def load(self, name: str) -> profiles.Profile:
        """A server, with its true rate under its own limits; NaN until it is determined."""
        table = self.tables()[name]
        return self.completed(limited(name, table), table)


def limited(name: str, table: Mapping[str, Any]) -> profiles.Profile:
    """A server, with its true rate under its own limits; NaN until it is determined."""
    return replace(
        _own(table) if "engine" in table else profiles.load(table["profile"]),
        name=name,
        slo=Slo(declared_limits(table["slo"])),
        true_rate_rps=float(table.get("true_rate_rps", "nan")),
    )


def _own(table: Mapping[str, Any]) -> profiles.Profile:
    """A server that is no profile."""
    inputs, outputs = (Length.parse(table[key], key) for key in ("input_tokens", "output_tokens"))
    workload = Workload(inputs, outputs, endpoint=ApiKind(table.get("endpoint", "completions")))
    if "burstiness" in table:
        workload = replace(workload, arrivals=Arrivals(ArrivalKind.GAMMA, table["burstiness"]))
    return profiles.Profile("", "drawn at random", True, profiles.EngineModel(**table["engine"]), workload, Slo())


def own_text(profile: profiles.Profile, inputs: str, outputs: str = "1") -> list[str]:
    """The lines of a server's own engine and workload in the file, of lengths as `Length.parse` takes them."""
    usual = profiles.EngineModel(0.0, 0.0, 0.0)
    engine = {
        each.name: getattr(profile.engine, each.name)
        for each in fields(profile.engine)
        if getattr(profile.engine, each.name) != getattr(usual, each.name)
    }
    lines = [
        f"engine = {{ {', '.join(f'{key} = {value}' for key, value in engine.items())} }}",
        f'input_tokens = "{inputs}"',
        f'output_tokens = "{outputs}"',
    ]
    workload = profile.workload
    if workload.endpoint is not ApiKind.COMPLETIONS:
        lines.append(f'endpoint = "{workload.endpoint.value}"')
    if workload.arrivals.kind is ArrivalKind.GAMMA:
        lines.append(f"burstiness = {workload.arrivals.burstiness}")
    return lines


def slo_text(table: Mapping[str, Any]) -> str:
    """The line of its limits in the file."""
    limits = ", ".join(f'{key} = "{value}"' for key, value in table["slo"].items())
    return f"slo = {{ {limits} }}"


def latencies_at(profile: profiles.Profile, rate_rps: float, runs: int, seed: int) -> Ended:
    """The latencies of all requests of some long runs at a rate, one run after the other."""
    parts = []
    for run in range(runs):
        runner = SimRunner(profile.engine.settled(), seed + run)
        begun = schedule.open_loop(profile.workload, rate_rps, DISCARD_S, seed, 2 * run)
        runner.run(begun)
        span = runner.run(schedule.open_loop(profile.workload, rate_rps, RUN_S, seed, 2 * run + 1, begun.prompts))
        runner.settle(600.0)
        rows, journal = slice(span.first_row, span.end_row), runner.journal()
        parts.append((journal.ttft_s[rows], journal.tpot_s[rows], journal.e2e_s[rows]))
    return Ended(*(np.concatenate(each) for each in zip(*parts, strict=True)))
