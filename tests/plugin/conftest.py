"""What the plugin's tests share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.engines.server_family import new_family
from tests.plugin import real_session as sessions

family = pytest.fixture(new_family, name="family")


@pytest.fixture(autouse=True)
def own_lease(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs in this process measure nothing real, so they need not wait for the machine's processor or GPUs."""
    monkeypatch.setattr("pytest_gpucap.gpu.lease.MACHINE_DIRECTORY", tmp_path / "locks")


@pytest.fixture(scope="session")
def real_session(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> sessions.RealSession:
    """The inner session with real servers that several tests look at."""
    others = REPOSITORY / ".venv-engines"
    pythons = [each for each in (vllm_python, str(others / "bin" / "python")) if Path(each).exists()]
    able = (each for each in pythons if not subprocess.run([each, "-c", "import accelerate"], check=False).returncode)
    llama = others / "llama" / "llama-server"
    folder = tmp_path_factory.mktemp("real-session")
    return sessions.run(folder, vllm_python, next(able, None), str(llama) if llama.exists() else None)


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
def few_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process whose `measure` only has to come to an end."""
    for most in ("MEASURE_CYCLES", "LEAST_MEASURE_CYCLES"):
        monkeypatch.setattr(f"pytest_gpucap.measure.constants.{most}", 2)


@pytest.fixture
def short_phases(pytester: pytest.Pytester) -> None:
    """For what shows in any measurement: runs in processes of their own, with short phases, however late."""
    pytester.makeconftest(
        """
        from pytest_gpucap.load import self_check
        from pytest_gpucap.measure import alternation, constants, equal_rate

        constants.WARM_UP_S = constants.LOW_HOLD_S = 2.0
        constants.HOLD_S = constants.OPEN_S = 3.0
        alternation.BLOCK_S = 1.5
        equal_rate.SHORTEST_S = equal_rate.LONGEST_S = 5.0
        equal_rate.MOST_LEAD_S = 2.0
        self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.STOPPED_S = 1e6
        """
    )
