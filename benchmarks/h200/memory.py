"""A GPU without enough memory, at the start and under load: what the plugin says, and what is left behind.

    python benchmarks/h200/memory.py OUT [PYTHON]

Three sessions of pytest, one after the other. In the first two another server holds 60% of the memory, and a test asks
for 60%: once as it is, and once with `--gpucap-gpu-idle` that takes the other server for no tenant, so that vLLM itself
finds too little. In the third a program takes all memory that is left once the server is ready, so that the engine runs
out of it under load. OUT gets each session's output, and `memory.json` what was seen.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.gpu.inventory import take_inventory
from pytest_gpucap.vllm_arguments import VllmArguments

MODEL = "synthetic:qwen2-1.5b"
HOG = """
import sys, torch
held, size = [], 1 << 30
while size >= 1 << 22:
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
print("holds", sum(each.numel() for each in held) >> 20, "MiB", flush=True)
sys.stdin.read()
"""
"""Takes all memory of the GPU that is free, until its input ends."""
SUITE = """
import subprocess, sys
import pytest

HOG = {hog!r}

@pytest.mark.vllm(model={model!r}, max_model_len=9000, {arguments})
@pytest.mark.gpucap(qps=4, gpus=1, input_tokens=8000, output_tokens=64, e2e_p95="20s", endpoint="completions")
def test_capacity(gpucap, vllm_server):
    if not {hogged}:
        gpucap.check()
        return
    with subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hog:
        print(hog.stdout.readline())
        try:
            gpucap.check()
        finally:
            hog.stdin.close()
            hog.wait()
"""


def other(python: str) -> VllmServer:
    """Another server, which holds most of the memory."""
    devices = [str(take_inventory().devices[0].index)]
    arguments = VllmArguments({"max_model_len": 4096, "gpu_memory_utilization": 0.6})
    return start_vllm(ServerSpec(MODEL, arguments, python), devices=devices)


def session(out: Path, python: str, name: str, *, arguments: str, hogged: bool, options: list[str]) -> dict[str, Any]:
    """One session of pytest: its exit status, and the lines that name the memory."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    suite = folder / "test_memory.py"
    suite.write_text(SUITE.format(hog=HOG, model=MODEL, arguments=arguments, hogged=hogged))
    command = [python, "-m", "pytest", "-p", "pytest_gpucap.plugin", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["-o", "filterwarnings=", "--rootdir", str(folder), str(suite), "--gpu-class=h200", "--gpucap-require"]
    command += ["--gpucap-vllm-python", python, "--gpucap-dir", str(folder / "gpucap"), *options]
    command += ["--gpucap-json", str(folder / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    said = [line.strip() for line in done.stdout.splitlines() if "memory" in line.lower() or "INVALID" in line]
    return {"exit_status": done.returncode, "said": said[:12]}


def used_mib() -> int:
    """Memory in use on the GPU."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])


def engines() -> list[str]:
    """Command lines of vLLM's processes."""
    found = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    return [line[:120] for line in found if "vllm" in line.lower() and "memory.py" not in line]


def main() -> None:
    """See the top."""
    out, python = Path(sys.argv[1]), (sys.argv[2:] or [sys.executable])[0]
    found: dict[str, Any] = {"idle_mib": used_mib(), "sessions": {}}
    asked = "gpu_memory_utilization=0.6"
    with other(python):
        for name, options in (("another tenant", []), ("too little at the start", ["--gpucap-gpu-idle", "95%"])):
            found["sessions"][name] = session(out, python, name, arguments=asked, hogged=False, options=options)
    found["sessions"]["too little under load"] = session(
        out, python, "too little under load", arguments=f"kv_cache_memory_bytes={4 << 30}", hogged=True, options=[]
    )
    found |= {"left_mib": used_mib(), "left_running": engines()}
    (out / "memory.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
