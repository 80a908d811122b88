"""What a declaration may not say, because the endpoint that its requests go to does not have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.requirement import ApiKind, RequirementError
from pytest_gpucap.secondary import SecondaryName

SAMPLING: Final = ("temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty")
OF_ANSWERS: Final = (
    *("output_tokens", "ignore_eos", "stream", "questions", "answer_tokens", "min_accuracy"),
    *SAMPLING,
    *(SecondaryName.JOULES_PER_1K_TOKENS.value, SecondaryName.USD_PER_1M_TOKENS.value, SecondaryName.ACCEPTANCE.value),
)
"""Keywords about the tokens of answers."""
_OF_PROMPTS: Final[Mapping[ApiKind, tuple[str, ...]]] = {
    **dict.fromkeys((ApiKind.RESPONSES, ApiKind.EMBEDDINGS, ApiKind.POOLING, ApiKind.CLASSIFY), ("input",)),
    ApiKind.RERANK: ("query", "documents"),
}
"""Fields of a request's body that hold its prompt, beside those of chats and completions."""


def check_endpoint(values: Mapping[str, Any]) -> None:
    """Check that nothing is said that the endpoint does not have.

    Args:
        values: keywords of the ``gpucap`` marker, read.

    Raises:
        RequirementError: one line on what is said.
    """
    endpoint = values.get("endpoint", ApiKind.CHAT)
    shown = f'endpoint="{endpoint}"'
    if endpoint is not ApiKind.RERANK and "documents" in values:
        raise RequirementError('documents are those of one request of endpoint="rerank": leave it out')
    if endpoint is ApiKind.RERANK and values.get("shared_prefix_tokens"):
        raise RequirementError(f"shared_prefix_tokens does not go with {shown}: its documents share nothing")
    if endpoint not in {ApiKind.CHAT, ApiKind.COMPLETIONS}:
        if "prompts" in values:
            raise RequirementError(f"prompts of a file are sent to chat or completions, not to {shown}")
        if endpoint is ApiKind.RESPONSES and values.get("stream") is False:
            raise RequirementError(f"stream=False does not go with {shown}, whose answers are always streamed")
    if own := next((name for name in _OF_PROMPTS.get(endpoint, ()) if name in values.get("extra_body", {})), None):
        raise RequirementError(f"extra_body: {own} is not for it with {shown}: that is the prompt, which is made")
    if not endpoint.generates:
        if said := next((key for key in OF_ANSWERS if key in values), None):
            raise RequirementError(f"{said} does not go with {shown}, whose answers have no tokens: leave it out")
        if "trace" in values:
            raise RequirementError(f"trace does not go with {shown}: its requests have tokens to generate")
