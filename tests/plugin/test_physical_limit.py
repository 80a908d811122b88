"""Whole runs against a real process that speaks HTTP: every result shows its limit, and none above it is believed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.measured import Outcome
from pytest_gpucap.results.result import ResultKind

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lateness_forgiven", "short_warm_up")]

IMPOSSIBLE = "is above the bandwidth limit of|is below the least possible of"
"""Which of them shows first depends on how long the windows are that a busy machine lets the server answer in."""
START = "--gpucap-startup-timeout=3600s"
SERVER = Path(__file__).with_name("fast_vllm.py")
SUITE = """
    import pytest

    pytestmark = [
        pytest.mark.vllm(model="{model}"),
        pytest.mark.gpucap(qps=1, gpus=1, input_tokens=64, output_tokens=64, endpoint="completions", max_time="7s"),
    ]

    def test_check(gpucap):
        gpucap.check()

    def test_measure(gpucap):
        gpucap.measure()

    def test_sweep(gpucap):
        gpucap.sweep()
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs the suite with a model, on a "GPU class" of a bandwidth: the CPU, whose figures a file may give."""
    python = pytester.path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)

    def start(model: str, bandwidth_gb_s: float, *arguments: str) -> pytest.RunResult:
        classes = f'[[gpu]]\nname = "cpu"\nnvml_names = []\nbandwidth_gb_s = {bandwidth_gb_s}\n'
        pytester.path.joinpath("classes.toml").write_text(classes)
        pytester.makepyfile(test_suite=SUITE.format(model=model))
        settings = ("--gpu-class=cpu", "--gpucap-gpu-file=classes.toml", f"--gpucap-vllm-python={python}", START)
        return pytester.runpytest(*settings, "--gpucap-inconclusive=pass", *arguments)

    return start


def test_a_server_faster_than_its_memory_is_invalid(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    # 1.5 billion parameters at 50 GB/s are 62 ms a token in bfloat16, and twice that in the CPU's float32: some twenty
    # times what the server takes.
    result = run("synthetic:qwen2-1.5b", 50)
    result.assert_outcomes(failed=3)
    output = result.stdout.str()
    assert output.count("the server stops early, has seen these prompts before or is not this model, or the GPU") >= 3
    result.stdout.fnmatch_lines(["INVALID: test_check was not measured: * on 1x cpu (a pass reads * at 50 GB/s = *"])
    results = result_file.read(pytester.path / ".gpucap" / "result.json").results
    assert [each.kind for each in results] == [ResultKind.CHECK, ResultKind.MEASURE, ResultKind.SWEEP]
    for each in results:
        assert each.sustainable_rate is None
        # Where a window was long enough to have one.
        assert each.limit is None or each.limit.share > 1
        assert any(re.search(IMPOSSIBLE, problem.text) for problem in each.problems)
    assert any(each.limit is not None for each in results)
    assert results[0].outcome is Outcome.INVALID
    assert results[0].gpus_required is None


def test_a_server_below_its_limit_shows_its_share(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = run("synthetic:tiny", 50, "-k", "check")
    result.assert_outcomes(passed=1)
    for each in result_file.read(pytester.path / ".gpucap" / "result.json").results:
        assert each.limit is not None
        assert 0 < each.limit.share < 1
        assert "% of the bandwidth limit at" in each.limit.text
    result.stdout.fnmatch_lines(["*% of the bandwidth limit at *"])


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Starts a server that nobody here runs, which claims to have loaded a model from somewhere; its base URL."""
    running = []

    def start(root: str) -> str:
        command = [sys.executable, str(SERVER), "--served-model-name", "chat", "--host", "127.0.0.1", "--port", "0"]
        environment = {**os.environ, "FAST_VLLM_ROOT": root}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        running.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{process.stdout.readline().split()[-1]}/v1"

    yield start
    for process in running:
        process.kill()
        process.communicate()


URL_SUITE = """
    import pytest

    @pytest.mark.gpucap(trace="trace.csv", endpoint="completions")
    def test_it(gpucap):
        assert gpucap.sample(concurrency=4, duration="3s").problems == ()
"""


@pytest.fixture
def behind_url(pytester: pytest.Pytester, serve: Callable[[str], str]) -> Callable[..., pytest.RunResult]:
    """Replays a trace against a server behind a URL, with a class of 5 GB/s to declare."""

    def start(root: str, *arguments: str) -> pytest.RunResult:
        classes = '[[gpu]]\nname = "card"\nnvml_names = ["Card"]\nbandwidth_gb_s = 5\n'
        pytester.path.joinpath("classes.toml").write_text(classes)
        rows = "".join(f"{second / 4},{32 + second % 64},{32 + second % 64}\n" for second in range(40))
        pytester.path.joinpath("trace.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
        pytester.makepyfile(test_url=URL_SUITE)
        return pytester.runpytest(f"--gpucap-url={serve(root)}", "--gpucap-gpu-file=classes.toml", *arguments)

    return start


def test_behind_a_url_the_share_is_of_the_class_that_is_declared(
    behind_url: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    result = behind_url("synthetic:tiny", "--gpu-class=card")
    result.assert_outcomes(passed=1)
    (found,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    assert found.workload.trace == "trace.csv"
    assert found.limit is not None
    assert 0 < found.limit.share < 1
    assert found.no_limit is None
    assert found.environment.gpu == "card, as declared: what is behind a URL cannot be seen"
    assert "req/s; GPU class as declared)" in " ".join(result.stdout.str().split())


def test_behind_a_url_nothing_above_the_limit_is_believed(behind_url: Callable[..., pytest.RunResult]) -> None:
    result = behind_url("synthetic:qwen2-1.5b", "--gpu-class=card")
    result.assert_outcomes(failed=1)
    said = " ".join(result.stdout.str().split())
    assert re.search(IMPOSSIBLE, said)
    assert "or it runs with arguments that vllm(...) does not name (quantization, speculation, more GPUs)" in said
