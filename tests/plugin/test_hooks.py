"""The hooks, by plugins outside the package: the one that the documentation shows, and some with mistakes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file

DOCUMENT = Path(__file__).parents[2] / "docs" / "hooks.md"
SERVER = Path(__file__).with_name("llama_server.py")
PLUGIN = ("-p", "llama_plugin")


@pytest.fixture
def documented(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The plugin of the documentation as a module, and something that answers as llama.cpp's server on PATH."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    [plugin] = [block for block in blocks if "def pytest_gpucap_engines" in block]
    pytester.makepyfile(llama_plugin=plugin)
    pytester.syspathinsert()
    program = pytester.mkdir("bin") / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return pytester


@pytest.mark.slow
def test_a_plugins_engine_preset_and_report_serve_a_whole_check(
    documented: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This server measures nothing, so it need not wait for the machine's processor.
    monkeypatch.setattr("pytest_gpucap.gpu.lease.MACHINE_DIRECTORY", documented.path / "locks")
    documented.makepyfile(
        test_suite="""
        import pytest

        pytestmark = pytest.mark.engine("llama.cpp", model="/models/qwen3.gguf", parallel=64)

        @pytest.mark.engine("llama.cpp", ctx_size=65536)
        @pytest.mark.gpucap(qps=1, gpus=1, workload="support", input_tokens=64, endpoint="completions", e2e_p95="30s")
        @pytest.mark.gpucap(max_time="12s")
        def test_check(gpucap, vllm_server):
            assert vllm_server.client.models.list().data[0].id == vllm_server.model == "llama"
            assert vllm_server.metrics().value("llamacpp:requests_processing") == 0
            assert vllm_server.log.path.is_file()
            gpucap.check()
        """
    )
    result = documented.runpytest(*PLUGIN, "--gpu-class=cpu", "--gpucap-inconclusive=pass")
    result.assert_outcomes(passed=1)
    (found,) = result_file.read(documented.path / ".gpucap" / "result.json").results
    assert found.workload.preset == "support"
    assert found.environment.server == "llama.cpp"
    assert "--ctx-size 65536" in (found.environment.command or "")
    assert "--parallel 64" in (found.environment.command or "")
    assert found.telemetry is not None
    assert (found.telemetry.server.running or 0) > 0
    assert found.no_limit is not None
    assert f"test_suite.py::test_check: {found.outcome}" in result.stderr.str()


def test_a_plugins_gpu_class_is_known(documented: pytest.Pytester, no_gpu: None) -> None:
    documented.makepyfile("def test_it(gpucap): gpucap.check()")
    without = documented.runpytest("--gpu-class=desk-card")
    without.stderr.fnmatch_lines(["ERROR: --gpu-class: GPU class 'desk-card' is not known*"])
    result = documented.runpytest(*PLUGIN, "--gpu-class=desk-card", "--gpucap-model=synthetic:tiny")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gpu-class: *desk-card*"])
    result.stderr.no_fnmatch_line("*not known*")


def test_every_result_and_then_the_whole_file_are_reported_even_past_a_reporter_that_fails(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(
        """
        def pytest_gpucap_result(config, result):
            print("one:", result.test, result.kind)
            if result.test.endswith("test_one"):
                raise OSError("the board is down")

        def pytest_gpucap_results(config, results):
            print("all:", *(each.test for each in results.results))
        """
    )
    pytester.makepyfile(
        test_suite="""
        def test_one(gpucap):
            gpucap.sample(rate=5, duration="5s")

        def test_two(gpucap):
            gpucap.sample(rate=5, duration="5s")
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast", "-s")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*one: test_suite.py::test_one sample",
            "*one: test_suite.py::test_two sample",
            "all: test_suite.py::test_one test_suite.py::test_two",
            "pytest_gpucap_result failed: OSError: the board is down",
        ]
    )


