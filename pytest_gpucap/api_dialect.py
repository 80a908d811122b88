"""How a server's requests say what the OpenAI API has no field for. Engines differ in these few fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDialect:
    """What an engine's requests need beside model, prompt and ``max_tokens``. The defaults are vLLM's.

    Attributes:
        exact_length: fields that make an answer exactly as long as asked for. None: the engine has none, and its
            answers end where the model ends them.
        streamed: fields of a streamed request that ask for its usage; empty for an engine that tells it unasked.
        tokenizes: ``/tokenize`` counts the tokens of a prompt as vLLM's does; otherwise real requests for one token do.
    """

    exact_length: Mapping[str, Any] | None = field(default_factory=lambda: {"ignore_eos": True})
    streamed: Mapping[str, Any] = field(default_factory=lambda: {"stream_options": {"include_usage": True}})
    tokenizes: bool = True

    def ending(self, *, ignore_eos: bool) -> Mapping[str, Any]:
        """The fields that say where an answer ends."""
        return self.exact_length or {} if ignore_eos else {}
