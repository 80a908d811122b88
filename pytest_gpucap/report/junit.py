"""Records -> pytest's ``user_properties``, which JUnit files and other plugins show. Plain text and numbers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_gpucap.report.wording import headline


def properties(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | float]]:
    """Pairs named ``gpucap_...``; the verdict first, because viewers cut long lists."""
    pairs: list[tuple[str, str | float]] = []
    for record in records:
        found = record["sustainable_rate"]
        if record["outcome"] is not None:
            pairs += [("gpucap_verdict", record["outcome"]), ("gpucap_headline", headline(record))]
        if found is not None:
            pairs += [
                (f"gpucap_rate{end}_rps", found[key])
                for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            ]
        if record.get("gpus_required") is not None:
            pairs += [("gpucap_gpus_required", record["gpus_required"]), ("gpucap_gpus", record["requirement"]["gpus"])]
        if record["simulated"]:
            pairs.append(("gpucap_simulated", "SIMULATED"))
    return pairs
