"""Further fields of a body: what JSON holds, but for fields that are the plugin's to set."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest

from pytest_gpucap.load.prompts import PromptRecipe, RequestComposer
from pytest_gpucap.requirement import RequirementError, Workload
from pytest_gpucap.workloads.extra_body import form_of, read_extra_body

SCHEMA = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"pattern": r"[^\u0000]"}}},
    "chat_template_kwargs": {"enable_thinking": False},
}


def read(value: Any) -> dict[str, Any]:
    return read_extra_body(value, "extra_body", ("temperature",))


def test_it_reaches_the_body_of_every_request_as_it_is() -> None:
    assert read(SCHEMA) == SCHEMA
    recipe = PromptRecipe.of(Workload(extra_body=read(SCHEMA), sampling={"top_p": 0.5}), "m", ("a", "b"))
    assert PromptRecipe.from_json(recipe.to_json()) == recipe
    composer = RequestComposer(recipe)
    for body in (composer.body(3, 40, 7), composer.probe(3, 40)):
        sent = json.loads(body)
        assert {name: sent[name] for name in SCHEMA} == SCHEMA
        assert sent["top_p"] == 0.5


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        (SCHEMA, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "text"}}, ""),
        ({"response_format": "json"}, ""),
        ({"response_format": {"type": []}}, "response_format"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "structured_outputs"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"guided_json": None}, ""),
        ({"tools": [{}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [{}], "tool_choice": "auto"}, ""),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ""),
    ],
)
def test_the_field_that_ends_answers_is_known(fields: dict[str, Any], form: str) -> None:
    assert form_of(fields) == form


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tools", "extra_body must be a dict such as {\"tools\": [...]}, not 'tools'"),
        ({1: 2}, "extra_body must be a dict"),
        ({"model": "m"}, "extra_body: model is not for it: it is that of the server"),
        ({"stream": False}, "extra_body: stream is not for it: write gpucap(stream=...)"),
        ({"messages": []}, "extra_body: messages is not for it: name a file with prompts="),
        ({"max_tokens": 3}, "extra_body: max_tokens is not for it: write gpucap(output_tokens=...)"),
        ({"seed": 3}, "extra_body: seed is not for it"),
        ({"n": 3}, "extra_body: n is not for it"),
        ({"temperature": 0}, "extra_body: temperature has a keyword of its own: write gpucap(temperature=...)"),
        ({"api_key": "plain-words"}, "extra_body: api_key holds a secret"),
        ({"a": {1, 2}}, "extra_body holds what cannot be sent as JSON"),
        ({"a": date(2026, 11, 29)}, "extra_body holds what cannot be sent as JSON"),
        ({"a": float("nan")}, "extra_body holds what cannot be sent as JSON"),
        ({"a": "\0"}, "extra_body holds a NUL character"),
        ({"a": "\ud800"}, "extra_body holds half a surrogate pair"),
        ({"a": "x" * 2**18}, "extra_body is longer than 256 KiB as JSON"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(value: Any, message: str) -> None:
    with pytest.raises(RequirementError) as caught:
        read(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "plain-words" not in str(caught.value)
