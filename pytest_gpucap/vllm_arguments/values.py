"""Values of vLLM's arguments: what may be one, the words that carry it on a command line, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final

from pytest_gpucap.errors import told
from pytest_gpucap.requirement import RequirementError, whole

Item = str | int | float
Value = Item | bool | tuple[Item, ...] | None
"""True and False are a switch and its ``--no-`` form, a tuple is several words, None is an argument left out."""
REPEATED: Final = frozenset({"middleware"})
"""Several values of these stand after a flag each."""
FLAG: Final = re.compile(r"--?[A-Za-z]")
_READABLE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kKmMgGtT])")
_FACTORS: Final = {letter: 1000**power for power, letter in enumerate("kmgt", 1)} | {
    letter: 1024**power for power, letter in enumerate("KMGT", 1)
}
_LARGEST: Final = 10**100
"""More is a mistake; Python makes no text of thousands of digits."""


def several(value: Value) -> tuple[Item, ...]:
    """The words of a value; none of an argument that is left out."""
    return value if isinstance(value, tuple) else () if value is None else (value,)


def plain(name: str, value: object) -> Value:
    """The value in a form that can be hashed and put on a command line."""
    if isinstance(value, list | tuple):
        if not value:
            raise RequirementError(f"vllm: {name} is an empty list: leave it out or name its values")
        items = tuple(_item(name, item) for item in value)
        if "." not in name and (flags := [item for item in items if FLAG.match(str(item))]):
            raise RequirementError(f"vllm: {name}: {told(flags[0])} in a list would be read as an argument of its own")
        # One item and the item alone are one word; behind a key they are different JSON.
        return items[0] if len(items) == 1 and "." not in name else items
    return value if value is None or isinstance(value, bool) else _item(name, value)


def _item(name: str, value: object) -> Item:
    """One word of the command line."""
    if isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequirementError(f"vllm: {name}={told(value)} cannot be written as JSON: {error}") from None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise RequirementError(f"vllm: {name} must lie within 1e100, not {told(value)}")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise RequirementError(f"vllm: {name}={told(value)}: write text, a number, a mapping or a list of these")


def words_of(name: str, value: Value) -> list[str]:
    """The words of the command line for one argument."""
    root, dot, keys = name.partition(".")
    long = f"{root.replace('_', '-')}{dot}{keys}"
    if value is None:
        return []
    if dot and isinstance(value, bool | tuple):
        value = json.dumps(value)  # what stands behind a key is read as JSON
    if isinstance(value, bool):
        # vLLM's switches come in pairs (argparse.BooleanOptionalAction).
        return [f"--{long}" if value else f"--no-{long}"]
    if name in REPEATED:
        return [word for item in several(value) for word in (f"--{long}", str(item))]
    if isinstance(value, tuple):
        return [f"--{long}", *map(str, value)]
    return [f"--{long}={value}"] if str(value).startswith("-") else [f"--{long}", str(value)]


def root_of(name: str) -> str:
    """The argument that ``name.key`` is a key of; the name itself where it has none."""
    return name.partition(".")[0]


def within(name: str, other: str) -> bool:
    """Whether an argument is another one or a key of it."""
    return name == other or name.startswith(f"{other}.")


def put(config: dict[str, object], name: str, value: Value) -> None:
    """Set what ``name.key.key`` says in a JSON object, as vLLM's parser does; ``key+`` takes a list's elements."""
    if value is None:
        return
    *path, last = name.split(".")[1:]
    for key in path:
        below = config.get(key)
        if not isinstance(below, dict):
            below = config[key] = {}
        config = below
    read: object = _json(value)
    if last.endswith("+"):
        last, read = last[:-1], str(value).split(",")
    here = config.get(last)
    if isinstance(here, dict) and isinstance(read, dict):
        here.update(read)
    else:
        config[last] = read


def _json(value: Value) -> object:
    """A value behind a key as vLLM reads it: as JSON, else as a number with a unit, else as text."""
    if isinstance(value, tuple):
        return list(map(_json, value))
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        readable = number_with_unit(value)
        return value if readable is None else readable


def json_object(value: object) -> dict[str, object] | None:
    """The JSON object that a text is; None if it is none."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def identity_of(values: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    """See `VllmArguments.identity`."""
    found: dict[str, str] = {}
    keyed: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        if "." in name:
            put(keyed.setdefault(root_of(name), {}), name, value)
        elif (joined := json_object(value)) is not None:
            found[name] = json.dumps(joined, sort_keys=True)
        else:
            number = number_with_unit(value) if isinstance(value, str) else None
            found[name] = json.dumps(words_of("", value if number is None else number))
    found |= {name: json.dumps(config, sort_keys=True) for name, config in keyed.items()}
    return tuple(sorted(found.items()))


def number_with_unit(text: str) -> int | None:
    """``"4k"`` is 4000 and ``"4K"`` 4096, as vLLM reads numbers with a unit; None for other texts."""
    match = _READABLE.fullmatch(text.strip())
    if match is None or (match[2].isupper() and "." in match[1]):
        return None
    return int(Fraction(match[1]) * _FACTORS[match[2]])


def whole_number(name: str, value: object) -> int:
    """A value as a whole number of at least 1.

    Raises:
        RequirementError: if it is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RequirementError(f"vllm: {name} must be a whole number of at least 1, not {told(value)}")
    return whole(value, f"vllm: {name}")
