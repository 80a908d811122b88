"""What the package weighs in a fresh environment, and how fast its commands start.

    python benchmarks/weight.py [--wheel dist/*.whl] [--vllm .venv-vllm/bin/python] [--repeats 9]

Makes a virtual environment in a temporary folder and installs the wheel with what it needs, as a user would. Prints
every installed distribution with its size on disk and whether a machine with vLLM has it anyway. Then it runs each
command that only reports, on a result file of this repository, and prints processor time (the least of the repeats,
which other work on the machine hardly changes) and wall time (their median). The first row of that table is what they
are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "h200" / "suite.json"

LISTED = """
import importlib.metadata, json, pathlib
found = {}
for each in importlib.metadata.distributions():
    files = [pathlib.Path(each.locate_file(file)) for file in each.files or ()]
    size = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
    found[each.metadata["Name"].lower().replace("_", "-")] = [each.version, size]
print(json.dumps(found))
"""
NOT_OURS = {"pip", "setuptools", "wheel"}
COMMANDS: dict[str, Sequence[str]] = {
    "import msgspec, jinja2": ("-c", "import msgspec, jinja2"),
    "gpucap report": ("-m", "pytest_gpucap", "report", str(RESULT)),
    "gpucap report --html": ("-m", "pytest_gpucap", "report", str(RESULT), "--html", "report.html"),
    "gpucap report --markdown": ("-m", "pytest_gpucap", "report", str(RESULT), "--markdown", "report.md"),
    "gpucap compare": ("-m", "pytest_gpucap", "compare", str(RESULT), str(RESULT)),
    "gpucap show": ("-m", "pytest_gpucap", "show", str(RESULT)),
    "gpucap plan --rate": ("-m", "pytest_gpucap", "plan", "--qps", "100", "--rate", "3.85"),
    "gpucap plan --result": ("-m", "pytest_gpucap", "plan", "--qps", "100", "--result", str(RESULT)),
    "gpucap export": ("-m", "pytest_gpucap", "export", str(RESULT), "--openmetrics", "gpucap.prom"),
    "gpucap frame": ("-m", "pytest_gpucap", "frame", str(RESULT), "-o", "windows.csv"),
}


def installed(python: Path) -> dict[str, tuple[str, int]]:
    """Name -> version and bytes of every distribution of an environment; bytecode is not counted."""
    done = subprocess.run([python, "-I", "-c", LISTED], capture_output=True, text=True, check=True)
    return {name: (version, size) for name, (version, size) in json.loads(done.stdout).items()}


def built(into: Path) -> Path:
    """The wheel of the working copy."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into), str(ROOT)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    (wheel,) = into.glob("*.whl")
    return wheel


def fresh(folder: Path, *wanted: str, interpreter: str = sys.executable) -> Path:
    """A new environment with these requirements; its interpreter."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted], check=True)
    return python


def timed(python: Path, arguments: Sequence[str], folder: Path, repeats: int) -> tuple[float, float]:
    """Least processor time and median wall time of a command, in seconds."""
    cpu, wall = [], []
    environment = {**os.environ, "HOME": str(folder)}
    for _ in range(repeats + 1):  # the first one writes bytecode
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([python, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.monotonic() - began)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(cpu[1:]), statistics.median(wall[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="default: one that is built here")
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    there = installed(given.vllm) if given.vllm.exists() else {}
    with tempfile.TemporaryDirectory(prefix="gpucap-weight-") as name:
        folder = Path(name)
        wheel = given.wheel or built(folder / "dist")
        began = time.monotonic()
        python = fresh(folder / "venv", str(wheel))
        print(
            f"wheel {wheel.stat().st_size / 1e6:.2f} MB; installed in {time.monotonic() - began:.0f} s, venv included\n"
        )
        found = {name: each for name, each in installed(python).items() if name not in NOT_OURS}
        print("| package | version | MB | a machine with vLLM has it |\n| --- | --- | --- | --- |")
        for package, (version, size) in sorted(found.items(), key=lambda each: -each[1][1]):
            print(f"| {package} | {version} | {size / 1e6:.1f} | {'yes' if package in there else 'no'} |")
        new = {package: each for package, each in found.items() if package not in there}
        for what, those in (("all", found), ("new beside vLLM", new)):
            print(f"\n{what}: {len(those)} packages, {sum(size for _, size in those.values()) / 1e6:.0f} MB")
        # The extra `html`, after its absence was weighed.
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "jinja2"], check=True)
        print("\n| command | processor time | wall time | times the first |\n| --- | --- | --- | --- |")
        first = 0.0
        for command, arguments in COMMANDS.items():
            cpu, wall = timed(python, arguments, folder, given.repeats)
            first = first or cpu
            print(f"| `{command}` | {cpu * 1e3:.0f} ms | {wall * 1e3:.0f} ms | {cpu / first:.1f} |", flush=True)


if __name__ == "__main__":
    main()
