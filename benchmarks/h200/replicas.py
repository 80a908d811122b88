"""Do the replicas of one host add up? All of `test_h200_replicas.py`, in sessions of pytest one after the other.

    python benchmarks/h200/replicas.py OUT [PYTHON] --gpus 4 --within 580 --steps small,large
    python benchmarks/h200/replicas.py OUT [PYTHON] --gpus 4 --within 580 --steps router,layout,xdist,lost,ray

OUT gets each session's output and result file, and `replicas.json`: each fleet's rate, its scaling efficiency against
one replica that was measured by itself, and what was left behind (servers, GPU memory). No step begins after `--within`
seconds.

    GPUCAP_MODEL=synthetic:tiny python benchmarks/h200/replicas.py OUT .venv-vllm/bin/python --gpus 2 --gpu-class cpu

rehearses it without GPUs. `ray` starts a cluster of this one host, and needs `pip install "pytest-gpucap[ray]"`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Any

import psutil

from pytest_gpucap.fleet.efficiency import scaling_efficiency
from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Interval

HERE = Path(__file__).parent
SUITE = HERE / "test_h200_replicas.py"
STEPS = ("small", "large", "router", "layout", "xdist", "lost", "ray")
LAST_S = 400.0
"""A session takes no longer: four starts and their measurements."""


@dataclass(frozen=True)
class Where:
    """What every session has in common.

    Attributes:
        out: the folder of the results.
        python: the interpreter that has vLLM.
        gpus: how many of the host's GPUs take part.
        gpu_class: what `--gpu-class` gets.
        limit_s: what one measurement may take.
    """

    out: Path
    python: str
    gpus: int
    gpu_class: str
    limit_s: float


def command(where: Where, step: str, select: str, *options: str) -> list[str]:
    """One session of pytest over the tests that `select` names."""
    folder = where.out / step
    folder.mkdir(parents=True, exist_ok=True)
    # Where the plugin is not installed it is taken from the Python path.
    load = [] if installed("pytest-gpucap") else ["-p", "pytest_gpucap.plugin"]
    plugin = [*load, "-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings="]
    files = ["--gpucap-dir", str(folder / "gpucap"), "--gpucap-json", str(folder / "result.json")]
    return [
        *(sys.executable, "-m", "pytest", *plugin, *files, "--rootdir", str(HERE), "--import-mode=importlib"),
        *("--gpu-class", where.gpu_class, "--gpucap-require", "--gpucap-vllm-python", where.python, "-rA"),
        *("--gpucap-max-time", f"{where.limit_s:.0f}s", str(SUITE), "-k", select, *options),
    ]


def installed(distribution: str) -> bool:
    """Whether this Python has the distribution, and so its entry points."""
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def session(where: Where, step: str, select: str, *options: str, lose_one: bool = False) -> int:
    """Run one session to its end, or kill one replica of it once load runs; the exit status."""
    environment = {**os.environ, "GPUCAP_GPUS": str(where.gpus), "PYTHONUNBUFFERED": "1"}
    with (
        (where.out / f"{step}.txt").open("w") as kept,
        subprocess.Popen(
            command(where, step, select, *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            process_group=0,
        ) as ran,
    ):
        assert ran.stdout is not None
        until_s = time.monotonic() + LAST_S
        for line in ran.stdout:
            kept.write(line)
            if lose_one and "warm-up" in line:
                lose_one = False
                lost = replicas_of(ran.pid)[-1]
                kept.write(f"killed process {lost.pid} of {' '.join(lost.cmdline()[:4])}\n")
                lost.kill()
            if time.monotonic() > until_s:
                os.killpg(ran.pid, signal.SIGINT)
                until_s = math.inf
    return ran.returncode


def replicas_of(pid: int) -> list[psutil.Process]:
    """The servers that a session owns, oldest first: each leads its own process group."""
    children = psutil.Process(pid).children(recursive=True)
    words = {each: each.cmdline() for each in children}
    leaders = [each for each in children if os.getpgid(each.pid) == each.pid]
    servers = [each for each in leaders if any(word.endswith("vllm_serve.py") for word in words[each])]
    return sorted(servers, key=lambda process: process.create_time())


def figures(where: Where, step: str) -> list[dict[str, Any]]:
    """What the session's result file says of each test; none where it ended before it wrote one."""
    path = where.out / step / "result.json"
    if not path.is_file():
        return []
    found = []
    for each in result_file.read(path).results:
        fleet = each.fleet
        found.append(
            {
                "test": each.name,
                "outcome": each.outcome,
                "reason": each.reason,
                "replicas": each.requirement.fleet,
                "router": fleet.router if fleet else None,
                "req/s a replica": plain(each.sustainable_rate),
                "req/s together": plain(fleet.together if fleet else each.sustainable_rate),
                "lost": list(fleet.lost) if fleet else [],
                "devices": [device.uuid for device in each.telemetry.devices] if each.telemetry else [],
                "bottleneck": list(each.bottleneck.evidence) if each.bottleneck else [],
            }
        )
    return found


