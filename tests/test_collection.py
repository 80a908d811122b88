"""Collecting tests of ours is free: nothing heavy is loaded before a test is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "aiohttp",
    "asyncio",
    "httptools",
    "httpx",
    "jinja2",
    "llvmlite",
    "msgspec",
    "numba",
    "numpy",
    "openai",
    "prometheus_client",
    "psutil",
    "scipy",
    "tabulate",
    "tokenizers",
    "urllib.request",
)
"""Modules that only measuring and reporting need."""

SUITE = """
import pytest
from pytest_gpucap import Device, Engine, GpuCap, GpuClass, Lease, MeasurementInvalid, Server, ServerError
from pytest_gpucap import SystemUnderTest

@pytest.mark.vllm("synthetic:tiny", tensor_parallel_size=1, max_model_len=8192)
@pytest.mark.gpucap(qps=10, gpus=4, workload="chat", ttft_p95="500ms")
def test_budget(gpucap: GpuCap) -> None: ...

@pytest.mark.gpu_class("sim:fast")
@pytest.mark.gpucap(input_tokens="uniform:128-512", questions="arithmetic", max_time="5m")
def test_simulated(gpucap: GpuCap) -> None: ...

@pytest.mark.vllm("synthetic:tiny")
@pytest.mark.gpu_class("a10g")
def test_server(vllm_server: Server, gpu: SystemUnderTest) -> None: ...

def test_of_others() -> None: ...
"""

ABSENT = "a100-40gb-1g.5gb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_suite.py").write_text(SUITE)
    return tmp_path


def _loaded(folder: Path, *arguments: str) -> tuple[int, set[str]]:
    """pytest's exit code, and which heavy modules it then has for us; a session writes its warnings first."""
    code = (
        "import sys, pytest, pdb\nbefore = set(sys.modules)\n"  # pdb, which pytest loads, loads asyncio since 3.14
        f"code = pytest.main(['-q', '-p', 'no:cacheprovider', '-p', 'pytest_gpucap.plugin', *{arguments!r}])\n"
        f"print(); print(int(code), *[name for name in {HEAVY!r} if name in set(sys.modules) - before])\n"
    )
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    exit_code, *loaded = done.stdout.splitlines()[-1].split()
    return int(exit_code), set(loaded)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("--collect-only",), 0),
        (("--collect-only", "--gpu-class=sim:fast"), 0),
        (("--gpu-class", ABSENT), 4),
        (("-k", "of_others"), 0),
        (("-k", "nothing_at_all"), 5),
    ],
    ids=["collected", "collected-for-a-simulator", "absent-class", "ours-deselected", "all-deselected"],
)
def test_nothing_heavy_is_loaded(folder: Path, arguments: tuple[str, ...], exit_code: int) -> None:
    assert _loaded(folder, *arguments) == (exit_code, set())


BEFORE_AN_ESTIMATE = """
import sys
import pytest_gpucap.session.base_and_head
import pytest_gpucap.session.context
from pytest_gpucap.jit import compiled, spare_linear_algebra
heavy = ("coverage", "scipy.linalg", "scipy.optimize", "scipy.special", "scipy.stats")
print([name for name in heavy if name in sys.modules])
spare_linear_algebra()
compiled(lambda: None)()
print([name for name in sys.modules if name.startswith("scipy.linalg.")])
import coverage
print(coverage.__name__)
"""
"""What a session loads before it estimates, then what the first compiled function loads in a process of our own."""


def test_a_session_loads_no_statistics_before_an_estimate() -> None:
    pytest.importorskip("numba")
    pytest.importorskip("coverage")
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", BEFORE_AN_ESTIMATE]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["[]", "[]", "coverage"]


def test_tests_with_equal_markers_share_what_is_read(pytester: pytest.Pytester) -> None:
    """Reading 10,000 declarations costs seconds: equal ones are read once, and no two that differ are mixed up."""
    pytester.makepyfile(
        """
        import pytest
        from pytest_gpucap.session.pytest_session import declaration

        @pytest.mark.parametrize("number", range(3))
        @pytest.mark.gpucap(qps=1)
        def test_same(number, gpucap, request):
            declared = declaration(request.node)
            assert (declared.name, declared.requirement.name) == ("test_same", "test_same")
            assert str(declared.place) == "test_tests_with_equal_markers_share_what_is_read.py:4"

        @pytest.mark.gpucap(qps=1)
        def test_other_name(gpucap, request):
            declared = declaration(request.node)
            assert (declared.name, declared.requirement.name) == ("test_other_name", "test_other_name")
            assert str(declared.place) == "test_tests_with_equal_markers_share_what_is_read.py:11"

        @pytest.mark.gpucap(qps=1, name="given")
        def test_given_name(gpucap, request):
            assert declaration(request.node).name == "given"

        @pytest.mark.gpucap(qps=1, ignore_eos=True)
        def test_a_flag(gpucap, request):
            assert declaration(request.node).workload.ignore_eos
        """
    )
    pytester.runpytest("-q", "--gpu-class=sim:fast").assert_outcomes(passed=6)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpucap(qps=1, ignore_eos=True)
        def test_a_flag(gpucap): ...

        @pytest.mark.gpucap(qps=1, ignore_eos=1)
        def test_a_number_that_equals_it(gpucap): ...
        """
    )
    result = pytester.runpytest("-q", "--gpu-class=sim:fast")
    result.stderr.fnmatch_lines(["*:6: ignore_eos must be True or False, not 1"])
