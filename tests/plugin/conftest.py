"""What the plugin's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.server_family import new_family

family = pytest.fixture(new_family, name="family")


@pytest.fixture(autouse=True)
def own_lease(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs in this process measure nothing real, so they need not wait for the machine's processor or GPUs."""
    monkeypatch.setattr("pytest_gpucap.gpu.lease.MACHINE_DIRECTORY", tmp_path / "locks")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without GPUs, whatever this one has: NVML finds no device that CUDA may show."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def lateness_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process against real servers: a machine too busy to send in time makes no measurement invalid."""
    for limit in ("LATENESS_FLOOR_S", "RATE_SHARE"):
        monkeypatch.setattr(f"pytest_gpucap.load.self_check.{limit}", 1e6)


@pytest.fixture
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process against servers that have nothing to warm up."""
    monkeypatch.setattr("pytest_gpucap.measure.constants.WARM_UP_S", 3.0)


@pytest.fixture
def short_phases(pytester: pytest.Pytester) -> None:
    """For what shows in any measurement: runs in processes of their own, with short phases, however late."""
    pytester.makeconftest(
        """
        from pytest_gpucap.load import self_check
        from pytest_gpucap.measure import alternation, constants, equal_rate

        constants.WARM_UP_S = constants.HOLD_S = constants.LOW_HOLD_S = constants.OPEN_S = 4.0
        alternation.BLOCK_S = 2.0
        equal_rate.SHORTEST_S = equal_rate.LONGEST_S = 7.0
        equal_rate.MOST_LEAD_S = 3.0
        self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.STOPPED_S = 1e6
        """
    )
