"""The public API: what the package exports, and what it raises."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_gpucap
from pytest_gpucap import __main__ as command
from pytest_gpucap.errors import GpuCapError

INTERNAL = {
    "BadRequest": "the simulated server answers it with status 400",
    "Refused": "the simulated server answers it with status 503",
    "CalledOff": "ends a phase of the measuring procedure in which most requests fail",
    "OutOfTime": "ends a phase of the measuring procedure",
    "Suspended": "lets the measuring procedure carry a hold once more",
    "StreamError": "becomes a LoadError that names the node of the load generator",
    "NoParquet": "becomes the line of `gpucap frame` that names the extra",
    "NothingMeasured": "tells pytest-benchmark that a benchmark has no figure",
}
"""Exceptions that steer and never reach a user."""


def _exceptions() -> Iterator[type[BaseException]]:
    for module in pkgutil.walk_packages(pytest_gpucap.__path__, "pytest_gpucap."):
        if module.name.endswith("__main__") or module.name == "pytest_gpucap.accuracy.math_verify_process":
            continue
        for name, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if found.__module__ == module.name and issubclass(found, BaseException) and not name.startswith("_"):
                yield found


def test_every_error_derives_from_one_base() -> None:
    found = list(_exceptions())
    assert {error.__name__ for error in found if not issubclass(error, GpuCapError)} == set(INTERNAL)
    assert len(found) > 20


def test_every_public_name_is_loaded_when_it_is_first_used() -> None:
    for name in pytest_gpucap.__all__:
        found = getattr(pytest_gpucap, name)
        assert getattr(found, "__name__", name) == name
        assert name in dir(pytest_gpucap)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pytest_gpucap.nothing  # noqa: B018 - the access is the test


def test_the_lists_of_public_names_agree() -> None:
    tree = ast.parse(Path(pytest_gpucap.__file__).read_text())
    typed = {
        (str(node.module).removeprefix("pytest_gpucap."), alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {(module, name) for module, names in pytest_gpucap._NAMES_BY_MODULE.items() for name in names}
    assert loaded == typed
    assert sorted(name for _, name in loaded) == sorted(pytest_gpucap.__all__)


def test_the_console_command_is_the_module() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["gpucap"].partition(":")
    assert getattr(importlib.import_module(module), function) is command.main


@pytest.mark.parametrize(
    ("called", "name"), [("/usr/bin/gpucap", "gpucap"), (str(command.__file__), "python -m pytest_gpucap")]
)
def test_the_usage_names_what_was_called(
    called: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    with pytest.raises(SystemExit):
        command.main(["show", "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {name} show ")
    assert command.main(["show", "/nowhere.json"]) == 2
    assert capsys.readouterr().err.startswith(f"{name} show: ")


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pytest_gpucap", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m pytest_gpucap ")
