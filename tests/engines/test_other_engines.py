"""Engines beside vLLM, without the real programs: how they are called, and what their documented pages tell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_gpucap.engines.errors import ServerStartError
from pytest_gpucap.engines.launch import LaunchedServer
from pytest_gpucap.engines.program import ProgramEngine, ProgramServer
from pytest_gpucap.engines.protocol import ServerRequest, ServingIdentity
from pytest_gpucap.engines.shipped import SHIPPED, commanded, shipped

DOCUMENTED = Path(__file__).with_name("documented_server.py")
KNOWN = ServingIdentity(name="gpucap-m", api_key="k")  # type: ignore[arg-type]  # no secret is shown here


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with programs of the names that engines call, and the package of SGLang."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in {
        "llama-server": "exit 3",
        "trtllm-serve": f'exec {sys.executable} {DOCUMENTED} tensorrt-llm "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{words}\n")
        (folder / name).chmod(0o755)
    package = tmp_path / "packages" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(
        f"import os, sys\nos.execv(sys.executable, [sys.executable, {str(DOCUMENTED)!r}, 'sglang', *sys.argv[1:]])\n"
    )
    paths = [str(package.parent), str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def engine(name: str, model: str | None = "/models/m", **arguments: Any) -> ProgramEngine:
    kind = shipped(name) or commanded(name)
    made = kind(ServerRequest(model=model, arguments=arguments, python=sys.executable, startup_timeout_s=300.0))
    assert isinstance(made, ProgramEngine)
    return made


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "sglang",
            {"tp_size": 2, "mem_fraction_static": 0.8, "disable_radix_cache": True},
            [
                *(sys.executable, "-m", "sglang.launch_server", "--model-path", "/models/m", "--served-model-name"),
                *("gpucap-m", "--host", "127.0.0.1", "--port", "7", "--enable-metrics", "--tp-size", "2"),
                *("--mem-fraction-static", "0.8", "--disable-radix-cache"),
            ],
        ),
        (
            "tensorrt-llm",
            {"max_batch_size": 64, "config": "/my.yaml"},
            [
                *("BIN/trtllm-serve", "/models/m", "--host", "127.0.0.1", "--port", "7"),
                *("--max_batch_size", "64", "--config", "/my.yaml"),
            ],
        ),
        (
            "llama.cpp",
            {"ctx_size": 4096, "n_gpu_layers": -1},
            [
                *("BIN/llama-server", "--model", "/models/m", "--alias", "gpucap-m", "--host", "127.0.0.1"),
                *("--port", "7", "--metrics", "--ctx-size", "4096", "--n-gpu-layers=-1"),
            ],
        ),
        (
            "llama-cpp-python",
            {"n_ctx": 4096, "offload_kqv": False},
            [
                *(sys.executable, "-m", "llama_cpp.server", "--model", "/models/m", "--model_alias", "gpucap-m"),
                *("--host", "127.0.0.1", "--port", "7", "--interrupt_requests", "false", "--n_ctx", "4096"),
                *("--offload_kqv", "false"),
            ],
        ),
        (
            "transformers",
            {"dtype": "float32", "compile": True},
            [
                *(sys.executable, "-m", "transformers.cli.transformers", "serve", "/models/m", "--host", "127.0.0.1"),
                *("--port", "7", "--dtype", "float32", "--compile"),
            ],
        ),
    ],
)
def test_an_engine_is_called_as_it_documents(
    programs: Path, name: str, arguments: dict[str, Any], words: list[str]
) -> None:
    found = engine(name, **arguments).command("/models/m", KNOWN, 7)
    assert found == [word.replace("BIN", str(programs)) for word in words]


def test_every_shipped_engine_is_tried_here() -> None:
    [mark] = test_an_engine_is_called_as_it_documents.pytestmark
    assert {name for name, _, _ in mark.args[1]} == set(SHIPPED)


@pytest.mark.parametrize(
    ("name", "arguments", "gpus"),
    [
        ("sglang", {"tp": 2, "dp_size": 3}, 6),
        ("sglang", {"tensor-parallel-size": 8, "dp_size": 8, "enable_dp_attention": True}, 8),
        ("tensorrt-llm", {"tp_size": 2, "pipeline_parallel_size": 2}, 4),
        ("llama.cpp", {}, 1),
        ("transformers", {"gpus_per_replica": 2}, 2),
        ("mine", {"gpus_per_replica": 4, "command": "x {port}"}, 4),
    ],
)
def test_the_gpus_of_a_server_follow_from_its_arguments(name: str, arguments: dict[str, Any], gpus: int) -> None:
    kind = shipped(name) or commanded(name)
    assert kind.gpus_per_replica(arguments) == gpus


@pytest.mark.parametrize(
    ("name", "model", "arguments", "said"),
    [
        ("sglang", None, {}, 'engine("sglang"): no model is named'),
        ("sglang", "m", {"port": 1}, "sglang: port cannot be set: the plugin chooses a free port"),
        ("sglang", "m", {"program": "x"}, "sglang: it is started by Python: write python=, not program="),
        ("sglang", "m", {"python": "/no/python"}, "there is no program '/no/python': name the interpreter"),
        ("sglang", "m", {"python": 3}, "sglang: python must be a text in one line, not 3"),
        ("llama.cpp", "m", {"python": "x"}, "llama.cpp: it is a program of its own: write program=, not python="),
        ("llama.cpp", "m", {"program": "/no/llama"}, "there is no program '/no/llama': name its path with program="),
        ("llama.cpp", "m", {"alias": "x"}, "llama.cpp: alias cannot be set: every server gets a unique model name"),
        ("tensorrt-llm", "synthetic:tiny", {}, "engine tensorrt-llm has no synthetic models"),
        ("transformers", "synthetic:qwen3-30b-a3b", {}, "its weights cannot be written, so only vLLM"),
        ("transformers", "synthetic:tinny", {}, "unknown model 'synthetic:tinny' (did you mean synthetic:tiny?)"),
        ("mine", "m", {"command": "sh -c {model}"}, "command= must say where the port goes: write {port} into it"),
        ("mine", "m", {"command": "/no/x --port {port}"}, "there is no program '/no/x'"),
        ("mine", "m", {"command": "sh '{port}"}, "mine: command cannot be split into words: No closing quotation"),
        ("mine", "m", {"command": "sh {port}\n--x"}, "mine: command must be a text in one line"),
        ("mine", "m", {"command": "sh {port}", "top": 3}, "command= is the whole command: write top into it"),
        ("mine", "m", {"command": "sh {port}", "program": "x"}, "leave program= out"),
        ("mi ne", "m", {"command": "sh {port}"}, "engine('mi ne'): the name of an engine has letters, digits and"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    programs: Path, name: str, model: str | None, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is looked at below
        engine(name, model, **arguments)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_name_of_ones_own_is_that_of_the_server(programs: Path) -> None:
    words = engine("llama.cpp", served_name="chat").command("/models/m", KNOWN, 0)
    assert words[words.index("--alias") + 1] == "chat"


def test_placeholders_are_filled_word_by_word_and_no_shell_reads_them(programs: Path) -> None:
    made = engine(
        "mine", model="a model; rm -rf /", command="sh --at={host}:{port} {model} --json '{\"a\": 1}' '$HOME'"
    )
    [_, *words] = made.command("a model; rm -rf /", KNOWN, 7)
    assert words == ["--at=127.0.0.1:7", "a model; rm -rf /", "--json", '{"a": 1}', "$HOME"]


def test_a_base_differs_in_what_was_given_for_it(programs: Path) -> None:
    head = engine("llama.cpp", ctx_size=4096)
    pair = head.with_base("--ctx-size 8192 --flash-attn on", None)
    assert pair.head is head
    [change] = pair.changes()
    assert "--ctx-size 8192 --flash-attn on -> " in change
    assert pair.base.key != head.key
    with pytest.raises(ValueError, match=r"llama\.cpp does not run in Python"):
        head.with_base("", sys.executable)
    with pytest.raises(ValueError, match="'8192' follows no --argument"):
        head.with_base("8192", None)
    with pytest.raises(ValueError, match="is one command: it has no base"):
        engine("mine", command="sh {port}").with_base("--a 1", None)


def test_an_engine_without_a_key_serves_this_machine_alone(programs: Path) -> None:
    made = engine("sglang")
    elsewhere = made.with_request(replace(made.request, identity=ServingIdentity.new("m", "10.0.0.1")))
    with pytest.raises(ServerStartError, match="it asks for no key, so it may listen on this machine alone"):
        elsewhere.start((), print)


@pytest.fixture
def started(request: pytest.FixtureRequest, programs: Path, tmp_path: Path) -> Iterator[ProgramServer]:
    name, arguments = request.param
    made = engine(name, **arguments)
    made = made.with_request(replace(made.request, log_dir=tmp_path / "logs"))  # type: ignore[assignment]
    server = made.start((), lambda _: None)
    assert isinstance(server, LaunchedServer)
    try:
        yield server  # type: ignore[misc]
    finally:
        server.close()


@pytest.mark.parametrize("started", [("sglang", {"mem_fraction_static": 0.8})], indirect=True)
def test_sglangs_documented_pages_tell_its_limits_and_its_load(started: ProgramServer) -> None:
    known = started.capabilities()
    assert (known.max_num_seqs, known.kv_tokens, known.resets) == (32, 4096, True)
    assert started.model.startswith("gpucap-m-")
    assert started.facts()["server_args"] == {"mem_fraction_static": 0.8}
    page = started.metrics()
    for names in (known.metrics.running, known.metrics.waiting, known.metrics.kv_use):
        assert page.value(names[0]) == 0
    assert page.value(known.metrics.output_tokens[0]) > 0  # of the first answers
    assert started.reset_caches()


@pytest.mark.parametrize("started", [("tensorrt-llm", {"max_batch_size": 16, "max_seq_len": 2048})], indirect=True)
def test_tensorrt_llms_documented_pages_tell_its_limits_and_its_load(started: ProgramServer) -> None:
    known = started.capabilities()
    assert (known.max_num_seqs, known.kv_tokens, known.max_model_len) == (16, 32_000, 2048)
    # It has no name of ours: its list of models tells the one it has.
    assert started.model == "m"
    assert started.facts()["server"] == "TensorRT-LLM 1.3.0"
    page = started.metrics()
    assert page.value(known.metrics.output_tokens[0]) > 0
    assert page.value(known.metrics.prefix_queries[0]) > 0
    assert page.value(known.metrics.prefix_hits[0]) >= 0
    assert not started.reset_caches()


@pytest.mark.parametrize("started", [("tensorrt-llm", {})], indirect=True)
def test_tensorrt_llms_page_tells_how_many_requests_it_runs_at_once(started: ProgramServer) -> None:
    assert started.capabilities().max_num_seqs == 2048


SMALL = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def answer(self, text, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        if self.path != "/v1/models":
            return self.answer("", 404)
        self.answer(json.dumps({"data": [{"id": name} for name in sys.argv[2:]]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = ECHO
        if not body.get("stream"):
            return self.answer(json.dumps({"choices": [{}], "usage": {"completion_tokens": 4}}))
        said = body["messages"][0]["content"] if said else "hello"
        first = json.dumps({"choices": [{"delta": {"content": said}}]})
        last = json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]})
        self.answer(f"data: {first}\\n\\ndata: {last}\\n\\ndata: [DONE]\\n\\n")

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A server with the two endpoints that are needed."""


