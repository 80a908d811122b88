"""Simulated servers that a TOML file declares: a profile that comes with the plugin, under limits of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_gpucap.requirement import Slo, declared_limits
from pytest_gpucap.simulator import profile as profiles


def tables_of(file: Path) -> dict[str, dict[str, Any]]:
    """What the file declares, by the server's name."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


def limited(name: str, table: Mapping[str, Any]) -> profiles.Profile:
    """A server, with its true rate under its own limits; NaN until it is determined."""
    return replace(
        profiles.load(table["profile"]),
        name=name,
        slo=Slo(declared_limits(table["slo"])),
        true_rate_rps=float(table.get("true_rate_rps", "nan")),
    )


def slo_text(table: Mapping[str, Any]) -> str:
    """The line of its limits in the file."""
    limits = ", ".join(f'{key} = "{value}"' for key, value in table["slo"].items())
    return f"slo = {{ {limits} }}"
