"""Brings documents of earlier schema versions to the present form, before they are parsed into types.

There is one step per schema version: ``STEPS[n]`` turns a document of version n into one of version n + 1. A step
changes only what it understands. It leaves damaged parts as they are, and parsing refuses them with their place.

Version 1 -> 2: a sample's label became a `WindowId`, sentences became `Problem`s, the interval of an accuracy became
its `share`, and the variants among builds of version 1 were unified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pytest_gpucap.results.problems import ProblemKind, ProblemSource
from pytest_gpucap.results.windows import Phase
from pytest_gpucap.simulated import simulated_class
from pytest_gpucap.vllm_arguments import recorded_command

Document = dict[str, Any]


def current(content: Document, version: int, steps: Mapping[int, Callable[[Document], Document]]) -> Document:
    """The document in the form of schema version `version`. The argument is not changed.

    Raises:
        ValueError: if there is no step for its version.
    """
    found = content["schema_version"]
    while found < version:
        if found not in steps:
            raise ValueError(f"schema version {found!r} was never written by any pytest-gpucap")
        found += 1
        content = {**steps[found - 1](content), "schema_version": found}
    return content


def _to_version_2(content: Document) -> Document:
    results = {"results": _each(content["results"], _result)} if "results" in content else {}
    return {**content, **results}


def _each(values: Any, change: Callable[[Document], Document]) -> Any:
    """A list with every object changed; any other value is returned unchanged."""
    return [change(each) if isinstance(each, dict) else each for each in values] if isinstance(values, list) else values


def _result(result: Document) -> Document:
    found = {key: value for key, value in result.items() if value is not None or key not in _NOT_NULL}
    point = Phase.SAMPLE if found.get("kind") == "sample" else Phase.POINT
    for part in ("samples", "points"):
        if part in found:
            found[part] = _each(found[part], lambda sample: _sample(sample, point))
    if "problems" in found:
        found["problems"] = _problems(found["problems"])
    if isinstance(spent := found.get("spent_s"), dict):
        found["spent_s"] = {phase: seconds for phase, seconds in spent.items() if seconds is not None}
    if isinstance(environment := found.get("environment"), dict):
        found["environment"] = _environment(environment)
    if isinstance(accuracy := found.get("accuracy"), dict):
        found["accuracy"] = _accuracy(accuracy)
    return found


_NOT_NULL: Final = frozenset({"reason", "points", "expected_failure"})
"""Keys of a result that are left out if empty."""
_INTERVAL: Final = ("value", "low", "high", "confidence")


def _accuracy(accuracy: Document) -> Document:
    share = {key: accuracy[key] for key in _INTERVAL if key in accuracy}
    rest = {key: value for key, value in accuracy.items() if key not in _INTERVAL}
    return {"share": None if share.get("value") is None else share, **rest}


def _sample(sample: Document, point: Phase) -> Document:
    """A sample; a window at one rate is a `point` of a sweep, or what `sample()` was asked for: both had one label."""
    found = {key: value for key, value in sample.items() if key != "label"}
    if isinstance(label := sample.get("label"), str):
        window = window_of(label, sample)
        found["window"] = window | ({"phase": point.value} if window["phase"] == Phase.POINT else {})
    if "problems" in found:
        found["problems"] = _problems(found["problems"])
    return found


_SLICE: Final = re.compile(r" \((?P<slice>\d+)/(?P<slices>\d+)\)$")
_SERVER: Final = re.compile(r"(?P<server>base|head): ")
_NUMBER: Final = r"(?P<cycle>\d+)"
_LEVEL: Final = r"(?P<concurrency>\d+)"
_RATE: Final = r"(?P<rate_rps>\d+(?:\.\d+)?(?:e[+-]?\d+)?) req/s"
_LABELS: Final = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        ("warm-up and low hold", Phase.WARM_UP),
        (f"hold at {_LEVEL}", Phase.RAMP),
        (f"hold at {_LEVEL}, again", Phase.RAMP_AGAIN),
        ("hold below the (?:fall|peak)", Phase.BELOW_PEAK),
        ("hold, extended", Phase.EXTENDED),
        (f"hold {_NUMBER}", Phase.HOLD),
        (f"design rate {_NUMBER}", Phase.DESIGN_RATE),
        (f"open loop {_NUMBER}", Phase.OPEN_LOOP),
        ("direct run", Phase.DIRECT),
        (f"search {_NUMBER}", Phase.SEARCH),
        ("one at a time", Phase.ALONE),
        (f"to {_RATE}", Phase.APPROACH),
        (_RATE, Phase.POINT),
        ("saturation", Phase.SATURATION),
        (f"(?P<server>base|head) {_NUMBER}", Phase.ALTERNATION),
        (f"equal rate {_NUMBER}", Phase.EQUAL_RATE),
        (f"{_LEVEL} in flight", Phase.SAMPLE),
    )
)
_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "cycle": int, "concurrency": int, "slice": int, "slices": int, "rate_rps": float, "server": str,
}  # fmt: skip


def window_of(label: str, sample: Mapping[str, Any]) -> Document:
    """The window that a label of version 1 names. An unknown label is replaced by the sample's load."""
    rest, found = label, dict[str, str]()
    for part in (_SLICE, _SERVER):
        if match := part.search(rest):
            found |= match.groupdict()
            rest = rest[: match.start()] + rest[match.end() :]
    for pattern, phase in _LABELS:
        if match := pattern.fullmatch(rest):
            figures = {name: _READ[name](text) for name, text in {**found, **match.groupdict()}.items()}
            return {"phase": phase.value, **figures}
    phase = Phase.OPEN_LOOP if sample.get("kind") == "open" else Phase.HOLD
    load = {"concurrency": sample.get("concurrency"), "rate_rps": sample.get("offered_rps")}
    return {"phase": phase.value, **load, **{name: _READ[name](text) for name, text in found.items()}}


