"""What tests of several folders share: the real CPU build of vLLM, started once a session."""

from __future__ import annotations

import gc
import math
import os
import pkgutil
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import hypothesis
import pytest

import pytest_gpucap
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, start_vllm

REPOSITORY = Path(__file__).parents[1]
INNER_OPTIONS = "-p no:hypothesispytest"
"""Of every run inside a test: Hypothesis's plugin is a third of what an empty run costs, and there are hundreds."""
SHARED_HOST = f"{INNER_OPTIONS} -o gpucap_host_check=warn"
"""Inner runs share the host with other tests, so what these use makes no measurement INVALID.

An ini key, not an option: a run without the plugin does not know it, and a test may say otherwise.
"""
OUTER_RUN = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "BUILDKITE", "PYTEST_XDIST_WORKER")
"""Runs inside a test publish nothing to the CI job that runs this one, and are no workers of this run."""
# Helpers of the tests are imported as tests.FOLDER.NAME; pytest's importlib mode adds no folder to the path.
sys.path.append(str(REPOSITORY))
from tests.own_ca import server_tls  # noqa: E402

# An example that takes long says something about the machine, not about the code. Every run has the same examples, so
# that no change fails for a fault that was there before: `--hypothesis-profile=new` looks for others.
_ANY_MACHINE = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", _ANY_MACHINE, derandomize=True)
hypothesis.settings.register_profile("new", _ANY_MACHINE)
hypothesis.settings.load_profile("same")


def spare_garbage_collector() -> None:
    """What is there stays until the end: looking through it again is a quarter of what an inner run costs."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    spare_garbage_collector()


@pytest.fixture(scope="session", autouse=True)
def signals_end_processes() -> None:
    """What nohup and a script's `&` switch off for a job, and for every process that its tests start."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def nowhere_special(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs inside a test know nothing of this one."""
    for name in OUTER_RUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTEST_ADDOPTS", INNER_OPTIONS)


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """Load workers and simulated servers may take any time to start or to answer: a busy machine is no failure."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in (
            "load.worker_pool.WORKER_START_TIMEOUT_S",
            "load.worker_pool.SILENCE_S",
            "load.runner.PHASE_END_TIMEOUT_S",
            "simulator.serve.START_TIMEOUT_S",
        ):
            patch.setattr(f"pytest_gpucap.{limit}", math.inf)
        yield


@pytest.fixture(scope="session")
def loaded_once(patience: None) -> None:
    """What inner runs in this process would load, forget and then load again: most of what a simulated one takes.

    Besides, NumPy and numba cannot be loaded twice (and numba loads some of itself when it first compiles), and an
    error of httpcore's would be of another class than the one that httpx knows.
    """
    for module in pkgutil.walk_packages(pytest_gpucap.__path__, "pytest_gpucap."):
        with suppress(ImportError):  # what an extra brings is not everywhere
            import_module(module.name)
    for name in ("_pytest.stepwise", "openai", "scipy.optimize", "scipy.special", "scipy.stats"):
        import_module(name)
    for name in ("httpcore2", "httpcore"):  # of openai 3, and of older ones
        if find_spec(name):
            import_module(name)
    import_module("numba").njit(lambda: None)()
    spare_garbage_collector()


def _replaceable() -> Iterator[tuple[Any, str, Any]]:
    """Functions, methods and constants of the plugin's modules that are loaded: where each is, its name and itself."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pytest_gpucap.") and module is not None:
            for key, value in list(vars(module).items()):
                if isinstance(value, FunctionType) or key.isupper():
                    yield module, key, value
                elif isinstance(value, type) and value.__module__ == name:
                    yield from ((value, each, of) for each, of in vars(value).items() if isinstance(of, FunctionType))


@pytest.fixture
def pytester(
    loaded_once: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.Pytester]:
    """Inner runs, which start from the modules that are loaded when this is made.

    What their conftest replaces in a module that stays loaded is put back: the next test's run would find it.
    """
    monkeypatch.setenv("PYTEST_ADDOPTS", SHARED_HOST)
    before = list(_replaceable())
    yield pytester
    for place, name, value in before:
        if vars(place).get(name) is not value:
            setattr(place, name, value)


@pytest.fixture(scope="session")
def vllm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all vLLM servers of the session keep: else each whose home is new looks for its model's class for itself."""
    return tmp_path_factory.mktemp("vllm-cache")


@pytest.fixture(scope="session")
def vllm_python(vllm_cache: Path) -> Iterator[str]:
    """An interpreter with the CPU build of vLLM, which starts somewhat sooner than a user's."""
    python = Path(os.environ.get("GPUCAP_TEST_VLLM_PYTHON") or REPOSITORY / ".venv-vllm" / "bin" / "python")
    if not python.exists():
        pytest.skip(f"no vLLM: {python} is missing; `make vllm` makes it, GPUCAP_TEST_VLLM_PYTHON names another")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "quick_python"), prepend=os.pathsep)
        patch.setenv("VLLM_CACHE_ROOT", str(vllm_cache))
        yield str(python)


@pytest.fixture(scope="session")
def vllm_cpu_server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The tiny model on a real vLLM, shared by every test of the session that changes nothing."""
    spec = ServerSpec("synthetic:tiny", python=vllm_python, log_dir=tmp_path_factory.mktemp("vllm"))
    with start_vllm(spec) as server:
        yield server


@pytest.fixture
def own_ca(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    return server_tls()


@pytest.fixture
def suite(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> pytest.Pytester:
    """An inner run's folder with the tests that the module keeps in SUITE."""
    pytester.makepyfile(test_suite=request.module.SUITE)
    return pytester
