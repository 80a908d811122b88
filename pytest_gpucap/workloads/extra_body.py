"""Fields of every request that the marker has no keyword for: ``gpucap(extra_body={...})``, as OpenAI's client has it.

They reach the server as they are: a JSON schema (``response_format``), ``tools``, ``chat_template_kwargs``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.errors import told
from pytest_gpucap.masking import refusal
from pytest_gpucap.requirement import RequirementError
from pytest_gpucap.workloads.json_text import NoJsonText, json_text

MOST_BYTES: Final = 2**18
"""Of a body's extra fields as JSON: it is sent with every request."""
_OURS: Final[Mapping[str, str]] = {
    "model": "it is that of the server",
    "stream": "write gpucap(stream=...)",
    "stream_options": "streamed answers always have their usage",
    "messages": "name a file with prompts=",
    "prompt": "name a file with prompts=",
    "max_tokens": "write gpucap(output_tokens=...)",
    "max_completion_tokens": "write gpucap(output_tokens=...)",
    "max_output_tokens": "write gpucap(output_tokens=...)",
    "ignore_eos": "write gpucap(ignore_eos=...)",
    "seed": "load has none, and questions have one for each answer",
    "n": "of several answers only one would be measured",
    "best_of": "of several answers only one would be measured",
}
"""Fields that the plugin sets or leaves out itself, and what to do instead."""


def read_extra_body(value: Any, what: str, keywords: tuple[str, ...]) -> dict[str, Any]:
    """The extra fields of every request's body.

    Args:
        value: as it was given.
        what: its name, for messages.
        keywords: fields that have a keyword of their own.

    Raises:
        RequirementError: one line, if a field is not the user's to set, or the value is nothing that JSON can hold.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise RequirementError(f'{what} must be a dict such as {{"tools": [...]}}, not {told(value)}')
    for name, each in value.items():
        if name in _OURS:
            raise RequirementError(f"{what}: {name} is not for it: {_OURS[name]}")
        if name in keywords:
            raise RequirementError(f"{what}: {name} has a keyword of its own: write gpucap({name}=...)")
        if why := refusal(name, each):
            raise RequirementError(f"{what}: {why}")
    try:
        text = json_text(value, sort_keys=True)
    except NoJsonText as error:
        raise RequirementError(f"{what} {error}") from None
    if len(text.encode()) > MOST_BYTES:
        raise RequirementError(f"{what} is longer than {MOST_BYTES // 2**10} KiB as JSON")
    found: dict[str, Any] = json.loads(text)
    return found


_FORMS: Final = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
"""Of vLLM, now and formerly, beside OpenAI's ``response_format`` and ``tool_choice``."""


def form_of(extra_body: Mapping[str, Any]) -> str:
    """The field that holds every answer to a given form, such as ``response_format``; empty where none does.

    Such an answer ends where the form ends, which may be long before the tokens asked for.
    """
    asked = extra_body.get("response_format")
    if isinstance(asked, Mapping) and asked.get("type") not in (None, "text"):
        return "response_format"
    if extra_body.get("tool_choice") == "required" or isinstance(extra_body.get("tool_choice"), Mapping):
        return "tool_choice"
    return next((name for name in _FORMS if extra_body.get(name) is not None), "")
