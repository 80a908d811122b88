"""Arguments in any spelling -> values by long name, each once; what contradicts itself is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pytest_gpucap.errors import shortened, told
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.vllm_arguments.spelling import LEVEL_OR_CONFIG, NAME, OWNED, SHORT, Spelled, long_name
from pytest_gpucap.vllm_arguments.values import (
    REPEATED,
    Value,
    identity_of,
    json_object,
    plain,
    put,
    root_of,
    several,
    within,
)


def read(given: Iterable[Spelled]) -> dict[str, Value]:
    """Arguments by long name, in a form that a command line can carry.

    Raises:
        RequirementError: see `VllmArguments`.
    """
    found: dict[str, Value] = {}
    shown_as: dict[str, str] = {}
    for spelling, raw, shown in given:
        short = spelling.partition(".")[0].removeprefix("-")
        if NAME.fullmatch(spelling.removeprefix("-") if short in {*SHORT, LEVEL_OR_CONFIG} else spelling) is None:
            raise RequirementError(f"vllm: {told(spelling)} is no name of a vLLM argument")
        name, switched = long_name(spelling, raw)
        if root_of(name).startswith("no_"):
            raise RequirementError(f"vllm: {spelling} is a switch: write True or False, not {told(raw)}")
        if reason := OWNED.get(name.lower()):
            raise RequirementError(f"vllm: {spelling} cannot be set: {reason}")
        value = plain(spelling, switched)
        if name in found and name in REPEATED:
            value = (*several(found[name]), *several(value))
        elif name in found and identity_of({name: found[name]}) != identity_of({name: value}):
            raise RequirementError(f"vllm: {name} given twice: {shortened(shown_as[name])} and {shortened(shown)}")
        found[name], shown_as[name] = value, shown
    return joined(found, shown_as)


def joined(values: Mapping[str, Value], shown_as: Mapping[str, str] | None = None) -> dict[str, Value]:
    """The same with ``name`` and ``name.key`` made one JSON value; alone, ``name.key`` stays as it is.

    vLLM would drop the first of the two without a word.

    Args:
        values: by long name.
        shown_as: how each was given: a key that both set to different values is then an error; else the key counts.
    """
    found = dict(values)
    for root in dict.fromkeys(root_of(name) for name in values if "." in name and root_of(name) in values):
        whole_value = found.pop(root)
        if whole_value is None:
            continue
        config = json_object(whole_value)
        keys = [name for name in found if within(name, root)]
        if config is None:
            raise RequirementError(f"vllm: {root}={told(whole_value)} is no JSON object, and {keys[0]} is a key of one")
        for name in keys:
            before = json.dumps(config, sort_keys=True)
            put(config, name, found.pop(name))
            if shown_as is not None and _loses(json.loads(before), config):
                raise RequirementError(f"vllm: {name} given twice: {shown_as[root]} and {shown_as[name]}")
        found[root] = json.dumps(config)
    return found


def _loses(before: object, after: object) -> bool:
    """Whether anything of a JSON value was replaced."""
    if isinstance(before, dict) and isinstance(after, dict):
        return any(key not in after or _loses(value, after[key]) for key, value in before.items())
    return before != after
