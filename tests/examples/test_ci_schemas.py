"""What GitLab, Buildkite and readers of CITATION.cff are given has the form of their published JSON schemas.

check-jsonschema brings the schemas of many systems, each as its owner publishes it. `actionlint` looks at the workflows
of GitHub.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.docs.blocks import PAGES, REPOSITORY, blocks

yaml: Any = pytest.importorskip("yaml")
_BRINGS = find_spec("check_jsonschema")
pytestmark = pytest.mark.skipif(_BRINGS is None, reason="check-jsonschema is not installed")

GITLAB = REPOSITORY / "examples" / "ci" / "gitlab" / "gitlab-ci.yml"
BUILDKITE = REPOSITORY / "examples" / "ci" / "buildkite" / "pipeline.yml"


@cache
def validator(name: str) -> Any:
    """Of a schema that check-jsonschema brings. Its files are read alone: nothing of it needs to run."""
    assert _BRINGS is not None
    assert _BRINGS.origin is not None
    schema = json.loads(
        Path(_BRINGS.origin).with_name("builtin_schemas").joinpath("vendor", f"{name}.json").read_text(encoding="utf-8")
    )
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def faults(name: str, document: Any) -> list[str]:
    """What a schema has against a document, the innermost reason of each."""
    return [str(jsonschema.exceptions.best_match([each]).message) for each in validator(name).iter_errors(document)]


def system_of(document: Any) -> str:
    """Which system a document of YAML is for, if it is one of these; else empty."""
    if not isinstance(document, dict) or "jobs" in document:
        return ""
    if isinstance(document.get("steps"), list):
        return "buildkite"
    return "gitlab-ci" if any(isinstance(each, dict) and "script" in each for each in document.values()) else ""


def documents() -> list[tuple[str, str, Any]]:
    """System, place and content: the examples, and the blocks of the pages."""
    places = [(str(path), path.read_text(encoding="utf-8")) for path in sorted(GITLAB.parents[1].rglob("*.yml"))]
    places += [(str(block), block.text) for page in PAGES for block in blocks(page) if block.language == "yaml"]
    read = [(place, yaml.safe_load(text)) for place, text in places]
    return [(system, place, document) for place, document in read if (system := system_of(document))]


def test_every_file_and_block_of_these_systems_has_the_form_that_they_ask_for() -> None:
    found = documents()
    assert {place for _, place, _ in found} >= {str(GITLAB), str(BUILDKITE)}
    assert {place: faults(system, document) for system, place, document in found} == {
        place: [] for _, place, _ in found
    }


@pytest.mark.parametrize(
    ("path", "where", "wrong"),
    [
        (GITLAB, ("gpu-capacity", "resource_groups"), "x"),
        (GITLAB, ("gpu-capacity", "timeout"), 60),
        (GITLAB, ("gpu-capacity", "rules", 0, "only"), "x"),
        (GITLAB, ("gpu-capacity", "artifacts", "when"), "ever"),
        (GITLAB, ("gpu-capacity", "artifacts", "reports", "junits"), "x"),
        (BUILDKITE, ("steps", 0, "artifact_path"), "x"),
        (BUILDKITE, ("steps", 0, "concurrency"), "one"),
        (BUILDKITE, ("steps", 0, "timeout_in_minutes"), "long"),
        (BUILDKITE, ("steps", 0, "agents"), 1),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_seen(path: Path, where: tuple[str | int, ...], wrong: Any) -> None:
    broken = copy.deepcopy(yaml.safe_load(path.read_text(encoding="utf-8")))
    inner: Any = broken
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = wrong
    assert faults(system_of(broken), broken) != []


def test_the_citation_has_the_form_of_its_format() -> None:
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert faults("citation-file-format", yaml.load(text, yaml.BaseLoader)) == []
    assert faults("citation-file-format", {"cff-version": "1.2.0", "title": "it has no authors"}) != []
