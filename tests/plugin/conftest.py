"""What the plugin's tests share."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

# Inner runs in this process start from the modules that are loaded now, and what they load is forgotten: NumPy and
# numba cannot be loaded twice, an error of httpcore's would be of another class than the one that httpx knows, and
# Hypothesis, which its own plugin loads in every run, takes a second.
for module in (
    "hypothesis",
    "numba",
    "openai",
    "pytest_gpucap.load.runner",
    "pytest_gpucap.suite.session",
    "pytest_gpucap.simulator.runner",
):
    import_module(module)
for module in ("httpcore2", "httpcore"):  # of openai 3, and of older ones
    if find_spec(module):
        import_module(module)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, whatever this one has: NVML finds no device that CUDA may show."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def short_phases(pytester: pytest.Pytester) -> None:
    """For what shows in any measurement: runs in processes of their own, with short phases."""
    pytester.makeconftest(
        """
        from pytest_gpucap.measure import constants, pairing

        constants.WARM_UP_S = constants.HOLD_S = constants.LOW_HOLD_S = constants.OPEN_S = 4.0
        pairing.BLOCK_S = 3.0
        pairing.EQUAL_RATE_S = (7.0, 24.0)
        """
    )
