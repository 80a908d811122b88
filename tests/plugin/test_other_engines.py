"""Whole runs with engines beside vLLM: llama.cpp and transformers serve for real, and a server that a command names."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import ResultKind
from tests.conftest import REPOSITORY

SHORT = """
    from pytest_gpucap.load import self_check
    from pytest_gpucap.measure import constants

    constants.WARM_UP_S = constants.SEARCH_HOLD_S = constants.OPEN_S = 3.0
    constants.MEASURE_CYCLES = constants.LEAST_MEASURE_CYCLES = 1
    self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.STOPPED_S = 1e6
"""
"""What is measured here shows in short phases too, however busy the machine is."""

SUITE = """
    import pytest

    workload = pytest.mark.gpucap(input_tokens=64, output_tokens=8, name="answers")

    @workload
    @pytest.mark.engine("llama.cpp", model="synthetic:tiny", program={llama!r}, parallel=4, threads=1)
    def test_llama_cpp(gpucap, vllm_server):
        before = vllm_server.metrics()
        window = gpucap.sample(rate=2, duration="3s")
        # An answer with fewer tokens than were asked for would be an error.
        assert window.errors == {{}}
        told = vllm_server.capabilities()
        assert (told.max_num_seqs, told.kv_tokens, told.max_model_len) == (4, 32768, 8192)
        assert vllm_server.metrics().value("llamacpp:tokens_predicted_total") > before.value(
            "llamacpp:tokens_predicted_total")

    @workload
    @pytest.mark.engine("transformers", model="synthetic:tiny", python={python!r}, dtype="float32")
    def test_transformers(gpucap, vllm_server):
        window = gpucap.sample(rate=1, duration="3s")
        assert window.errors == {{}}
        assert vllm_server.capabilities().max_num_seqs == 1

    @workload
    @pytest.mark.engine("llama-cpp-python", model="synthetic:tiny", python={python!r}, n_threads=1, n_ctx=2048)
    def test_llama_cpp_python(gpucap, vllm_server):
        window = gpucap.sample(rate=1, duration="3s")
        assert window.errors == {{}}
        with pytest.raises(Exception, match="401|Invalid API key"):
            vllm_server.client.with_options(api_key="no").chat.completions.create(
                model=vllm_server.model, messages=[{{"role": "user", "content": "hello"}}], max_tokens=1)
"""


@pytest.fixture(scope="session")
def engines_python() -> str:
    """An interpreter with Transformers, Accelerate and llama.cpp's Python bindings."""
    python = Path(os.environ.get("GPUCAP_TEST_ENGINES_PYTHON") or REPOSITORY / ".venv-engines" / "bin" / "python")
    if not python.exists():
        pytest.skip(f"no other engines: {python} is missing; `make engines` makes it")
    return str(python)


@pytest.fixture(scope="session")
def llama_server() -> str:
    """llama.cpp's own server."""
    program = Path(
        os.environ.get("GPUCAP_TEST_LLAMA_SERVER") or REPOSITORY / ".venv-engines" / "llama" / "llama-server"
    )
    if not program.exists():
        pytest.skip(f"no llama.cpp: {program} is missing; `make engines` makes it")
    return str(program)


@pytest.mark.other_engines
@pytest.mark.slow
def test_other_engines_are_measured_for_real(pytester: pytest.Pytester, engines_python: str, llama_server: str) -> None:
    pytester.makepyfile(test_suite=SUITE.format(python=engines_python, llama=llama_server))
    pytester.makeconftest(SHORT)
    result = pytester.runpytest_subprocess("--gpu-class=cpu", "--gpucap-host-check=warn", "-v", "-Werror")
    result.assert_outcomes(passed=3)
    found = {each.environment.engine: each for each in result_file.read(pytester.path / ".gpucap/result.json").results}
    assert set(found) == {"llama.cpp", "transformers", "llama-cpp-python"}
    for each in found.values():
        assert each.environment.model == "synthetic:tiny"
        assert each.workload.ignore_eos
    assert "metrics" in found["transformers"].environment.not_told
    assert "metrics" not in found["llama.cpp"].environment.not_told
    assert found["transformers"].environment.server_args == {"dtype": "float32"}
    assert (found["transformers"].environment.server or "").startswith("transformers serve ")
    assert (found["llama-cpp-python"].environment.server or "").startswith("llama-cpp-python ")


COMMANDED = """
    import pytest

    pytestmark = pytest.mark.gpucap(input_tokens=64, output_tokens=8)

    @pytest.mark.engine("mine", model="a model", command={command!r})
    def test_commanded(gpucap, vllm_server):
        assert vllm_server.model == "a model"
        window = gpucap.sample(rate=5, duration="2s")
        assert window.errors == {{}}
"""

