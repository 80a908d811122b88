"""What the plugin's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Inner runs in this process start from the modules that are loaded now; NumPy cannot be loaded twice.
import pytest_gpucap.load.runner
import pytest_gpucap.session
import pytest_gpucap.simulator.runner  # noqa: F401


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, whatever this one has: NVML finds no device that CUDA may show."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """An interpreter with the CPU build of vLLM."""
    path = Path(os.environ.get("GPUCAP_TEST_VLLM_PYTHON", Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"))
    if not path.exists():
        pytest.skip(f"no vLLM for the CPU at {path}: make vllm")
    return str(path.absolute())