_OWN: Final = "the load generator"
_PROBLEMS: Final = tuple(
    (re.compile(pattern), source, kind)
    for pattern, source, kind in (
        (f"{_OWN}.*send lateness", ProblemSource.LOAD_GENERATOR, ProblemKind.LATE),
        (f"{_OWN}.*a worker used", ProblemSource.LOAD_GENERATOR, ProblemKind.CPU),
        (f"{_OWN} could not send", ProblemSource.LOAD_GENERATOR, ProblemKind.DROPPED),
        (f"{_OWN}.*due requests were sent", ProblemSource.LOAD_GENERATOR, ProblemKind.BEHIND),
        (_OWN, ProblemSource.LOAD_GENERATOR, ProblemKind.OTHER),
        ("the system clock was set", ProblemSource.HOST, ProblemKind.CLOCK_SET),
        ("the server counted other prompt tokens", ProblemSource.SERVER, ProblemKind.PROMPT_TOKENS),
        (r"GPU \d.* was held by a power limit", ProblemSource.GPU, ProblemKind.POWER_LIMIT),
        (r"GPU \d.* uncorrected memory errors", ProblemSource.GPU, ProblemKind.MEMORY_ERRORS),
        (r"GPU \d.* (?:(?:slowdown|brake) in |ran at an SM clock)", ProblemSource.GPU, ProblemKind.SLOWED_DOWN),
        ("a neighbour was on ", ProblemSource.HOST, ProblemKind.SHARED),
        (r"GPU \d.* was lost: ", ProblemSource.GPU, ProblemKind.LOST),
        (r"GPU \d", ProblemSource.GPU, ProblemKind.OTHER),
        (".* limit of .* (?:tokens|req)/s on ", ProblemSource.MEASUREMENT, ProblemKind.IMPOSSIBLE),
        (".* is below the least possible of ", ProblemSource.MEASUREMENT, ProblemKind.IMPOSSIBLE),
        ("the queue model does not describe", ProblemSource.MEASUREMENT, ProblemKind.UNEXPLAINED),
        ("the answers could not be judged", ProblemSource.ANSWERS, ProblemKind.NO_ANSWERS),
    )
)


def _problems(texts: Any) -> Any:
    """Sentences of version 1, each with its source and kind."""
    return [_problem(each) if isinstance(each, str) else each for each in texts] if isinstance(texts, list) else texts


_LONGEST_PROBLEM: Final = 1_000
"""Characters that are looked at; the time of a search may grow with their square."""


def _problem(text: str) -> Document:
    told = ((source, kind) for pattern, source, kind in _PROBLEMS if pattern.match(text, 0, _LONGEST_PROBLEM))
    source, kind = next(told, (ProblemSource.MEASUREMENT, ProblemKind.OTHER))
    return {"source": source.value, "kind": kind.value, "text": text}


_DRIVER_AND_CUDA: Final = re.compile(r"(?P<driver>[\d.]+) \(CUDA (?P<cuda>[\d.]+)\)")
_SIMULATED: Final = re.compile(r"SIMULATED \((?P<profile>.+)\)")


def _environment(environment: Document) -> Document:
    found = {key: value for key, value in environment.items() if value is not None or key in _WEIGHTS}
    if match := _DRIVER_AND_CUDA.fullmatch(str(found.get("driver") or "")):
        found |= match.groupdict()
    if "gpu_class" not in environment and (match := _SIMULATED.fullmatch(str(found.get("gpu") or ""))):
        found["gpu_class"] = simulated_class(match["profile"])
    if "server_args" not in environment and (command := found.get("command")):
        found["server_args"] = recorded_command(str(command))
    # The first builds described devices in lines of text.
    told = [
        *([f"power limit {found.pop('power_limit')}"] if "power_limit" in found else []),
        *([found.pop("gpu_state")] if "gpu_state" in found else []),
    ]
    if told:
        found["gpu_remarks"] = told
    if isinstance(uuids := found.pop("gpu_uuids", None), list) and "devices" not in found:
        found["devices"] = [{"index": index, "uuid": uuid} for index, uuid in enumerate(uuids)]
    return found


_WEIGHTS: Final = frozenset({"quantization", "dtype"})
"""Of these, null means that the server reports nothing. A file without them did not ask the server."""


STEPS: Final[Mapping[int, Callable[[Document], Document]]] = {1: _to_version_2}
"""The step from each version to the next."""
