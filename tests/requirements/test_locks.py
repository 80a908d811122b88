"""The pinned packages: a lock leaves pip nothing to choose, and how an audit of it ends."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = REPOSITORY / "requirements"
NOT_PINNED = {"pip", "setuptools"}
"""What `python -m venv` brings."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name: str) -> dict[str, Requirement]:
    lines = (REQUIREMENTS / name).read_text().splitlines()
    return {normal(each.name): each for each in map(Requirement, filter(re.compile("[^#]").match, lines))}


def pinned() -> dict[str, Requirement]:
    return requirements("dev.txt")


def test_what_pinned_packages_need_is_pinned() -> None:
    """Otherwise pip would choose versions of the day. Of the packages that are installed here."""
    needed = set()
    for name in pinned():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            wants = [Requirement(each) for each in importlib.metadata.requires(name) or ()]
            needed |= {normal(each.name) for each in wants if not each.marker or each.marker.evaluate({"extra": ""})}
    assert needed - set(pinned()) - NOT_PINNED == set()


def test_every_tool_that_is_asked_for_is_pinned() -> None:
    assert set(requirements("dev.in")) - set(pinned()) == set()


def test_a_tool_that_is_not_for_every_python_is_pinned_for_the_same_ones() -> None:
    """`pip freeze` leaves markers out: `make lock` puts them back."""
    marked = {name: str(each.marker) for name, each in requirements("dev.in").items() if each.marker}
    assert "atheris" in marked
    assert {name: str(pinned()[name].marker) for name in marked} == marked


@pytest.mark.parametrize("name", ["dev.txt", "audit.txt", "vllm-cpu.txt"])
def test_a_lock_names_each_package_once_with_its_version_and_no_host(name: str) -> None:
    lines = (REQUIREMENTS / name).read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.+!-]+( *;.*)?", line) for line in packages)
    assert len({normal(line.partition("==")[0]) for line in packages}) == len(packages)
    assert not any("://" in line or line.startswith("-") for line in lines)


STAND_IN = """
import os, sys
from pathlib import Path

if "SAYS" not in os.environ:
    sys.exit("ConnectionError: cannot resolve a name")
Path(sys.argv[sys.argv.index("-o") + 1]).write_text(os.environ["SAYS"])
"""
"""What pip-audit writes as JSON, as seen of version 2.10."""


def audit(folder: Path, packages: list[dict[str, Any]] | None) -> tuple[int, str]:
    (folder / "pip_audit.py").write_text(STAND_IN)
    (folder / "lock.txt").write_text("one==1\ntwo==2\n")
    says = {} if packages is None else {"SAYS": json.dumps({"dependencies": packages, "fixes": []})}
    command = [sys.executable, str(REQUIREMENTS / "audit.py"), "lock.txt"]
    environment = {**os.environ, "PYTHONPATH": str(folder), **says}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


ONE = {"name": "one", "version": "1", "vulns": []}
TWO = {"name": "two", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": []}]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        (None, 0, "nothing was audited, since no advisories could be asked for: ConnectionError"),
        ([{"name": each, "skip_reason": "not found"} for each in ("one", "two")], 0, "has no advisories"),
        ([ONE, {"name": "two", "skip_reason": "x"}], 0, "no known vulnerabilities; 1 packages audited, 1 not known"),
        ([ONE, TWO], 1, "lock.txt: two 2: PYSEC-1, fixed in 2.1\naudit: lock.txt: 1 known vulnerabilities; 2 packages"),
    ],
    ids=["out-of-reach", "no-advisories", "none-known", "one-known"],
)
def test_an_audit_never_claims_more_than_it_saw(
    tmp_path: Path, packages: list[dict[str, Any]] | None, code: int, said: str
) -> None:
    found, text = audit(tmp_path, packages)
    assert found == code
    assert said in text
