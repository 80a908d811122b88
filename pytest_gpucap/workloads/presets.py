"""Workload presets: a name stands for keywords of the ``gpucap`` marker, which the marker may override or add to.

The plugin's presets are in a data file, with the sources of their figures. A user's own file has the same format, and
its presets may extend ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.user_files import UserFileError, read_toml
from pytest_gpucap.workloads.sessions import names_a_file, split_words

_OUR_FILE: Final = "presets.toml"
_NO_KEYWORDS: Final = frozenset({"about", "extends", "sources"})
_FILES: Final = ("trace", "questions", "prompts")
"""Keywords that may name a file. In a preset, the name is relative to the preset's file."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A named workload.

    Attributes:
        about: one line on what it stands for.
        sources: where its figures come from.
        keywords: of the ``gpucap`` marker, as they would be written there.
    """

    name: str
    about: str = ""
    sources: tuple[str, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


def find_preset(name: str, own: Path | None = None, added: Mapping[str, Mapping[str, Any]] | None = None) -> Preset:
    """The preset of a name; the user's own file comes before plugins, and those before ours.

    Args:
        name: as given in ``workload=``.
        own: a TOML file in the same format as ours.
        added: by plugins, name to table.

    Raises:
        RequirementError: if there is none, it extends itself, or the user's file is malformed.
    """
    layers = [_Layer(_ours(), _OUR_FILE, None)]
    if added:
        layers.insert(0, _Layer(added, "presets of plugins", None))
    if own is not None:
        layers.insert(0, _Layer(_read(own, str(own)), str(own), own.parent))
    return _resolve(name, layers, ())


def preset_names() -> tuple[str, ...]:
    """The presets that come with the plugin."""
    return tuple(_ours())


@dataclass(frozen=True, slots=True)
class _Layer:
    """The presets of one file. A name is looked up in the first layer that has it."""

    tables: Mapping[str, Mapping[str, Any]]
    place: str
    folder: Path | None


def _resolve(name: str, layers: Sequence[_Layer], through: tuple[str, ...]) -> Preset:
    layer = next((layer for layer in layers if name in layer.tables), None)
    if layer is None:
        known = list(dict.fromkeys(name for layer in layers for name in layer.tables if name not in through))
        near = get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        asked = f"{layers[0].place}: {through[-1]} extends {name!r}" if through else f"workload={name!r}"
        raise RequirementError(f"{asked}: there is no such workload preset; {hint}")
    table, base = layer.tables[name], Preset(name)
    if "extends" in table:
        parent = str(table["extends"])
        if parent in through or (parent == name and layer is layers[-1]):
            raise RequirementError(f"{layer.place}: {' extends '.join([*through, name, parent])}: a circle")
        # A user's preset may have the name of one of ours, and extend it.
        below = layers[layers.index(layer) + 1 :] if parent == name else layers
        base = _resolve(parent, below, (*through, name))
    keywords = {key: _placed(key, value, layer.folder) for key, value in table.items() if key not in _NO_KEYWORDS}
    if "workload" in keywords:
        raise RequirementError(f"{layer.place}: {name}: write extends = {keywords['workload']!r} instead of workload")
    sources = (*table.get("sources", ()), *base.sources)
    return Preset(name, str(table.get("about", base.about)), sources, {**base.keywords, **keywords})


def _placed(key: str, value: Any, folder: Path | None) -> Any:
    """The keyword's value; a file's name becomes absolute where the file is beside the preset's file."""
    if folder is not None and key == "sessions" and isinstance(value, str) and names_a_file(value):
        name, words = split_words(value)
        return " ".join([_placed("prompts", name, folder), *words])
    if folder is None or key not in _FILES or not isinstance(value, str) or not (folder / value).is_file():
        return value
    return str((folder / value).resolve())


@cache
def _ours() -> Mapping[str, Mapping[str, Any]]:
    data = files("pytest_gpucap.workloads").joinpath(_OUR_FILE)
    with as_file(data) as path:
        return _read(path, _OUR_FILE)


def _read(path: Path, place: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        tables = read_toml(path)
    except UserFileError as error:
        raise RequirementError(f"{error.path}: the workload file: {error.why}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise RequirementError(f"{place}: {name} stands outside a table: write [NAME] above a preset's keywords")
    return tables
