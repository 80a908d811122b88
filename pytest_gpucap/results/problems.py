"""Why a measurement cannot be trusted: the source, the kind of problem, and a sentence for people."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class ProblemSource(StrEnum):
    """What caused the problem."""

    LOAD_GENERATOR = "load generator"
    SERVER = "server"
    GPU = "gpu"
    HOST = "host"
    MEASUREMENT = "measurement"
    """The figures themselves: they are impossible or contradict each other."""
    ANSWERS = "answers"
    """The answers to the workload's questions."""


class ProblemKind(StrEnum):
    """What went wrong."""

    LATE = "late"
    """Requests were sent later than they were due."""
    SUSPENDED = "suspended"
    """The load generator's processes did not run for a part of a phase."""
    CPU = "cpu"
    """A load worker's core was fully used."""
    DROPPED = "dropped"
    """Requests that were due could not be sent."""
    BEHIND = "behind"
    """Requests that were due were still unsent when the phase ended."""
    CLOCK_SET = "clock set"
    """The system clock was set during a phase."""
    PROMPT_TOKENS = "prompt tokens"
    """The server counted another number of prompt tokens than intended."""
    LENGTHS = "lengths"
    """Answers had other lengths than asked for, or lengths that cannot be verified."""
    REFUSED = "refused"
    """The server, or a gateway before it, refused requests."""
    NO_LOAD = "no load"
    """The load could not be produced at all."""
    SLOWED_DOWN = "slowed down"
    """The device or the host's processor was held back by heat, a power limit or a fault, or its clock fell."""
    POWER_LIMIT = "power limit"
    """The device ran at a power limit below its default."""
    MEMORY_ERRORS = "memory errors"
    XID = "xid"
    """The driver reported an error of the device under a number."""
    LOST = "lost"
    """The device no longer answers."""
    SHARED = "shared"
    """Another process used the device."""
    OTHERS = "other processes"
    """Other processes used the host's cores while none was idle."""
    STEAL = "steal"
    """The hypervisor ran other virtual machines instead of this one."""
    QUOTA = "quota"
    """A CPU quota held the processes back."""
    MEMORY = "memory"
    """The host was short of memory."""
    FAILED_REQUESTS = "failed requests"
    """More requests failed than the requirement allows."""
    NO_TOKENS = "no tokens"
    """The server generated no token under load."""
    NO_PACE = "no pace"
    """Answers show no time between tokens, so the limits cannot be judged."""
    TOO_LONG = "too long"
    """Prompts and answers do not fit the server's context."""
    ENDED = "ended"
    """The server, or one of its processes, ended or was stopped in the middle of the measurement."""
    SILENT = "silent"
    """The server stopped answering, or some of its requests hang."""
    NOT_MEASURED = "not measured"
    """The measurement could not begin, or ended early: no server, no device, or a fault of the plugin."""
    NO_TIME = "no time"
    """The session's limit (``--gpucap-max-total``) left no time to measure."""
    IMPOSSIBLE = "impossible"
    """The result is faster than the hardware can be."""
    UNEXPLAINED = "unexplained"
    """The queue model does not describe the measurement."""
    NO_ANSWERS = "no answers"
    """The answers could not be judged."""
    OTHER = "other"
    """Anything else, and problems from result files before schema version 2 whose kind is unknown."""


OF_THE_HOST: Final = frozenset({ProblemKind.OTHERS, ProblemKind.STEAL, ProblemKind.QUOTA, ProblemKind.MEMORY})
"""Kinds that are about the whole host: of several windows they tell the same with slightly different figures."""


OF_THE_END: Final = frozenset({ProblemKind.ENDED, ProblemKind.SILENT})
"""Kinds after which a server answers no more."""


class Problem(msgspec.Struct, frozen=True):
    """One reason to distrust a measurement.

    Attributes:
        source: what caused it.
        kind: what went wrong.
        text: a sentence for people: what was seen and what to do. No code reads it.
    """

    source: ProblemSource
    kind: ProblemKind
    text: str

    def __str__(self) -> str:
        return self.text
