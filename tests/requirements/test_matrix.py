"""`make matrix` has fewer packages than `make test`: a test that needs another one is skipped there, and stops none."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

for _module in ("mypy", "ray"):  # what is absent there is known where it is installed
    pytest.importorskip(_module)

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def matrix_packages() -> frozenset[str]:
    """What its environments have: the wheel, the packages that it names, and what all of them need in turn."""
    listed = re.search(r"\*wheels,(.*?)\n    \)", (REPOSITORY / "noxfile.py").read_text(), re.DOTALL)
    assert listed is not None
    wanted = {"pytest-gpucap", "pytest", *re.findall(r'^ +"([\w-]+)",$', listed[1], re.MULTILINE)}
    found: set[str] = set()
    while wanted:
        name = normal(wanted.pop())
        found.add(name)
        with suppress(importlib.metadata.PackageNotFoundError):  # for another system
            needs = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
            needed = {normal(each.name) for each in needs if not each.marker or each.marker.evaluate({"extra": ""})}
            wanted |= needed - found
    return frozenset(found)


@cache
def absent_modules() -> frozenset[str]:
    """What can be imported here, and not there."""
    owners = importlib.metadata.packages_distributions()
    return frozenset(module for module, names in owners.items() if not {*map(normal, names)} & matrix_packages())


@cache
def at_loading(path: Path) -> tuple[tuple[str, bool], ...]:
    """Modules that a file imports when it is loaded, in order; True: by ``importorskip``."""
    found: list[tuple[str, bool]] = []
    for line in ast.parse(path.read_text()).body:
        match line:
            case ast.Import(names=names):
                found += [(each.name, False) for each in names]
            case ast.ImportFrom(module=str(module)):
                found.append((module, False))
            case ast.FunctionDef() | ast.ClassDef():
                pass
            case _:
                found += [
                    (module, True)
                    for module in re.findall(r'importorskip\("([\w.]+)"', ast.unparse(line).replace("'", '"'))
                ]
    return tuple(found)


def stopped_by(path: Path) -> Iterator[str]:
    """What ends the collection of a file where a package is absent, with an error in the place of a skip."""
    asked: set[str] = set()
    for module, skips in at_loading(path):
        top, *rest = module.split(".")
        if skips:
            asked.add(top)
        elif top in absent_modules() - asked:
            yield module
        elif top == "tests" and (helper := TESTS.joinpath(*rest).with_suffix(".py")).exists():
            # What skips itself halfway has only half of its names for the next one that imports it.
            needed = {name.partition(".")[0] for name, _ in at_loading(helper)}
            yield from (f"{module}: {name}" for name in needed & absent_modules() - asked)


def test_the_matrix_lacks_packages() -> None:
    assert {"numpy", "pytest_benchmark", "hatchling"}.isdisjoint(absent_modules())
    assert "mypy" in absent_modules()


def test_no_file_stops_the_collection_where_a_package_is_absent() -> None:
    stopped = {str(path.relative_to(TESTS)): found for path in TESTS.rglob("*.py") if (found := [*stopped_by(path)])}
    assert stopped == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import mypy.api", ["mypy.api"]),
        ("from mypy import api", ["mypy"]),
        ('import pytest\npytest.importorskip("mypy")\nfrom mypy import api', []),
        ('import pytest\nx = pytest.importorskip("mypy")\nimport mypy', []),
        ("def late():\n    import mypy", []),
        ("from tests.fleet.test_ray_cluster import NODES", ["tests.fleet.test_ray_cluster: ray"]),
        ('import pytest\npytest.importorskip("ray")\nfrom tests.fleet.test_ray_cluster import NODES', []),
    ],
)
def test_such_a_file_is_told(tmp_path: Path, text: str, found: list[str]) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(text)
    assert [*stopped_by(path)] == found
