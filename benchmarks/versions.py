"""A short suite in fresh environments: on each Python that is here, and with the oldest of everything that is declared.

    python benchmarks/versions.py [--wheel dist/*.whl] [--python python3.11 python3.12 ...]

Each environment is made in a temporary folder, from the wheel and what pip chooses for it. The suite checks a budget
against a simulated server in virtual time, and asks the same server over HTTP with the OpenAI client; then a report is
made of its result. "oldest" is the first Python with every dependency at the version that pyproject.toml names as its
least. The table that this prints stands in docs/versions.md. Exits with 1 if a suite failed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.weight import built, fresh, installed

PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
SHOWN = ("pytest", "openai", "nvidia-ml-py", "numba", "numpy", "scipy")
SUITE = """\
import pytest


@pytest.mark.gpucap(qps=16, gpus=1, input_tokens=256, output_tokens=64, e2e_p95="4s")
def test_budget(gpucap):
    gpucap.check()


def test_client(vllm_server):
    reply = vllm_server.client.chat.completions.create(
        model=vllm_server.model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    assert reply.usage.completion_tokens == 4
"""


def oldest(wheel: Path) -> list[str]:
    """Requirements that pin every dependency of the wheel to the least version that it names."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    found = (re.fullmatch(r"Requires-Dist: ([\w-]+)>=([\d.]+)", line) for line in lines)
    return [f"{each[1]}=={each[2]}.*" for each in found if each is not None]


def run(python: Path, folder: Path) -> str:
    """Run the suite and make its report; what went wrong, or nothing."""
    (folder / "test_it.py").write_text(SUITE)
    arguments = ["-q", "--gpu-class=sim:fast", "-c", "/dev/null", "--rootdir", str(folder), "-p", "no:cacheprovider"]
    for command in (["-m", "pytest", *arguments], ["-m", "pytest_gpucap", "report", ".gpucap/result.json"]):
        done = subprocess.run([python, *command], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stdout[-2000:] + done.stderr[-2000:]
    return ""


def measured(what: str, interpreter: str, wanted: Sequence[str]) -> tuple[str, str]:
    """The row of one environment, and what went wrong in it."""
    with tempfile.TemporaryDirectory(prefix="gpucap-versions-") as name:
        folder = Path(name)
        try:
            python = fresh(folder / "venv", *wanted, interpreter=interpreter)
        except subprocess.CalledProcessError as error:
            return f"| {what} | not installed |", str(error)
        wrong = run(python, folder)
        there = installed(python)
        version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
        shown = " | ".join(there[each][0] for each in SHOWN)
        return f"| {what} | {version} | {shown} | {'failed' if wrong else 'passed'} |", wrong


def main() -> int:
    """Run and print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="default: one that is built here")
    parser.add_argument("--python", nargs="+", default=[each for each in PYTHONS if shutil.which(each)])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpucap-wheel-") as name:
        wheel = given.wheel or built(Path(name))
        print(f"| environment | Python | {' | '.join(SHOWN)} | suite |\n|{' --- |' * (len(SHOWN) + 3)}")
        failures = []
        cases = [("newest", each, [str(wheel)]) for each in given.python]
        for what, interpreter, wanted in [*cases, ("oldest", given.python[0], [str(wheel), *oldest(wheel)])]:
            row, wrong = measured(what, interpreter, wanted)
            print(row, flush=True)
            failures += [f"{what}, {interpreter}: {wrong}"] if wrong else []
    print("\n".join(failures), file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
