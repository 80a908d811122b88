"""What a start of vLLM takes with empty caches, and with those that the start before has left: seconds by phase.

    python benchmarks/start_caches.py [--rounds 3] [--model synthetic:tiny] [--python .venv-vllm/bin/python]
        [--devices 0] [--arguments "--max-model-len 4096"] [--json FILE]

Each round begins with empty folders for the compile caches of vLLM, Inductor, Triton, FlashInfer and CUDA, and starts
the same server twice. So it also shows whether two starts have one compile key: then the second adds no entry. The
caches of model files (Hugging Face, synthetic models) stay as they are. Files that the operating system has in memory
after the first round make imports and weights faster in later ones, which is why medians over rounds count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pytest_gpucap.engines.server_spec import ServerSpec  # noqa: E402
from pytest_gpucap.engines.start_phases import StartPhase  # noqa: E402
from pytest_gpucap.engines.vllm import start_vllm  # noqa: E402
from pytest_gpucap.vllm_arguments import VllmArguments  # noqa: E402

FOLDERS = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
}
COMPILED = Path("vllm", "torch_compile_cache")


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        startup_s: seconds until the server was ready.
        cpu_s: processor time of its processes until then, ended compilers included. Other work on the machine hardly
            changes it.
        phases_s: seconds by phase, as far as its log tells.
        bytes: in each cache folder afterwards.
        entries: of vLLM's compile cache afterwards; a new compile key is a new entry.
    """

    startup_s: float
    cpu_s: float
    phases_s: dict[str, float]
    bytes: dict[str, int]
    entries: int


def start(spec: ServerSpec, devices: Sequence[str], caches: Path) -> Start:
    """Start the server, end it, and look at what it has left.

    Raises:
        ValueError: if a file of the caches has its key.
    """
    with start_vllm(spec, devices=devices) as server:
        cpu_s = sum(sum(psutil.Process(pid).cpu_times()[:4]) for pid in server.pids())
        startup_s, phases_s, key = server.startup_s, dict(server.start_phases_s), f"{server.api_key}".encode()
    files = [path for path in caches.rglob("*") if path.is_file()]
    if leaked := [path for path in files if key in path.read_bytes()]:
        raise ValueError(f"the key stands in {leaked}")
    kept = {
        name: sum(path.stat().st_size for path in files if path.is_relative_to(caches / name))
        for name in FOLDERS.values()
    }
    entries = [each for each in (caches / COMPILED).glob("*") if each.name != "torch_aot_compile"]
    entries += (caches / COMPILED / "torch_aot_compile").glob("*")
    return Start(startup_s, cpu_s, phases_s, kept, len(entries))


def table(rounds: Sequence[tuple[Start, Start]]) -> str:
    """Medians, in Markdown."""
    first, second = ([each[place] for each in rounds] for place in (0, 1))
    rows = [
        ("start-up", [each.startup_s for each in first], [each.startup_s for each in second]),
        ("its processor time", [each.cpu_s for each in first], [each.cpu_s for each in second]),
    ]
    for phase in StartPhase:
        cold, warm = ([each.phases_s[phase] for each in starts if phase in each.phases_s] for starts in (first, second))
        if len(cold) == len(first) and len(warm) == len(second):  # else one of them was too short to be told
            rows.append((phase.value, cold, warm))
    lines = ["| | caches empty | with the caches of the first | saved |", "| --- | --- | --- | --- |"]
    for name, cold, warm in rows:
        before, after = statistics.median(cold), statistics.median(warm)
        lines.append(f"| {name} | {before:.1f} s | {after:.1f} s | {before - after:.1f} s |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="synthetic:tiny")
    parser.add_argument("--python", default=str(ROOT / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--devices", default="", help="entries of CUDA_VISIBLE_DEVICES; none: the CPU")
    parser.add_argument("--arguments", default="--no-enforce-eager")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    devices = [each for each in given.devices.split(",") if each]
    rounds: list[tuple[Start, Start]] = []
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory(prefix="gpucap-caches-") as folder:
            caches = Path(folder)
            spec = ServerSpec(
                given.model,
                args=VllmArguments.parse(given.arguments),
                python=given.python,
                env={name: str(caches / inside) for name, inside in FOLDERS.items()},
                log_dir=caches / "logs",
            )
            first, second = start(spec, devices, caches), start(spec, devices, caches)
        rounds.append((first, second))
        for name, each in (("empty", first), ("kept", second)):
            print(f"round {number + 1}, {name}: {json.dumps(asdict(each))}", flush=True)
    print(table(rounds))
    if given.json is not None:
        measured = {
            "model": given.model,
            "arguments": given.arguments,
            "rounds": [[*map(asdict, each)] for each in rounds],
        }
        given.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
