"""How long a ready server waits in the first check after an installation, while code is compiled.

    python benchmarks/first_check.py [--rounds 1] [--gpu-class cpu] [--python .venv-vllm/bin/python] [--json FILE]

Each round runs three pytest sessions with the same test against a server of their own. "before": Numba has no compiled
code, and none is made while the server starts. "after": it has none either, and the plugin compiles during the start.
"later": with the code that "after" has left. Prints for each how long the server was ready without a phase of load
(what is between "ready" and the end of the test, less the phases), how long its start took, and the processor time of
both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BETWEEN = {"start-up", "between phases"}
"""Of `Result.spent_s`: what is no phase of load."""

SUITE = """\
import pytest


@pytest.mark.vllm(model="synthetic:tiny", max_model_len=1024)
@pytest.mark.gpucap(qps=2, gpus=1, input_tokens=128, output_tokens=32, e2e_p95="20s", max_time="60s")
def test_it(gpucap):
    gpucap.check()
"""
WATCHED = """\
import json, os, resource, time

import pytest

from pytest_gpucap.session.compiling import CompileAhead
from pytest_gpucap.session.server_manager import ServerManager

SEEN = {}
start = ServerManager._start


def started(self, target, live):
    SEEN["began"] = time.monotonic()
    server = start(self, target, live)
    SEEN["ready"] = time.monotonic()
    return server


ServerManager._start = started
if os.environ["AHEAD"] == "no":
    CompileAhead.begin = lambda self: None


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.when == "call":
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        SEEN["ended"] = time.monotonic()
        SEEN["cpu_s"] = sum(each.ru_utime + each.ru_stime for each in used)
        open("seen.json", "w").write(json.dumps(SEEN))
"""
CASES = {"before": "no", "after": "yes", "later": "yes"}


def session(case: str, cache: Path, python: Path, gpu_class: str) -> dict[str, float]:
    """Run one; its seconds."""
    with tempfile.TemporaryDirectory(prefix="gpucap-first-") as name:
        folder = Path(name)
        (folder / "test_it.py").write_text(SUITE)
        (folder / "conftest.py").write_text(WATCHED)
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "AHEAD": CASES[case], "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", name, "-p", "no:cacheprovider"]
        command += [f"--gpu-class={gpu_class}", f"--gpucap-vllm-python={python}", "--gpucap-host-check=warn"]
        command += ["--gpucap-inconclusive=pass"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        result = folder / ".gpucap" / "result.json"
        if not result.exists() or not (folder / "seen.json").exists():
            raise SystemExit(done.stdout + done.stderr)
        seen = json.loads((folder / "seen.json").read_text())
        (found,) = json.loads(result.read_text())["results"]
    loaded = sum(seconds for phase, seconds in found["spent_s"].items() if phase not in BETWEEN)
    return {
        "start_s": seen["ready"] - seen["began"],
        "waited_s": seen["ended"] - seen["ready"] - loaded,
        "load_s": loaded,
        "cpu_s": seen["cpu_s"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gpu-class", default="cpu")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rounds = []
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="gpucap-numba-") as name:
            caches = {case: Path(name, "own" if case == "before" else "kept") for case in CASES}
            found = {case: session(case, caches[case], given.python, given.gpu_class) for case in CASES}
        rounds.append(found)
        for case, seconds in found.items():
            print(f"round {number + 1}, {case}: {json.dumps({k: round(s, 1) for k, s in seconds.items()})}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
