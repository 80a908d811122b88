"""Audio beside every prompt: ``gpucap(audio="10s")``, or a list with the length of each clip."""

from __future__ import annotations

import numbers
from decimal import Decimal
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.requirement import RequirementError, duration_s

MOST_CLIPS: Final = 64
"""Of one prompt: more than any server takes unless it is told to."""
SHORTEST_S: Final = 0.1
"""Models look at pieces of some tens of milliseconds, and refuse a clip that fills none."""
MOST_S: Final = 600.0
"""Of the clips of one prompt together: 19 MB, a third more as text. vLLM takes no longer clip unless it is told to."""


def read_audio(value: Any, what: str) -> tuple[float, ...]:
    """The lengths of a prompt's audio clips in seconds.

    Args:
        value: as it was given: a duration for one clip, or a list of durations.
        what: its name, for messages.

    Raises:
        RequirementError: one line, if a duration cannot be read, or the clips are too many, too short or too long.
    """
    given = value if isinstance(value, list | tuple) else [value]
    if not given:
        raise RequirementError(f'{what} must be a duration such as "10s" or a list of durations, not {told(value)}')
    if len(given) > MOST_CLIPS:
        raise RequirementError(f"{what} must be at most {MOST_CLIPS} clips, not {len(given)}")
    lengths_s = tuple(_length_s(each, what) for each in given)
    if (together_s := sum(lengths_s)) > MOST_S:
        raise RequirementError(f"{what} must have at most {MOST_S:g} s together, not {together_s:g} s")
    return lengths_s


def _length_s(value: Any, what: str) -> float:
    one = isinstance(value, str | Decimal | numbers.Real) and not isinstance(value, bool)
    if not one:
        raise RequirementError(f'{what} must be a duration such as "10s" or a list of durations, not {told(value)}')
    length_s = duration_s(value, what)
    if length_s < SHORTEST_S:
        raise RequirementError(f"{what} must have clips of at least {SHORTEST_S:g} s, not {told(value)}")
    return length_s
