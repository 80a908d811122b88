"""The server fixture without a measurement: an OpenAI client for a vLLM server that was started for the test."""

from __future__ import annotations

import pytest

from pytest_gpucap import Server

pytestmark = pytest.mark.vllm(model="synthetic:tiny", max_model_len=1024, gpu_memory_utilization=0.8)


def test_the_server_answers(vllm_server: Server) -> None:
    """A request as an application sends it, and the server's own count of it."""
    reply = vllm_server.client.chat.completions.create(
        model=vllm_server.model,
        messages=[{"role": "user", "content": "How many GPUs do we need?"}],
        max_tokens=8,
        temperature=0.6,
    )
    assert reply.usage is not None
    assert 1 <= reply.usage.completion_tokens <= 8
    assert vllm_server.metrics().value("vllm:request_success_total") >= 1
