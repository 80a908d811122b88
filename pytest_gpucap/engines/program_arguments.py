"""The keywords of an ``engine(...)`` marker -> the words of a program's command line.

Names are the program's own, with underscores. Values are text, numbers, switches, or lists of these; a mapping becomes
JSON. What a program does with an argument is its own affair: only what the plugin itself sets is refused.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pytest_gpucap.errors import told
from pytest_gpucap.masking import refusal
from pytest_gpucap.requirement import RequirementError, whole

Value = str | int | float | bool | tuple[str, ...]

MOST_CHARACTERS: Final = 2**16
"""Of a command line: the time to split it grows with the square of its length."""
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.]*")
_LARGEST: Final = 10**100


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagStyle:
    """How a program spells its arguments.

    Attributes:
        dashes: ``ctx_size`` is ``--ctx-size``; otherwise ``--ctx_size``.
        switch_values: a switch has a value, ``--verbose true``. Otherwise it is there or left out.
    """

    dashes: bool = True
    switch_values: bool = False

    def words(self, arguments: Mapping[str, Value]) -> list[str]:
        """The words of the command line."""
        return [word for name, value in arguments.items() for word in self._of(name, value)]

    def _of(self, name: str, value: Value) -> Iterator[str]:
        flag = f"--{name.replace('_', '-') if self.dashes else name}"
        if isinstance(value, bool) and not self.switch_values:
            yield from [flag] if value else []
        elif isinstance(value, bool):
            yield from (flag, str(value).lower())
        elif isinstance(value, tuple):
            yield from (flag, *value)
        elif str(value).startswith("-"):
            yield f"{flag}={value}"  # else it would be read as a flag
        else:
            yield from (flag, str(value))


def split(text: str, what: str) -> list[str]:
    """The words of a command line, as a shell splits it; nothing else of a shell is understood.

    Raises:
        RequirementError: one line, if a quote is not closed, a character cannot stand there, or it is too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise RequirementError(f"{what} has at most {MOST_CHARACTERS} characters, not {len(text)}")
    if "\x00" in text:
        raise RequirementError(f"{what} holds a null character, which no command line can carry")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RequirementError(f"{what} cannot be split into words: {error}") from None


def read(engine: str, given: Mapping[str, object], owned: Mapping[str, str]) -> dict[str, Value]:
    """Arguments by name, with values that a command line can carry. Those that are None are left out.

    Args:
        engine: its name, for messages.
        given: as in the marker.
        owned: arguments that the plugin sets, and why.

    Raises:
        RequirementError: one line, if one of them cannot be given.
    """
    found: dict[str, Value] = {}
    for spelling, value in given.items():
        name = str(spelling).replace("-", "_")
        if _NAME.fullmatch(name) is None:
            raise RequirementError(f"{engine}: {told(spelling)} is no name of an argument")
        if reason := owned.get(name):
            raise RequirementError(f"{engine}: {name} cannot be set: {reason}")
        if name in found:
            raise RequirementError(f"{engine}: {name} given twice")
        if value is not None:
            found[name] = _plain(engine, name, value)
    return found


def parse(engine: str, text: str) -> dict[str, object]:
    """Arguments as they stand on a command line, such as ``--ctx-size 4096 --flash-attn``.

    Raises:
        RequirementError: one line, if a word belongs to no argument.
    """
    found: dict[str, list[str]] = {}
    last: list[str] | None = None
    for word in split(text, f"{engine}: the command line"):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and _NAME.fullmatch(name := flag[2:].replace("-", "_")):
            last = found[name] = [value] if equals else []
        elif last is None:
            raise RequirementError(f"{engine}: {told(word)} follows no --argument")
        else:
            last.append(word)
    for name, words in found.items():
        if why := refusal(name, " ".join(words)):
            raise RequirementError(f"{engine}: {why}")
    return {name: True if not words else words[0] if len(words) == 1 else words for name, words in found.items()}


def count(engine: str, arguments: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The whole number that an argument gives under one of its names; None if it is not given.

    Raises:
        RequirementError: one line, if it is no whole number from 1.
    """
    known = {str(name).replace("-", "_"): value for name, value in arguments.items()}
    for name in names:
        value = known.get(name)
        if value is not None:
            text = value.strip() if isinstance(value, str) else value
            # `whole` reads a text as it stands.
            return whole(text, f"{engine}: {name}")  # type: ignore[arg-type]  # anything else is refused by it
    return None


def product(engine: str, arguments: Mapping[str, object], sizes: Iterable[Sequence[str]]) -> int:
    """The product of several such numbers; each is 1 where it is not given."""
    found = 1
    for names in sizes:
        found *= count(engine, arguments, names) or 1
    return found


def _plain(engine: str, name: str, value: object) -> Value:
    if isinstance(value, list | tuple):
        if not value:
            raise RequirementError(f"{engine}: {name} is an empty list: leave it out or name its values")
        items = tuple(str(_item(engine, name, each)) for each in value)
        if flag := next((each for each in items if each.startswith("--")), None):
            raise RequirementError(f"{engine}: {name}: {told(flag)} in a list would be read as an argument of its own")
        return items
    return value if isinstance(value, bool) else _item(engine, name, value)


def _item(engine: str, name: str, value: object) -> str | int | float:
    """One word of the command line."""
    if isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequirementError(f"{engine}: {name}={told(value)} cannot be written as JSON: {error}") from None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if "\x00" in value or len(value) > MOST_CHARACTERS:
            raise RequirementError(f"{engine}: {name}={told(value)}: no command line can carry this text")
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        return value
    raise RequirementError(f"{engine}: {name}={told(value)}: write text, a number, a mapping or a list of these")
