"""What the plugin's tests share."""

from __future__ import annotations

from importlib import import_module

import pytest

# Inner runs in this process start from the modules that are loaded now: NumPy cannot be loaded twice, and Hypothesis,
# which its own plugin loads in every run, takes a second.
for module in (
    "hypothesis",
    "pytest_gpucap.load.runner",
    "pytest_gpucap.suite.session",
    "pytest_gpucap.simulator.runner",
):
    import_module(module)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, whatever this one has: NVML finds no device that CUDA may show."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
