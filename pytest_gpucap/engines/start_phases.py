"""What a start of vLLM spent its time on, as its log tells it.

vLLM states how long most phases took. Where it does not, the times of two lines say so, to the second. A version that
logs a line in other words, or not at all, leaves that phase out: what is known is never filled up by a guess.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class StartPhase(StrEnum):
    """A part of a start, in the order in which they come.

    Attributes:
        IMPORTS: from the start of the process until the engine knows its configuration; mostly imports, twice.
        DOWNLOAD: the model's files are fetched.
        WEIGHTS: they are read, and laid out in memory.
        COMPILE: ``torch.compile``, or its result is read from a cache.
        PROFILING: memory is measured and given to the KV cache, and kernels are tuned.
        GRAPH_CAPTURE: CUDA graphs are captured.
        READINESS: from the engine's end of its start until a first request is answered.
    """

    IMPORTS = "imports"
    DOWNLOAD = "download"
    WEIGHTS = "weights"
    COMPILE = "compile"
    PROFILING = "profiling"
    GRAPH_CAPTURE = "graph capture"
    READINESS = "readiness"


_NUMBER: Final = r"(\d{1,7}(?:\.\d{1,9})?)"
_WORDS: Final[Mapping[str, str]] = {
    "configured": r"Initializing a V\d LLM engine",
    "load begins": r"Starting to load model ",
    "download": rf"Time spent downloading weights for [^\n]{{0,300}}?: {_NUMBER} seconds",
    "model": rf"Model loading took [\d.]{{1,20}} GiB(?: memory)? and {_NUMBER} seconds",
    "weights": rf"Loading weights took {_NUMBER} seconds",
    "warm-up begins": r"Warming up model for the compilation",  # on the CPU, which states no time
    "warm-up ends": r"Warming up done",
    "compile so far": rf"torch\.compile takes {_NUMBER} s in total",  # up to about 0.15: of all models until then
    "compile": rf"torch\.compile took {_NUMBER} s in total",
    "compile in all": rf"init engine \([^)\n]{{1,80}}\) took [\d.]{{1,20}} s \(compilation: {_NUMBER} s",
    "capture": rf"Graph capturing finished in {_NUMBER} secs",
    "engine": rf"init engine \([^)\n]{{1,80}}\) took {_NUMBER} s",
}
_PATTERNS: Final = {name: re.compile(pattern) for name, pattern in _WORDS.items()}
_ANY: Final = re.compile("Initializing|load|Load|Warming|torch.compile|captur|init engine")
"""Whatever has a pattern has one of these; most lines have none."""
_PROCESS: Final = re.compile(r"\(([^()\n]{1,100})\) ")
"""The process that logs a line, before it; versions up to 0.10 leave it out."""
_STAMP: Final = re.compile(r"\b[A-Z]{4,8} (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) ")
_HEAD: Final = 200
_LINE: Final = 1_000
_TOLERANCE_S: Final = 2.0
"""Two lines' times are whole seconds, and so is the time that capturing graphs took."""
_LEAST_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Said:
    """One line: which process logged it, the seconds that it states, and when it came after the start began."""

    process: str
    seconds: float | None
    at_s: float | None


def start_phases(log: str, started_at: float, startup_s: float) -> dict[str, float]:
    """Seconds by phase of a start, in order; those that the log does not tell are left out.

    Processes of one server start side by side, so a phase is as long as that of its slowest process.

    Args:
        log: of a server that is ready, from its first line on.
        started_at: when its process was started, in seconds since the epoch. The log has this machine's local time.
        startup_s: seconds from then until it was ready. The phases add up to no more.
    """
    said = _read(log, started_at, startup_s)
    engine_s = max(_seconds(said["engine"]), default=None)
    engine_at_s = max(_times(said["engine"]), default=None)
    found: dict[StartPhase, float | None] = {
        StartPhase.DOWNLOAD: _slowest(said["download"], sum),
        StartPhase.WEIGHTS: _weights(said, engine_s, engine_at_s),
        StartPhase.COMPILE: _compile(said, engine_s),
        StartPhase.GRAPH_CAPTURE: _slowest(said["capture"], sum),
    }
    if engine_s is not None:
        inside = (found[StartPhase.COMPILE], found[StartPhase.GRAPH_CAPTURE])
        found[StartPhase.PROFILING] = engine_s - sum(each or 0.0 for each in inside)
    free_s = startup_s - sum(max(0.0, each or 0.0) for each in found.values())
    if free_s < -_TOLERANCE_S:  # not the log of this start
        return {}
    configured_s = max(_times(said["configured"]), default=None)
    if configured_s is not None:
        found[StartPhase.IMPORTS] = min(configured_s, free_s)
        free_s -= max(0.0, found[StartPhase.IMPORTS] or 0.0)
    if engine_at_s is not None:
        found[StartPhase.READINESS] = min(startup_s - engine_at_s, free_s)
    known = ((phase, found.get(phase)) for phase in StartPhase)
    return {phase.value: round(seconds, 2) for phase, seconds in known if seconds is not None and seconds >= _LEAST_S}