@pytest.mark.parametrize(
    ("hook", "answer", "said"),
    [
        ("engines", "42", "must return a list of Engine classes, not 42"),
        ("engines", "[int]", "<class 'int'> is not a subclass of pytest_gpucap.Engine"),
        ("engines", "[type('Idle', (gpucap.Engine,), {'name': 'idle'})]", "engine Idle has no start"),
        ("engines", "[type('Other', (gpucap.Engine,), {'start': id})]", 'engine Other needs a name = "..."'),
        (
            "engines",
            "[type('O', (gpucap.Engine,), {'start': id, 'name': 'vllm'})]",
            "engine 'vllm' exists already",
        ),
        ("workload_presets", "['chat']", "must return presets by name, not ['chat']"),
        ("workload_presets", "{'chat': {}}", "workload preset 'chat' exists already"),
        ("workload_presets", "{'mine': 3}", "'mine' must be a mapping of keywords, not 3"),
        ("gpu_classes", "['h200']", "'h200' is not a pytest_gpucap.GpuClass"),
        ("gpu_classes", "[gpucap.GpuClass('H200')]", "GPU class 'H200' exists already: h200"),
    ],
)
def test_a_mistake_in_an_answer_is_one_line_that_names_the_plugin(
    pytester: pytest.Pytester, hook: str, answer: str, said: str
) -> None:
    pytester.makepyfile(
        faulty=f"import pytest_gpucap as gpucap\n\n\ndef pytest_gpucap_{hook}(config):\n    return {answer}\n"
    )
    pytester.syspathinsert()
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest("-p", "faulty")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().strip() == f"ERROR: pytest_gpucap_{hook} of plugin faulty: {said}"


@pytest.mark.parametrize(
    ("markers", "said"),
    [
        (
            'engine("lama.cpp")',
            "engine('lama.cpp'): there is no such engine; did you mean llama.cpp or *",
        ),
        ('engine("url")', "engine('url'): there is no such engine; there are vllm, llama.cpp, sglang, *"),
        ('engine(model="m")', "engine(...) needs the name of an engine: *"),
        ('engine("llama.cpp")', 'engine("llama.cpp") needs llama-server on PATH and model="FILE.gguf"'),
        ('engine("vllm", model="m", port=1)', "*port cannot be set*"),
        ('vllm("m")\n@pytest.mark.engine("llama.cpp")', "vllm(...) is short for engine(*: mark a test with one *"),
    ],
)
def test_a_marker_that_cannot_be_meant_is_one_line(documented: pytest.Pytester, markers: str, said: str) -> None:
    suite = f"import pytest\n\n@pytest.mark.{markers}\ndef test_it(vllm_server): pass\n"
    documented.path.joinpath("test_suite.py").write_text(suite)
    result = documented.runpytest(*PLUGIN, "--gpu-class=cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    [line] = result.stderr.str().strip().splitlines()
    result.stderr.fnmatch_lines([f"ERROR: test_suite.py:*: {said.replace('[', '[[]')}"])
    assert line.count("test_suite.py") == 1


def test_what_a_marker_says_of_another_engine_does_not_reach_the_closest_ones(documented: pytest.Pytester) -> None:
    documented.makepyfile(
        test_suite="""
        import pytest

        pytestmark = pytest.mark.engine("vllm", model="m", max_model_len=512)

        @pytest.mark.engine("llama.cpp", parallel=2)
        def test_it(vllm_server): pass
        """
    )
    result = documented.runpytest(*PLUGIN, "--gpu-class=cpu")
    result.stderr.fnmatch_lines(['*needs llama-server on PATH and model="FILE.gguf"'])


def test_the_engine_marker_names_vllm_as_its_shorthand_does(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.engine("vllm", model="synthetic:tiny", tensor_parallel_size=2)
        @pytest.mark.gpucap(qps=1, gpus=1)
        def test_it(gpucap): gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*gpus=1 cannot hold one replica: * takes 2 GPUs"])
