"""What a request of each endpoint has: where its prompt stands, and how it says what is to come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.api_dialect import ApiDialect
from pytest_gpucap.requirement import ApiKind, Wording

OPENER: Final = "A"
"""Stands before the units of a prompt that is a text, and for the query and for documents without units."""
WITH_IDS: Final = frozenset({ApiKind.COMPLETIONS, ApiKind.EMBEDDINGS, ApiKind.POOLING, ApiKind.CLASSIFY})
"""Endpoints that take a list of token ids for a prompt."""
_ENCODED: Final = frozenset({ApiKind.EMBEDDINGS, ApiKind.POOLING})
"""Endpoints whose answers are vectors. As OpenAI's client does, they are asked for in base64: a tenth of the bytes."""


def prompt_fields(api: ApiKind, prompt: Any, wording: Wording, documents: int = 1) -> dict[str, Any]:
    """The fields that hold the prompt.

    Args:
        api: the endpoint.
        prompt: a text; a list of token ids for an endpoint of `WITH_IDS`; the first document of a rerank request.
        wording: around a prompt that is a message.
        documents: of a rerank request; the others hold nothing but `OPENER`.
    """
    match api:
        case ApiKind.CHAT:
            return {"messages": wording.messages(prompt)}
        case ApiKind.RESPONSES:
            return {"input": wording.messages(prompt)}
        case ApiKind.COMPLETIONS:
            return {"prompt": prompt}
        case ApiKind.RERANK:
            return {"query": OPENER, "documents": [prompt, *[OPENER] * (documents - 1)]}
        case _:
            return {"input": prompt}


def answer_fields(
    api: ApiKind, extra_body: Mapping[str, Any], dialect: ApiDialect, *, stream: bool, ignore_eos: bool
) -> dict[str, Any]:
    """The fields that say what is to come back, without the number of tokens.

    Args:
        api: the endpoint.
        extra_body: the user's own fields, which come first.
        dialect: how the server wants some of them.
        stream: token by token.
        ignore_eos: as many tokens as are asked for.
    """
    fields: dict[str, Any] = {}
    if stream and api.generates:
        fields["stream"] = True
        if api is not ApiKind.RESPONSES:  # its last event always has the usage
            fields |= dialect.streamed
    if api.generates:
        fields |= dialect.ending(ignore_eos=ignore_eos)
    if api in _ENCODED and "encoding_format" not in extra_body:
        fields["encoding_format"] = "base64"
    return fields


def tokens_field(api: ApiKind) -> str | None:
    """The field of the number of output tokens; None where answers have none."""
    if not api.generates:
        return None
    return "max_output_tokens" if api is ApiKind.RESPONSES else "max_tokens"


def told_usage(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A usage by the names of chat completions, whatever the endpoint calls its counts."""
    if "input_tokens" not in usage or "prompt_tokens" in usage:
        return usage
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details"),
    }
