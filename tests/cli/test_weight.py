"""Commands that only report load nothing that measures, and start about as fast as what they are made of."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_gpucap.cli import COMMANDS, _runs
from pytest_gpucap.options.table import Options

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RESULT = RESULTS / "h200" / "suite.json"
OTHER_TOOL = Path(__file__).parents[1] / "other_tools" / "recorded" / "vllm-0.32.0" / "open.json"

HEAVY = frozenset(
    {
        "aiohttp",
        "asyncio",
        "httptools",
        "httpx",
        "llvmlite",
        "numba",
        "openai",
        "psutil",
        "pynvml",
        "pytest",
        "scipy",
        "tokenizers",
    }
)
"""What only measuring needs."""

ALLOWED: dict[str, frozenset[str]] = {"servers": frozenset({"psutil"})}
"""It looks for processes."""

RUNS: dict[str, Sequence[str]] = {
    "report": [
        "report",
        str(RESULT),
        "--text",
        "r.txt",
        "--markdown",
        "r.md",
        "--junit",
        "r.xml",
        "--metrics",
        "m.txt",
    ],
    "report --html": ["report", str(RESULT), "--html", "r.html", "--history", "nights"],
    "report --code-quality": ["report", str(RESULT), "--code-quality", "q.json"],
    "compare": ["compare", str(RESULT), str(RESULT)],
    "show": ["show", str(RESULT)],
    "history": ["history", "nights"],
    "plan": ["plan", "--qps", "100", "--result", str(RESULT), "--guide"],
    "plan --rate": ["plan", "--qps", "100", "--rate", "3.85"],
    "import": ["import", str(OTHER_TOOL), "--gpu-class", "cpu", "-o", "imported.json"],
    "export": ["export", str(RESULT), "--openmetrics", "m.prom"],
    "frame": ["frame", str(RESULT), "-o", "windows.csv"],
    "frame --rows": ["frame", str(RESULT), "--rows", "results"],
    "servers": ["servers"],
}

LOADED = f"""
import sys
from pytest_gpucap.__main__ import main
code = main(sys.argv[1:])
print()
print(code, *sorted(name for name in {sorted(HEAVY)!r} if name in sys.modules))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nights").mkdir()
    for number, path in enumerate(("measure.json", "measure-2.json", "measure-3.json")):
        shutil.copy(RESULTS / "h200" / path, tmp_path / "nights" / f"{number}.json")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    environment = {"PATH": "", "HOME": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_here() -> None:
    assert {words.split()[0] for words in RUNS} == {*COMMANDS}


@pytest.mark.parametrize("name", RUNS)
def test_it_loads_nothing_that_measures(name: str, folder: Path) -> None:
    code, *loaded = run(folder, "-c", LOADED, *RUNS[name]).splitlines()[-1].split()
    assert code == "0"
    assert {*loaded} <= ALLOWED.get(name, frozenset())


def test_the_folder_of_baselines_is_that_of_the_option() -> None:
    assert Options().baselines == _runs.FOLDER


def _cpu_s(folder: Path, *arguments: str) -> float:
    """The least processor time of a few runs: what others do on the machine makes it longer, never shorter."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(folder, *arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_a_report_takes_a_few_times_what_its_libraries_take_to_load(folder: Path) -> None:
    """SciPy alone takes ten times as long as these two."""
    libraries = _cpu_s(folder, "-c", "import msgspec, jinja2")
    assert _cpu_s(folder, "-m", "pytest_gpucap", "report", str(RESULTS / "cpu" / "examples.json")) < 5 * libraries
