"""The tools themselves, against a simulated server: what they write is what is read here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.synthetic import make_model
from pytest_gpucap.other_tools.point import Point, Tool
from pytest_gpucap.other_tools.reading import read_points
from pytest_gpucap.simulator.serve import start_simulator

RATE, REQUESTS = 20, 30
# `vllm bench serve` by another name: the command of the CPU build asks for the version of a package named vllm.
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with start_simulator("fast") as server:
        # It compiles for its first request, which none of the tools should wait for.
        server.client.completions.create(model=server.model, prompt="a b", max_tokens=2)
        yield server


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer, since the simulator has none."""
    return make_model("synthetic:tiny", tmp_path / "models")


def run(words: Sequence[str | Path], folder: Path) -> None:
    ran = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]


def one_point(path: Path) -> Point:
    files, _ = read_points(path)
    (point,) = (point for file in files for point in file.points)
    return point


def check(point: Point, tool: Tool) -> None:
    assert (point.tool, point.model, point.completed, point.failed) == (tool, "simulated-fast", REQUESTS, 0)
    assert point.load.rate_rps == RATE
    assert point.lengths.output_tokens == 16
    assert 0 < point.latencies["ttft"].p50_s < point.latencies["e2e"].p50_s


@pytest.mark.vllm_cpu
@pytest.mark.slow
def test_vllm_bench_serve(vllm_python: str, server: Any, tokenizer: Path, tmp_path: Path) -> None:
    words = [vllm_python, "-c", VLLM_BENCH, "--backend", "openai", "--base-url", server.root_url]
    words += ["--model", server.model, "--tokenizer", str(tokenizer), "--dataset-name", "random"]
    words += ["--random-input-len", "64", "--random-output-len", "16", "--num-prompts", str(REQUESTS)]
    words += ["--request-rate", str(RATE), "--save-result", "--result-dir", str(tmp_path / "out")]
    run(words, tmp_path)
    check(one_point(tmp_path / "out"), Tool.VLLM)


def installed(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@installed("guidellm")
def test_guidellm(server: Any, tokenizer: Path, tmp_path: Path) -> None:
    words = ["guidellm", "run", "--backend", f"kind=openai_http,target={server.root_url},model={server.model}"]
    words += ["--profile", f"kind=poisson,rate={RATE}", "--constraint", f"kind=max_requests,count={REQUESTS}"]
    words += ["--tokenizer", f"kind=hf_auto,model={tokenizer}", "--disable-console"]
    words += ["--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16"]
    run([*words, "--output", f"kind=json,path={tmp_path}/out/benchmarks.json"], tmp_path)
    check(one_point(tmp_path / "out"), Tool.GUIDELLM)


@installed("aiperf")
def test_aiperf(server: Any, tokenizer: Path, tmp_path: Path) -> None:
    tokenizer.rename(tmp_path / "tokenizer")
    words = ["aiperf", "profile", "--model", server.model, "--url", server.root_url, "--endpoint-type", "chat"]
    words += ["--streaming", "--request-rate", str(RATE), "--request-count", str(REQUESTS), "--ui", "none"]
    words += ["--tokenizer", "./tokenizer", "--isl", "64", "--osl", "16", "--extra-inputs", "ignore_eos:true"]
    run([*words, "--use-server-token-count", "--artifact-dir", tmp_path / "out"], tmp_path)
    check(one_point(tmp_path / "out"), Tool.AIPERF)


CONFIG = """
api: {{type: completion, streaming: true}}
data: {{type: mock}}
load:
  type: constant
  interval: 1
  stages:
  - {{rate: {rate}, duration: 2}}
  num_workers: 1
server: {{type: vllm, model_name: {model}, base_url: "{url}", ignore_eos: true}}
tokenizer: {{pretrained_model_name_or_path: {tokenizer}}}
report: {{request_lifecycle: {{summary: true, per_stage: true, per_request: false}}}}
storage: {{local_storage: {{path: {out}}}}}
"""


@installed("inference-perf")
def test_inference_perf(server: Any, tokenizer: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "config.yml", tmp_path / "out"
    config.write_text(CONFIG.format(rate=RATE, model=server.model, url=server.root_url, tokenizer=tokenizer, out=out))
    run(["inference-perf", "-c", config], tmp_path)
    point = one_point(out)
    assert (point.tool, point.model, point.load.rate_rps) == (Tool.INFERENCE_PERF, server.model, RATE)
    assert point.url == server.root_url
    assert point.completed == 2 * RATE
