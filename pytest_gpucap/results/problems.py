"""Why a measurement cannot be trusted: who is to blame, what broke, and the sentence that says so to people."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ProblemSource(StrEnum):
    """Whose fault it is."""

    LOAD_GENERATOR = "load generator"
    SERVER = "server"
    GPU = "gpu"
    HOST = "host"
    MEASUREMENT = "measurement"
    """The figures themselves: what they say cannot be true, or does not fit together."""
    ANSWERS = "answers"
    """The answers to the workload's questions."""


class ProblemKind(StrEnum):
    """What broke."""

    LATE = "late"
    """Requests were sent later than they were due."""
    CPU = "cpu"
    """A load worker had no room on its core."""
    DROPPED = "dropped"
    """Requests that were due could not be sent."""
    BEHIND = "behind"
    """Requests that were due waited to be sent when the phase ended."""
    CLOCK_SET = "clock set"
    """The system clock was set during a phase."""
    PROMPT_TOKENS = "prompt tokens"
    """The server counted other prompt tokens than were asked for."""
    NO_LOAD = "no load"
    """The load could not be produced at all."""
    SLOWED_DOWN = "slowed down"
    """The device was throttled by heat, a power brake or a fault, or its clock fell."""
    POWER_LIMIT = "power limit"
    """The device was held by a power limit below its own."""
    MEMORY_ERRORS = "memory errors"
    LOST = "lost"
    """The device no longer answers."""
    SHARED = "shared"
    """Somebody else used the device."""
    FAILED_REQUESTS = "failed requests"
    """More requests failed than the requirement allows."""
    NO_TOKENS = "no tokens"
    """The server generated no token under load."""
    IMPOSSIBLE = "impossible"
    """Faster than the hardware can be."""
    UNEXPLAINED = "unexplained"
    """No model describes what was seen."""
    NO_ANSWERS = "no answers"
    """The answers could not be judged."""
    OTHER = "other"
    """Anything else, and whatever result files did not say before schema version 2."""


class Problem(msgspec.Struct, frozen=True):
    """One reason to distrust a measurement.

    Attributes:
        source: whose fault it is.
        kind: what broke.
        text: one sentence: what was seen, and what to do. For people; nothing reads it.
    """

    source: ProblemSource
    kind: ProblemKind
    text: str

    def __str__(self) -> str:
        return self.text
