"""What the simulated server answers beside completions and chats: vectors, classes, scores, and streamed responses."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

VECTOR: Final = [0.25] * 16
"""Every input has this one."""
POOLED: Final = frozenset({"/v1/embeddings", "/pooling", "/classify", "/rerank", "/v1/rerank", "/v2/rerank"})
"""Paths of answers without tokens."""


def pooled_tokens(path: str, body: Mapping[str, Any], count: Callable[[str], int]) -> int | None:
    """Prompt tokens of a request to a path of `POOLED`; None if it holds no prompt.

    A query is counted with each of its documents, as it is prefilled with each of them.

    Args:
        path: one of them.
        body: of the request.
        count: the tokens of a text.
    """
    if path.endswith("/rerank"):
        query, documents = body.get("query"), body.get("documents")
        if not isinstance(query, str) or not isinstance(documents, list) or not documents:
            return None
        return sum(count(query) + count(str(each)) for each in documents)
    given = body.get("input")
    ids = isinstance(given, list) and all(type(each) is int for each in given)
    inputs = given if isinstance(given, list) and not ids else [given]
    counts = [_tokens_of(each, count) for each in inputs]
    return sum(counts) if counts and all(counts) else None


def _tokens_of(given: object, count: Callable[[str], int]) -> int:
    """Tokens of a text or of a list of token ids; 0 for anything else."""
    if isinstance(given, list):
        return len(given) if all(type(each) is int for each in given) else 0
    return count(given) if isinstance(given, str) else 0


def pooled_answer(path: str, body: Mapping[str, Any], model: str, tokens: int) -> dict[str, Any]:
    """The answer to such a request of so many prompt tokens."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    if path.endswith("/rerank"):
        documents = body["documents"]
        results = [
            {"index": place, "document": {"text": str(text)}, "relevance_score": 1.0 / (place + 1)}
            for place, text in enumerate(documents)
        ]
        return {"id": f"rerank-sim-{time.monotonic_ns():x}", "model": model, "usage": usage, "results": results}
    if path == "/classify":
        data: dict[str, Any] = {"index": 0, "label": "LABEL_0", "probs": [1.0, 0.0], "num_classes": 2}
    else:
        encoded = body.get("encoding_format") == "base64"
        vector = base64.b64encode(bytes(4 * len(VECTOR))).decode() if encoded else VECTOR
        embedding = path == "/v1/embeddings"
        kind, name = ("embedding", "embedding") if embedding else ("pooling", "data")
        data = {"index": 0, "object": kind, name: vector}
    return {
        "id": f"pool-sim-{time.monotonic_ns():x}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [data],
        "usage": {**usage, "completion_tokens": 0},
    }


class ResponseEvents:
    """The events of one streamed answer of ``/v1/responses``.

    Args:
        model: name of the model.
        prompt: its tokens.
        asked: tokens of the answer.
        text: of every token.
    """

    def __init__(self, model: str, prompt: int, asked: int, text: str) -> None:
        self._head = {"id": f"resp_sim_{time.monotonic_ns():x}", "object": "response", "model": model}
        self._prompt, self._asked, self._text, self._number = prompt, asked, text, 0
        self.cached = 0
        """Tokens of the prompt that the prefix cache had."""

    def opening(self) -> bytes:
        """What comes before the first token."""
        started = {**self._head, "status": "in_progress", "usage": None}
        return self._event("response.created", response=started) + self._event("response.in_progress", response=started)

    def token(self) -> bytes:
        """One token."""
        return self._event("response.output_text.delta", item_id="msg_sim", output_index=0, delta=self._text)

    def closing(self) -> bytes:
        """What comes after the last token."""
        whole = self.answer()
        return self._event("response.output_text.done", item_id="msg_sim", output_index=0) + self._event(
            "response.completed", response=whole
        )

    def answer(self) -> dict[str, Any]:
        """The whole answer, as it also comes where none is streamed."""
        content = [{"type": "output_text", "text": self._text * self._asked, "annotations": []}]
        message = {"id": "msg_sim", "type": "message", "role": "assistant", "status": "completed", "content": content}
        usage = {
            "input_tokens": self._prompt,
            "output_tokens": self._asked,
            "total_tokens": self._prompt + self._asked,
            "input_tokens_details": {"cached_tokens": self.cached},
        }
        return {
            **self._head,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [message],
            "usage": usage,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {**fields, "sequence_number": self._number, "type": kind}
        self._number += 1
        return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