def small(folder: Path, models: str, *, echo: bool = False, **arguments: Any) -> ProgramEngine:
    program = folder / "small.py"
    program.write_text(SMALL.replace("ECHO", str(echo)))
    return engine("small", command=f"{sys.executable} {program} {{port}} {models}", **arguments)


def test_a_server_without_a_health_check_is_ready_when_it_answers(tmp_path: Path) -> None:
    made = small(tmp_path, "only")
    made = made.with_request(replace(made.request, log_dir=tmp_path))  # type: ignore[assignment]
    server = made.start((), lambda _: None)
    try:
        assert server.model == "only"
        assert server.version is None
        assert server.capabilities().max_num_seqs is None
    finally:
        server.close()


def test_the_name_of_one_of_several_models_is_given(tmp_path: Path) -> None:
    made = small(tmp_path, "one two", served_name="two")
    made = made.with_request(replace(made.request, log_dir=tmp_path))  # type: ignore[assignment]
    server = made.start((), lambda _: None)
    server.close()
    assert server.model == "two"


@pytest.mark.parametrize(
    ("models", "echo", "said"),
    [
        ("one two", False, "it lists 2 models: name the one that is meant with served_name="),
        ("only", True, "its streamed answers begin with the prompt"),
    ],
)
def test_a_server_whose_answers_cannot_be_measured_does_not_start(
    tmp_path: Path, models: str, echo: bool, said: str
) -> None:
    made = small(tmp_path, models, echo=echo)
    made = made.with_request(replace(made.request, log_dir=tmp_path))  # type: ignore[assignment]
    with pytest.raises(ServerStartError, match=said):
        made.start((), lambda _: None)
