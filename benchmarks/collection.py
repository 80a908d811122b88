"""What the plugin adds to a pytest run that measures nothing: CPU time and peak memory of whole processes.

Each case runs pytest without the plugin and with it, in alternation, so that a drifting machine affects both alike.
Every other plugin is off in both. The cases:

- nothing of ours: one empty test, which runs;
- one test: one test with our markers, collected;
- 10,000 tests: a module of 10,000 tests with 100 different declarations, collected;
- absent class: a run of the one test that is refused, because the machine lacks the GPU class of ``--gpu-class``.
  Without the plugin there is no such option, so the collection of the test stands for it.

Prints medians over the repeats, and the median of the differences, pair by pair::

    python benchmarks/collection.py [--repeats 20] [--absent-class t4]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

INI = """\
[pytest]
markers =
    gpucap: also known without the plugin, so that both runs warn of nothing
    vllm: the same
"""
EMPTY = "def test_empty(): ...\n"
HEAD = "import pytest\n"
TEST = """
@pytest.mark.vllm("synthetic:tiny", max_model_len=4096)
@pytest.mark.gpucap(qps={qps}, gpus=4, input_tokens=256, output_tokens=128, ttft_p95="500ms", e2e_p95="20s")
def test_{number}(gpucap): ...
"""
MANY, DECLARATIONS = 10_000, 100


class Cost(NamedTuple):
    """Of one process: user and system CPU time in milliseconds, and the peak of its resident memory in MB."""

    cpu_ms: float
    memory_mb: float


class Case(NamedTuple):
    """The arguments of pytest without the plugin and with it."""

    name: str
    bare: tuple[str, ...]
    loaded: tuple[str, ...]
    exit_code: int = 0
    """With the plugin; without it every run ends with 0."""
    share_of_repeats: float = 1.0


def cases(absent_class: str) -> Sequence[Case]:
    """What is measured."""
    one, many = ("--collect-only", "test_one.py"), ("--collect-only", "test_many.py")
    return (
        Case("nothing of ours", ("test_empty.py",), ("test_empty.py",)),
        Case("one test", one, one),
        Case("10,000 tests", many, many, share_of_repeats=0.25),
        Case("absent class", one, ("--gpu-class", absent_class, "test_one.py"), exit_code=4),
    )


def write_tests(folder: Path) -> None:
    """The test files of all cases."""
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_empty.py").write_text(EMPTY)
    (folder / "test_one.py").write_text(HEAD + TEST.format(number=0, qps=10))
    many = (TEST.format(number=number, qps=number % DECLARATIONS + 1) for number in range(MANY))
    (folder / "test_many.py").write_text(HEAD + "".join(many))


def run(folder: Path, arguments: Sequence[str], expected: int) -> Cost:
    """Run pytest once and read what the kernel counted for it."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # As for everybody: compiled once, not in every run.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != expected:
            output.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read().decode()}")
    return Cost((used.ru_utime + used.ru_stime) * 1000, used.ru_maxrss / 1024)


def compare(folder: Path, case: Case, repeats: int) -> tuple[list[Cost], list[Cost]]:
    """The costs without the plugin and with it, pair by pair; a first pair warms the caches and does not count."""
    bare: list[Cost] = []
    loaded: list[Cost] = []
    for _ in range(repeats + 1):
        bare.append(run(folder, case.bare, 0))
        loaded.append(run(folder, ("-p", "pytest_gpucap.plugin", *case.loaded), case.exit_code))
    return bare[1:], loaded[1:]


def row(bare: Sequence[float], loaded: Sequence[float], unit: str) -> str:
    """The medians without and with the plugin, and the median of the differences."""
    added = statistics.median(after - before for before, after in zip(bare, loaded, strict=True))
    return f"{statistics.median(bare):11.0f} {unit}{statistics.median(loaded):6.0f} {unit}{added:+8.1f} {unit}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="pairs of runs of a case; a quarter for 10,000 tests")
    parser.add_argument("--absent-class", default="t4", help="a GPU class that this machine does not have")
    given = parser.parse_args()
    print(f"{'':16}{'CPU without':>14}{'with':>9}{'added':>11}{'memory without':>14}{'with':>9}{'added':>11}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tests(folder)
        for case in cases(given.absent_class):
            bare, loaded = compare(folder, case, max(1, round(given.repeats * case.share_of_repeats)))
            cpu = row([cost.cpu_ms for cost in bare], [cost.cpu_ms for cost in loaded], "ms")
            memory = row([cost.memory_mb for cost in bare], [cost.memory_mb for cost in loaded], "MB")
            print(f"{case.name:16}{cpu}{memory}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