def plain(rate: Interval | None) -> list[float] | None:
    """A rate and its 95% interval."""
    return None if rate is None else [rate.value, rate.low, rate.high]


def efficiencies(rows: list[dict[str, Any]]) -> None:
    """Add each fleet's scaling efficiency, against one replica of the same model that was measured by itself."""
    alone = {row["test"].split(",")[0]: row["req/s a replica"] for row in rows if row["test"].endswith("one replica")}
    for row in rows:
        one, each = alone.get(row["test"].split(",")[0]), row["req/s a replica"]
        if row["replicas"] > 1 and one and each:
            row["efficiency"] = plain(scaling_efficiency(Interval(*each), Interval(*one)))


def left_behind(before: set[int]) -> dict[str, Any]:
    """Servers that began meanwhile and are still there, and the memory of each GPU that is in use, in MiB."""
    servers = [
        " ".join(each.info["cmdline"][:4])
        for each in psutil.process_iter(["cmdline"])
        if each.pid not in before and any("vllm" in word for word in each.info["cmdline"] or ())
    ]
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    used = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split() if which(query[0]) else []
    return {"servers": servers, "GPU memory": [int(each) for each in used]}


def ray_cluster(where: Where, *words: str) -> None:
    """`ray start` or `ray stop` on this host."""
    subprocess.run([where.python, "-m", "ray.scripts.scripts", *words], check=True, timeout=120)


def main() -> None:
    """Run the steps that are asked for, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("python", nargs="?", default=sys.executable)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--gpu-class", default="h200")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--within", type=float, default=math.inf, help="begin no step after so many seconds")
    parser.add_argument("--limit", type=float, default=80.0, help="seconds that one measurement may take")
    asked = parser.parse_args()
    where = Where(asked.out, asked.python, asked.gpus, asked.gpu_class, asked.limit)
    where.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    before = set(psutil.pids())
    spread = "--gpucap-router=client:least_outstanding"
    most = str(2 ** (where.gpus.bit_length() - 1))
    rows: list[dict[str, Any]] = []
    for step in asked.steps.split(","):
        if time.monotonic() - began > asked.within:
            print(f"{step}: not begun, the time is over", flush=True)
            continue
        if step in ("small", "large", "layout"):
            status = session(where, step, f"test_{step}", spread, "--gpucap-efficiency=skip")
        elif step == "router":
            several = f"(test_small or test_large) and {most}"
            status = session(where, step, several, "--gpucap-router=vllm:round_robin", "--gpucap-efficiency=skip")
        elif step == "xdist":
            status = session(where, step, "test_alone", "-n", str(where.gpus))
        elif step == "lost":
            status = session(where, step, "test_lost", spread, "--gpucap-efficiency=skip", "-s", lose_one=True)
        elif step == "ray":
            ray_cluster(where, "start", "--head", f"--num-gpus={where.gpus}", "--disable-usage-stats")
            try:
                launched = ("--gpucap-launcher=ray", "--gpucap-ray-address=auto", spread, "--gpucap-efficiency=skip")
                status = session(where, step, f"test_small and {most}", *launched)
            finally:
                ray_cluster(where, "stop")
        else:
            parser.error(f"no step {step!r}: there are {', '.join(STEPS)}")
        found = figures(where, step)
        rows += found
        print(f"{step}: exit {status} after {time.monotonic() - began:.0f} s; {left_behind(before)}", flush=True)
        for row in found:
            print("  ", row["test"], row["outcome"], row["req/s together"], flush=True)
        efficiencies(rows)
        (where.out / "replicas.json").write_text(
            json.dumps({"rows": rows, "left": left_behind(before)}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
