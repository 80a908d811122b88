"""What the simulated server counts and answers where no tokens are generated."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from pytest_gpucap.simulator.endpoints import POOLED, VECTOR, pooled_answer, pooled_tokens
from pytest_gpucap.simulator.prompt_tokens import count_tokens


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/embeddings", {"input": "three words here"}, 3),
        ("/v1/embeddings", {"input": ["three words here", "one"]}, 4),
        ("/pooling", {"input": [5, 6, 7]}, 3),
        ("/classify", {"input": [[5, 6], [7]]}, 3),
        ("/rerank", {"query": "two words", "documents": ["a b c", "d"]}, 8),
        ("/v1/embeddings", {}, None),
        ("/v1/embeddings", {"input": []}, None),
        ("/v1/embeddings", {"input": 5}, None),
        ("/rerank", {"query": "a", "documents": []}, None),
        ("/rerank", {"documents": ["a"]}, None),
    ],
)
def test_prompt_tokens(path: str, body: dict[str, Any], tokens: int | None) -> None:
    assert pooled_tokens(path, body, count_tokens) == tokens


def test_answers_have_the_form_of_vllms() -> None:
    for path in POOLED:
        found = pooled_answer(path, {"documents": ["a", "b"]}, "m", 7)
        assert (found["model"], found["usage"]["prompt_tokens"]) == ("m", 7)
        assert len(found["results" if path.endswith("rerank") else "data"]) == (2 if path.endswith("rerank") else 1)
    (plain,) = pooled_answer("/v1/embeddings", {}, "m", 7)["data"]
    assert plain["embedding"] == VECTOR
    (packed,) = pooled_answer("/v1/embeddings", {"encoding_format": "base64"}, "m", 7)["data"]
    assert len(base64.b64decode(packed["embedding"])) == 4 * len(VECTOR)
