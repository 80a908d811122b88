"""Workload presets: a name stands for keywords of the ``gpucap`` marker, which the marker may override or add to.

The presets that come with the plugin are a data file whose figures carry their sources; a file of the user's own has
the same form and may extend them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from pytest_gpucap.requirement import RequirementError

_OUR_FILE: Final = "presets.toml"
_NO_KEYWORDS: Final = frozenset({"about", "extends", "sources"})
_FILES: Final = ("trace", "questions")
"""Keywords that may name a file; in a preset it stands relative to the preset file."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A named workload.

    Attributes:
        about: what it stands for, in one line.
        sources: where its figures come from.
        keywords: of the ``gpucap`` marker, as they would be written there.
    """

    name: str
    about: str = ""
    sources: tuple[str, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)


def find_preset(name: str, own: Path | None = None, added: Mapping[str, Mapping[str, Any]] | None = None) -> Preset:
    """The preset of a name; one in the user's own file goes before those of plugins and ours.

    Args:
        name: as given in ``workload=``.
        own: a TOML file of the same form as ours.
        added: by plugins, name to table.

    Raises:
        RequirementError: if there is none, it extends itself, or the user's file is not what it must be.
    """
    layers = [_Layer(_ours(), _OUR_FILE, None)]
    if added:
        layers.insert(0, _Layer(added, "presets of plugins", None))
    if own is not None:
        layers.insert(0, _Layer(_read(own.read_bytes, str(own)), str(own), own.parent))
    return _resolve(name, layers, ())


def preset_names() -> tuple[str, ...]:
    """The presets that come with the plugin."""
    return tuple(_ours())


@dataclass(frozen=True, slots=True)
class _Layer:
    """The presets of one file; earlier layers go before later ones."""

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
        # A preset of the user's own may bear the name of ours and extend it.
        below = layers[layers.index(layer) + 1 :] if parent == name else layers
        base = _resolve(parent, below, (*through, name))
    keywords = {key: _placed(key, value, layer.folder) for key, value in table.items() if key not in _NO_KEYWORDS}
    if "workload" in keywords:
        raise RequirementError(f"{layer.place}: {name}: write extends = {keywords['workload']!r} instead of workload")
    sources = (*table.get("sources", ()), *base.sources)
    return Preset(name, str(table.get("about", base.about)), sources, {**base.keywords, **keywords})


def _placed(key: str, value: Any, folder: Path | None) -> Any:
    """A file that a preset names stands beside the preset, wherever the test is."""
    if folder is None or key not in _FILES or not isinstance(value, str) or not (folder / value).is_file():
        return value
    return str((folder / value).resolve())


@cache
def _ours() -> Mapping[str, Mapping[str, Any]]:
    data = files("pytest_gpucap.workloads").joinpath(_OUR_FILE)
    return _read(data.read_bytes, _OUR_FILE)


def _read(content: Callable[[], bytes], place: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        tables = tomllib.loads(content().decode("utf-8"))
    except OSError as error:
        raise RequirementError(f"{place}: the workload file cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequirementError(f"{place}: the workload file is no TOML: {error}") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise RequirementError(f"{place}: {name} stands outside a table: write [NAME] above a preset's keywords")
    return tables