SERVER = """
import asyncio, sys
from pytest_gpucap.simulator import profile, web

class Connection(web.ClientConnection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._model = sys.argv[2]

    def _routes(self):
        left = {route: answer for route, answer in super()._routes().items()
                if route[1] in {"/v1/models", "/v1/chat/completions"}}
        return left

web.ClientConnection = Connection
asyncio.run(web.serve(profile.load("fast"), "127.0.0.1", int(sys.argv[1]), 0, lambda port: None))
"""
"""A server with a list of models and chats, and nothing else: no health check, metrics, version or tokenizer."""


DOCUMENTED = """
    import pytest

    @pytest.mark.engine("acme", model="m", max_seqs=8, max_seq_len=4096)
    @pytest.mark.gpucap(input_tokens=64, output_tokens=8)
    def test_acme(gpucap, vllm_server):
        told = vllm_server.capabilities()
        assert (told.max_num_seqs, told.max_model_len) == (8, 4096)
        assert gpucap.sample(rate=5, duration="2s").errors == {}
"""


@pytest.mark.slow
def test_the_engine_that_the_documentation_adds_is_measured(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This server measures nothing, so it need not wait for the machine's processor.
    monkeypatch.setattr("pytest_gpucap.gpu.lease.MACHINE_DIRECTORY", pytester.path / "locks")
    text = (REPOSITORY / "docs" / "engines.md").read_text(encoding="utf-8")
    [plugin] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ProgramEngine" in block]
    assert len(plugin.splitlines()) <= 40
    pytester.makepyfile(acme_plugin=plugin, test_suite=DOCUMENTED)
    pytester.syspathinsert()
    pytester.makeconftest(SHORT)
    server = pytester.makefile(".py", server=SERVER)
    program = pytester.mkdir("bin") / "acme-serve"
    # Of its words, the model is the second and the port the sixth.
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {server} "$6" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    result = pytester.runpytest("-p", "acme_plugin", "--gpu-class=cpu", "--gpucap-host-check=off")
    result.assert_outcomes(passed=1)
    (found,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    words = (found.environment.command or "").split()[1:]
    assert words[:4] == ["--model-id", "m", "--host", "127.0.0.1"]
    assert words[6:] == ["--log-requests", "off", "--max-seqs", "8", "--max-seq-len", "4096"]
    # The engine cannot be asked for answers of an exact length, so they end where the model ends them.
    assert not found.workload.ignore_eos
    assert "answers of an exact length" in found.environment.not_told
    assert "requests at once" not in found.environment.not_told


@pytest.mark.slow
def test_a_server_that_only_its_command_names_is_started_and_measured(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This server measures nothing, so it need not wait for the machine's processor.
    monkeypatch.setattr("pytest_gpucap.gpu.lease.MACHINE_DIRECTORY", pytester.path / "locks")
    server = pytester.makefile(".py", server=SERVER)
    wrapper = pytester.path / "wrapped"
    wrapper.write_text(f'#!/bin/sh\n{sys.executable} {server} "$@" &\nwait\n')  # its child listens
    wrapper.chmod(0o755)
    pytester.makepyfile(test_suite=COMMANDED.format(command=f"{wrapper} {{port}} {{model}}"))
    pytester.makeconftest(SHORT)
    result = pytester.runpytest("--gpu-class=cpu", "--gpucap-host-check=off")
    result.assert_outcomes(passed=1)
    (found,) = result_file.read(pytester.path / ".gpucap" / "result.json").results
    assert found.kind is ResultKind.SAMPLE
    assert (found.environment.engine, found.environment.model) == ("mine", "a model")
    assert (found.environment.server_args or {}).keys() == {"command"}
    assert found.environment.not_told == ("metrics", "requests at once", "KV cache size", "emptying its caches")


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('engine("sglan", model="m")', "engine('sglan'): there is no such engine; did you mean sglang?; any other *"),
        ('engine("mine", model="m", command="x")', "mine: command= must say where the port goes: *"),
        ('engine("mine", model="m", command=3)', "mine: command must be a text in one line, not 3"),
        ('engine("sglang", model="m", tp_size="many")', "sglang: tp_size must be a number, not 'many'"),
        ('engine("llama.cpp", model="m", program="/no/llama")', "llama.cpp: there is no program '/no/llama': *"),
        ('engine("mine", command="x {port}", gpus_per_replica=2)\n@pytest.mark.gpucap(gpus=1)', "gpus=1 cannot hold*"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(pytester: pytest.Pytester, marker: str, said: str) -> None:
    suite = f"import pytest\n\n@pytest.mark.{marker}\ndef test_it(gpucap): gpucap.sweep()\n"
    pytester.path.joinpath("test_suite.py").write_text(suite)
    result = pytester.runpytest("--gpu-class=cpu")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: test_suite.py:*: {said}"])
    assert len(result.stderr.str().strip().splitlines()) == 1


def test_a_simulation_takes_no_arguments_of_another_engine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.engine("sglang", model="m", tp_size=1)
        @pytest.mark.gpucap(qps=1, gpus=1)
        def test_it(gpucap): gpucap.check()
        """
    )
    result = pytester.runpytest("--gpu-class=sim:fast")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*engine('sglang', tp_size=1): sim:fast simulates a vLLM, without this"])
