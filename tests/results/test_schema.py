"""The schema's file is what the types say."""

from __future__ import annotations

import jsonschema

from pytest_gpucap.results import schema


def test_the_schema_file_is_current() -> None:
    assert schema.PATH.read_text(encoding="utf-8") == schema.rendered(), "run python -m pytest_gpucap.results.schema"


def test_it_is_a_schema_and_describes_its_parts() -> None:
    found = schema.schema()
    jsonschema.Draft202012Validator.check_schema(found)
    assert all(part.get("description") for part in found["$defs"].values())
    assert "description" in found["$defs"]["Result"]["properties"]["sustainable_rate"]
