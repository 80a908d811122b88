"""Compiled code: what is said while a run waits for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap import jit

pytestmark = pytest.mark.skipif(not jit.COMPILED, reason="nothing is compiled without Numba")


def loaded(path: Path) -> Callable[[int], int]:
    """The function of a module, as a new process would load it."""
    spec = importlib.util.spec_from_file_location("a_module", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[int], int] = module.add_one
    return function


def test_code_is_compiled_once_it_was_called_or_lies_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a_module.py"
    path.write_text(
        "from pytest_gpucap.jit import compiled\n\n@compiled\ndef add_one(number: int) -> int:\n    return number + 1\n"
    )
    first = loaded(path)
    assert not jit.is_compiled(first)
    assert first(1) == 2
    assert jit.is_compiled(first)
    assert jit.is_compiled(loaded(path))


def test_code_of_another_version_of_the_package_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a_module.py"
    path.write_text(
        "from pytest_gpucap.jit import compiled\n\n@compiled\ndef add_one(number):\n    return number + 1\n"
    )
    loaded(path)(1)
    monkeypatch.setattr(jit, "package_stamp", lambda _: (("other.py", 1, 1),))
    assert not jit.is_compiled(loaded(path))


def test_a_function_that_is_not_compiled_waits_for_nothing() -> None:
    assert jit.is_compiled(lambda: 1)
