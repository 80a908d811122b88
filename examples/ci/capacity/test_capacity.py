"""What production must carry. Copy this folder into your repository, where the workflows look for ``capacity``.

Fill in the model, the arguments that production serves it with, the rate, the GPUs and the limits.
"""

from __future__ import annotations

import pytest

from pytest_gpucap import GpuCap

MODEL = "ORG/MODEL"
"""A name on the hub, or the path of a folder."""

pytestmark = pytest.mark.vllm(MODEL, max_model_len=4096, max_num_seqs=128)


@pytest.mark.gpucap(name="chat", gpus=2, input_tokens=256, output_tokens=256, ttft_p95="500ms", e2e_p95="20s")
def test_chat(gpucap: GpuCap) -> None:
    """The rate comes from --target-qps, so that all of CI has one place for it; gpucap(qps=...) would fix it here."""
    gpucap.check()
