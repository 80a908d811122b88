"""What other plugins add. Their answers to the hooks of `pytest_gpucap.hookspecs` are checked once per session.

Every pytest run imports this file, so it imports nothing until a plugin implements one of the hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_gpucap.engines.protocol import Engine
    from pytest_gpucap.gpu.classes import GpuClass

_ENGINES = "pytest_gpucap_engines"
_PRESETS = "pytest_gpucap_workload_presets"
_CLASSES = "pytest_gpucap_gpu_classes"


class Extensions:
    """Engines, workload presets and GPU classes of other plugins, by name. Empty for most sessions."""

    __slots__ = ("engines", "gpu_classes", "presets")

    def __init__(
        self,
        engines: Mapping[str, type[Engine]] | None = None,
        presets: Mapping[str, Mapping[str, Any]] | None = None,
        gpu_classes: Sequence[GpuClass] = (),
    ) -> None:
        self.engines: Mapping[str, type[Engine]] = engines or {}
        self.presets: Mapping[str, Mapping[str, Any]] = presets or {}
        self.gpu_classes: tuple[GpuClass, ...] = tuple(gpu_classes)


NONE = Extensions()


def read_extensions(config: pytest.Config) -> Extensions:
    """Ask the plugins that are registered now.

    Raises:
        pytest.UsageError: one line that names the plugin, if an answer has the wrong type or a name is taken.
    """
    hooks = config.hook
    if not any(getattr(hooks, name).get_hookimpls() for name in (_ENGINES, _PRESETS, _CLASSES)):
        return NONE
    return Extensions(_engines(config), _presets(config), _gpu_classes(config))


def _answers(config: pytest.Config, hook: str) -> Iterator[tuple[str, Any]]:
    """Plugin names and their answers. Each is asked alone, because pluggy's list of answers has no plugin names."""
    manager = config.pluginmanager
    implementations = getattr(config.hook, hook).get_hookimpls()
    for implementation in reversed(implementations):  # in the order in which plugins were registered
        others = [each.plugin for each in implementations if each.plugin is not implementation.plugin]
        for answer in manager.subset_hook_caller(hook, others)(config=config):
            yield implementation.plugin_name, answer


def _refused(hook: str, plugin: str, what: object) -> pytest.UsageError:
    return pytest.UsageError(f"{hook} of plugin {plugin}: {what}")


def _engines(config: pytest.Config) -> dict[str, type[Engine]]:
    from pytest_gpucap.engines.protocol import RESERVED, Engine

    found: dict[str, type[Engine]] = {}
    for plugin, answer in _answers(config, _ENGINES):
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            raise _refused(_ENGINES, plugin, f"must return a list of Engine classes, not {answer!r}")
        for engine in answer:
            if not isinstance(engine, type) or not issubclass(engine, Engine):
                raise _refused(_ENGINES, plugin, f"{engine!r} is not a subclass of pytest_gpucap.Engine")
            if unfinished := sorted(engine.__abstractmethods__):
                raise _refused(_ENGINES, plugin, f"engine {engine.__name__} has no {' and no '.join(unfinished)}")
            name = getattr(engine, "name", None)
            if not isinstance(name, str) or not name:
                raise _refused(_ENGINES, plugin, f'engine {engine.__name__} needs a name = "..."')
            if name in found or name in RESERVED:
                raise _refused(_ENGINES, plugin, f"engine {name!r} exists already")
            found[name] = engine
    return found


def _presets(config: pytest.Config) -> dict[str, Mapping[str, Any]]:
    from pytest_gpucap.workloads.presets import preset_names

    found: dict[str, Mapping[str, Any]] = {}
    for plugin, answer in _answers(config, _PRESETS):
        if not isinstance(answer, Mapping):
            raise _refused(_PRESETS, plugin, f"must return presets by name, not {answer!r}")
        for name, table in answer.items():
            if not isinstance(name, str) or not isinstance(table, Mapping):
                raise _refused(_PRESETS, plugin, f"{name!r} must be a mapping of keywords, not {table!r}")
            if name in found or name in preset_names():
                raise _refused(_PRESETS, plugin, f"workload preset {name!r} exists already")
            found[name] = table
    return found


def _gpu_classes(config: pytest.Config) -> tuple[GpuClass, ...]:
    from pytest_gpucap.gpu.classes import GpuClass, UnknownGpuClass, find_class

    found: list[GpuClass] = []
    for plugin, answer in _answers(config, _CLASSES):
        if not isinstance(answer, Sequence) or isinstance(answer, str):
            raise _refused(_CLASSES, plugin, f"must return a list of GpuClass, not {answer!r}")
        for gpu_class in answer:
            if not isinstance(gpu_class, GpuClass):
                raise _refused(_CLASSES, plugin, f"{gpu_class!r} is not a pytest_gpucap.GpuClass")
            for name in (gpu_class.name, *gpu_class.aliases):
                try:
                    known = find_class(name, found)
                except UnknownGpuClass:
                    continue
                raise _refused(_CLASSES, plugin, f"GPU class {name!r} exists already: {known.name}")
            found.append(gpu_class)
    return tuple(found)
