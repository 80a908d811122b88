"""Every constant of the procedure has a reason of its own, and the page that lists them is current."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "constants.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpucap_constants", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_table_of_constants_is_current(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run: python benchmarks/constants.py"


def test_every_constant_has_a_reason_of_its_own(script: ModuleType) -> None:
    found = list(script.constants())
    assert len(found) > 100
    assert [each.name for each in found if len(each.reason.split()) < 4] == []
    reasons = [each.reason for each in found]
    assert len(set(reasons)) == len(reasons)
