"""Names of GPU classes that are simulated: ``sim:PROFILE``."""

from __future__ import annotations

from typing import Final

_PREFIX: Final = "sim:"


def is_simulated(gpu_class: str | None) -> bool:
    """Whether the name is of a simulated class."""
    return gpu_class is not None and gpu_class.startswith(_PREFIX)


def simulated_class(profile: str) -> str:
    """The name of the class that a simulator with this profile is."""
    return f"{_PREFIX}{profile}"


def profile_of(gpu_class: str) -> str:
    """The profile of a simulated class; any other name as it is."""
    return gpu_class.removeprefix(_PREFIX)