def _read(log: str, started_at: float, startup_s: float) -> dict[str, list[_Said]]:
    """Every line that tells of a phase, by its words. A time outside of the start is another zone's, and not taken."""
    found: dict[str, list[_Said]] = {name: [] for name in _PATTERNS}
    for line in log.splitlines():
        head = line[:_LINE]
        if not _ANY.search(head):
            continue
        for name, pattern in _PATTERNS.items():
            if match := pattern.search(head):
                process = _PROCESS.match(head)
                seconds = float(match[1]) if pattern.groups else None
                at_s = _since(head[:_HEAD], started_at)
                inside = at_s is not None and -_TOLERANCE_S <= at_s <= startup_s + _TOLERANCE_S
                found[name].append(_Said(process[1] if process else "", seconds, at_s if inside else None))
    return found


def _since(head: str, started_at: float) -> float | None:
    """Seconds from the start to the time of a line, which has no year; None where it has no time.

    A line of a second may have come at any moment of it, so its middle counts.
    """
    stamp = _STAMP.search(head)
    if stamp is None:
        return None
    month, day, hour, minute, second = map(int, stamp.groups())
    year = time.localtime(started_at).tm_year
    try:
        at = [time.mktime((each, month, day, hour, minute, second, 0, 0, -1)) for each in (year, year + 1)]
    except (OverflowError, ValueError):
        return None
    return min((each + 0.5 - started_at for each in at), key=abs)


def _weights(said: Mapping[str, list[_Said]], engine_s: float | None, engine_at_s: float | None) -> float | None:
    """Reading the weights, without their download; where no line states it, from that line on to the engine's start."""
    model_s = max(_seconds(said["model"]), default=None)
    if model_s is not None:
        return model_s - (_slowest(said["download"], sum) or 0.0)
    if said["weights"]:
        return _slowest(said["weights"], sum)
    begun_s = max(_times(said["load begins"]), default=None)
    if begun_s is None or engine_s is None or engine_at_s is None:
        return None
    return engine_at_s - engine_s - begun_s


def _compile(said: Mapping[str, list[_Said]], engine_s: float | None) -> float | None:
    if said["compile in all"]:
        return max(_seconds(said["compile in all"]))
    if said["compile"]:
        return _slowest(said["compile"], sum)
    if said["compile so far"]:
        return _slowest(said["compile so far"], max)
    begun_s, ended_s = (
        max(_times(said["warm-up begins"]), default=None),
        max(_times(said["warm-up ends"]), default=None),
    )
    if begun_s is None or ended_s is None:
        return None
    return ended_s - begun_s if engine_s is None else min(ended_s - begun_s, engine_s)


def _slowest(said: Iterable[_Said], of_one: Callable[[list[float]], float]) -> float | None:
    """The longest that one process took, by what its lines state together; None where no line does."""
    each: dict[str, list[float]] = {}
    for line in said:
        if line.seconds is not None:
            each.setdefault(line.process, []).append(line.seconds)
    return max(map(of_one, each.values()), default=None)


def _seconds(said: Iterable[_Said]) -> list[float]:
    return [line.seconds for line in said if line.seconds is not None]


def _times(said: Iterable[_Said]) -> list[float]:
    return [line.at_s for line in said if line.at_s is not None]
