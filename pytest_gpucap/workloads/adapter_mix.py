"""Mixes of LoRA adapters: ``gpucap(adapters={"support": 0.7, "legal": 0.3})``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.masking import refusal
from pytest_gpucap.requirement import BASE_MODEL, RequirementError, positive, whole

MOST_ADAPTERS: Final = 1024
"""Of one mix: each has a row in every report."""
HIGHEST_RANK: Final = 512
"""That vLLM serves."""
DEFAULT_RANK: Final = 16
"""vLLM's default for ``--max-lora-rank``."""
_LONGEST_NAME: Final = 200
_EXAMPLE: Final = '{"support": 0.7, "legal": 0.3}'


def read_adapters(value: Any, what: str) -> dict[str, float]:
    """The share of the requests of each adapter, in the order of the mix; the shares add up to 1.

    Args:
        value: weights by name, as they were given.
        what: its name, for messages.

    Raises:
        RequirementError: one line, if it is no mix.
    """
    if not isinstance(value, Mapping):
        raise RequirementError(
            f"{what} must be weights by the name of the adapter, such as {_EXAMPLE}, not {told(value)}"
        )
    if not value:
        raise RequirementError(f"{what} is empty: name at least one adapter, such as {_EXAMPLE}, or leave it out")
    if len(value) > MOST_ADAPTERS:
        raise RequirementError(f"{what} has {len(value)} adapters: it may have {MOST_ADAPTERS}")
    for name in value:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or name.isspace():
            raise RequirementError(
                f"{what}: the name of an adapter must be a text of up to {_LONGEST_NAME} characters, not {told(name)}"
            )
        if why := refusal(what, name):
            raise RequirementError(f"{what}: {why}")
    weights = {name: positive(weight, f"{what}: the weight of {told(name)}") for name, weight in value.items()}
    if set(weights) == {BASE_MODEL}:
        raise RequirementError(f"{what} has only {BASE_MODEL!r}, which is the model without an adapter: leave it out")
    total = sum(weights.values())
    return {name: float(weight / total) for name, weight in weights.items()}


def read_rank(value: Any, what: str) -> int:
    """The rank of adapters that are made."""
    rank = whole(value, what)
    if rank > HIGHEST_RANK:
        raise RequirementError(f"{what} must be at most {HIGHEST_RANK}, which vLLM serves, not {told(value)}")
    return rank


def own_adapters(mix: Mapping[str, float]) -> tuple[str, ...]:
    """The adapters of a mix, without the model that has none."""
    return tuple(name for name in mix if name != BASE_MODEL)
