"""The real vLLM on the CPU: what it accepts, what it tells, how its failures read."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from pytest_gpucap.engines.errors import EndpointError, ServerStartError
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.url import attach
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.load.protocol import Progress, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import closed_loop
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.vllm_arguments import VllmArguments
from tests.engines.server_family import Family
from tests.waiting import FOREVER_S, until

pytestmark = [pytest.mark.vllm_cpu, pytest.mark.slow]


def ask(server: VllmServer, content: str, tokens: int) -> tuple[int, int]:
    """Prompt and completion tokens as the server counted them."""
    reply = server.client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": content}],
        max_tokens=tokens,
        extra_body={"ignore_eos": True},
    )
    assert reply.usage is not None
    return reply.usage.prompt_tokens, reply.usage.completion_tokens


def test_it_tells_what_it_is(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    assert server.running
    assert server.version is not None
    assert server.version[0].isdigit()
    assert server.max_num_seqs == 64
    # 128 MiB over 2 (key, value) x 2 layers x 2 heads x 32 wide x 4 bytes
    assert server.kv_tokens == 128 * 2**20 // (2 * 2 * 2 * 32 * 4)
    assert "Application startup complete" in server.log.text()


def test_a_prompt_has_one_token_a_byte_and_chat_adds_none(vllm_cpu_server: VllmServer) -> None:
    for content in ["x", "Hello, world", "two\nlines and a ä", "a" * 1000]:
        assert ask(vllm_cpu_server, content, 3) == (len(content.encode()), 3)


def test_a_stream_brings_every_token_its_own_event(vllm_cpu_server: VllmServer) -> None:
    # A busy machine sends tokens together that wait for each other, so one of many streams suffices; and a few ids are
    # bytes that only join into text.
    until(lambda: pieces(vllm_cpu_server, 50) >= 40)


def pieces(server: VllmServer, tokens: int) -> int:
    """Events with text that an answer of so many tokens comes in."""
    stream = server.client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == tokens
    return sum(1 for chunk in chunks for choice in chunk.choices if choice.delta.content)


def test_its_own_counters_agree_with_what_was_asked(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    before = server.metrics()
    counted = [ask(server, f"{number} of some", 5 + number) for number in range(4)]
    after = server.metrics()

    def grown(name: str) -> float:
        return after.value(name) - before.value(name)

    assert grown("vllm:prompt_tokens_total") == sum(prompt for prompt, _ in counted)
    assert grown("vllm:generation_tokens_total") == sum(completion for _, completion in counted)
    assert grown("vllm:request_success_total") == len(counted)


def test_caches_can_be_emptied(vllm_cpu_server: VllmServer) -> None:
    server = vllm_cpu_server
    content = "the same long prompt " * 40

    def hits() -> float:
        return server.metrics().value("vllm:prefix_cache_hits_total")

    ask(server, content, 1)
    before = hits()
    ask(server, content, 1)
    assert hits() > before
    assert server.reset_caches() is True
    before = hits()
    ask(server, content, 1)
    assert hits() == before


def test_it_listens_on_loopback_only_and_wants_its_key(
    vllm_cpu_server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = vllm_cpu_server
    addresses = set()
    for pid in server.pids():
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                addresses.add(connection.laddr.ip)
    assert addresses == {"127.0.0.1"}
    key = f"{server.api_key}"
    for pid in server.pids():
        process = psutil.Process(pid)
        assert key not in " ".join((*process.cmdline(), *process.environ().values()))
    assert key not in server.log.path.read_text()
    monkeypatch.setenv("SOME_KEY", "wrong")
    with pytest.raises(EndpointError, match=r"401 Unauthorized; the key is read from \$SOME_KEY"):
        attach(server.root_url, api_key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", key)
    assert attach(server.root_url, api_key_env="SOME_KEY").model == server.model


GUARDED = (
    *("/v1/models", "/server_info", "/metrics", "/health", "/docs", "/openapi.json", "/version", "/ping", "/load"),
    *("POST /invocations", "POST /pause", "POST /collective_rpc", "POST /tokenize", "POST /reset_prefix_cache"),
    *("POST /v1/chat/completions", "POST /no/such/path", "OPTIONS /v1/models", "OPTIONS /pause", "PUT /sleep"),
    *("//v1/models", "/%76ersion", "/v1/../version"),
)


@pytest.fixture(params=["vllm_cpu_server", "sized"])
def any_server(request: pytest.FixtureRequest) -> VllmServer:
    """A server with one front end, and one with two."""
    found: VllmServer = request.getfixturevalue(request.param)
    return found


def test_every_path_wants_the_key(any_server: VllmServer) -> None:
    server = any_server
    told = json.loads(server.request("/openapi.json"))["paths"]
    every = [f"{method.upper()} {path}" for path, methods in told.items() for method in methods]
    assert len(every) > 20
    key = f"{server.api_key}"
    for asked in (*GUARDED, *every):
        method, _, path = asked.rpartition(" ")
        for sent in ([], ["Bearer wrong"], [key], ["Bearer "], [f"Bearer {key}x"], [f"Basic {key}"]):
            assert answered(server, method or "GET", path, sent) == 401, (asked, len(sent))
    for path in ("/v1/models", "/server_info", "/metrics", "/health", "/docs", "/version"):
        assert answered(server, "GET", path, [f"Bearer {key}"]) == 200
    assert answered(server, "POST", "/reset_prefix_cache", [f"Bearer {key}"]) == 200
    tokenized = json.dumps({"model": server.model, "prompt": "x"}).encode()
    assert answered(server, "POST", "/tokenize", [f"Bearer {key}"], tokenized) == 200
    assert answered(server, "POST", "/invocations", [f"Bearer {key}"], tokenized) not in {401, 404}
    assert answered(server, "GET", "/version", [f"Bearer {key}", "Bearer wrong"]) == 401
    # What a handshake of a WebSocket asks for: the server closes it before it is one.
    assert answered(server, "GET", "/v1/realtime", [], upgrade="websocket") in {401, 403}


SYSTEM_PYTHON = "/usr/bin/python3"
"""One that every user may run."""
NOBODY = 65534
STRANGER = """
import http.client, json, os, pathlib, sys
address, *asked = json.load(sys.stdin)
answers = []
for each in asked:
    method, _, path = each.rpartition(" ")
    connection = http.client.HTTPConnection(address)
    connection.request(method or "GET", path, b"{}", {"Content-Type": "application/json"})
    answers.append(connection.getresponse().status)
    connection.close()
seen = []
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    for name in ("cmdline", "environ"):
        try:
            seen.append((folder / name).read_bytes().decode(errors="replace"))
        except OSError:
            pass
print(json.dumps({"uid": os.getuid(), "answers": answers, "seen": seen}))
"""


def test_another_user_of_the_machine_is_let_in_nowhere(any_server: VllmServer) -> None:
    if os.getuid():
        pytest.skip("only root can be another user")
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"there is no {SYSTEM_PYTHON}")
    found = json.loads(
        subprocess.run(
            [SYSTEM_PYTHON, "-c", STRANGER],
            input=json.dumps([urlsplit(any_server.base_url).netloc, *GUARDED]),
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert found["uid"] == NOBODY
    assert found["answers"] == [401] * len(GUARDED)
    assert any("vllm_serve" in each for each in found["seen"])  # command lines are everybody's
    assert not any(f"{any_server.api_key}" in each for each in found["seen"])


def answered(
    server: VllmServer, method: str, path: str, authorization: list[str], body: bytes = b"{}", upgrade: str = ""
) -> int:
    """The status of the answer to a request that carries these headers."""
    connection = http.client.HTTPConnection(urlsplit(server.base_url).netloc)
    try:
        connection.putrequest(method, path)
        for value in authorization:
            connection.putheader("Authorization", value)
        if upgrade:
            for name, value in {
                "Connection": "Upgrade",
                "Upgrade": upgrade,
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }.items():
                connection.putheader(name, value)
        elif method != "GET":
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if upgrade or method == "GET" else body)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def sized(vllm_python: str, tmp_path_factory: pytest.TempPathFactory, shared_family: Family) -> Iterator[VllmServer]:
    """The command of the sizing guide, less the AWQ build, which needs a GPU, and a file of arguments with a key."""
    folder = tmp_path_factory.mktemp("sized")
    (folder / "arguments.yaml").write_text("api-key: words-of-the-users-own\n")
    spec = ServerSpec(
        "synthetic:tiny",
        args=VllmArguments(
            {
                "tensor_parallel_size": 1,
                "dtype": "auto",
                "max_model_len": 4096,
                "gpu_memory_utilization": 0.8,
                "enforce_eager": True,
                "enable_prefix_caching": True,
                # Beyond the guide: a mapping, a list, a switch turned off, one left out.
                "override_generation_config": {"temperature": 0.6},
                "cudagraph_capture_sizes": [1, 2],
                "enable_log_requests": False,
                "quantization": None,
                "stream_interval": 8,
                "api_server_count": 2,
                "config": str(folder / "arguments.yaml"),
            }
        ),
        python=vllm_python,
        env=shared_family.env,
        log_dir=folder / "logs",
    )
    with start_vllm(spec) as server:
        yield server
    assert shared_family.alive() == []


def test_the_flags_of_the_sizing_guide_are_taken(sized: VllmServer) -> None:
    given = next(line for line in sized.log.text().splitlines() if "non-default args" in line)
    for part in ["'max_model_len': 4096", "'gpu_memory_utilization': 0.8", "'enforce_eager': True"]:
        assert part in given
    assert "'enable_prefix_caching': True" in given
    assert "'cudagraph_capture_sizes': [1, 2]" in given
    assert "'override_generation_config': {'temperature': 0.6}" in given
    config = sized.metrics().find("vllm:cache_config_info")[0].labels
    assert config["enable_prefix_caching"] == "True"
    assert config["gpu_memory_utilization"] == "0.8"
    assert ask(sized, "Hello", 3) == (5, 3)


def test_no_file_of_a_server_has_its_key(vllm_cpu_server: VllmServer, sized: VllmServer, vllm_cache: Path) -> None:
    # The cache, too, where the first of both had to write.
    folders = (vllm_cache, sized.log.path.parents[1], vllm_cpu_server.log.path.parent)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".log"}
    for server in (vllm_cpu_server, sized):
        assert not [path for path in files if f"{server.api_key}".encode() in path.read_bytes()]


FACTORS = """
import json, os, sys
from vllm import envs
for environment in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environment)
    print(json.dumps({name: repr(read()) for name, read in envs.environment_variables.items()}))
"""
"""All that vLLM up to 0.26 makes a part of the key of its compile cache; later versions leave some out."""
RANDOM = "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME"
"""No part of a key: vLLM draws it anew in every process."""


def test_two_servers_give_the_compile_cache_the_same_key(
    vllm_python: str, vllm_cpu_server: VllmServer, sized: VllmServer, tmp_path: Path
) -> None:
    servers = (vllm_cpu_server, sized)
    alike = {"VLLM_CACHE_ROOT": str(tmp_path)}
    mains = [min(map(psutil.Process, each.pids()), key=psutil.Process.create_time) for each in servers]
    environments = [each.environ() | alike for each in mains]
    told = subprocess.check_output([vllm_python, "-c", FACTORS], input=json.dumps(environments), text=True)
    assert not [each for each in servers if f"{each.api_key}" in told]
    one, other = (json.loads(line) for line in told.splitlines()[-2:])
    assert one["VLLM_API_KEY"] == "None"
    one[RANDOM] = other[RANDOM] = ""
    assert one == other


def test_two_front_ends_take_requests(sized: VllmServer) -> None:
    assert len(sized.front_ends()) == sized.facts()["front_ends"] == 2
    # Each says which of the two it is; connections are spread over both.
    ranks: set[int] = set()

    def both() -> bool:
        ranks.add(rank_of(sized))
        return ranks == {0, 1}

    until(both)
    # As above, with numbers of 2 bytes, and counted once.
    assert sized.kv_tokens == 128 * 2**20 // (2 * 2 * 2 * 32 * 2)
    assert sized.reset_caches() is True


def rank_of(server: VllmServer) -> int:
    """Which front end answers now."""
    told = json.loads(server.request("/server_info?config_format=json"))
    return int(told["vllm_config"]["parallel_config"]["_api_process_rank"])


def test_one_front_end_if_none_are_asked_for(vllm_cpu_server: VllmServer) -> None:
    assert len(vllm_cpu_server.front_ends()) == vllm_cpu_server.facts()["front_ends"] == 1


@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
def test_tokens_under_way_are_counted_where_an_event_holds_several(sized: VllmServer, endpoint: ApiKind) -> None:
    def generated() -> float:
        return sized.metrics().value("vllm:generation_tokens_total")

    workload = Workload(Length.fixed(64), Length.fixed(512), endpoint=endpoint)
    with HttpLoadRunner(sized.base_url, sized.model, f"{sized.api_key}", workload, 5, workers=1) as runner:
        runner.prepare()
        begun = generated()

        def in_the_middle(progress: Progress) -> bool:
            """An answer has ended, and of the others much has come."""
            return progress.completed > 0 and generated() - begun > 8 * 128

        whole_before = came_before = 0
        for stream in range(10):
            begun = generated()
            span = runner.run(closed_loop(workload, 8, 600.0, 20.0, 5, stream), in_the_middle)
            assert runner.settle(FOREVER_S, cancel=True)
            until(lambda: sized.metrics().value("vllm:num_requests_running") == 0)
            journal, told = runner.journal(), generated() - begun
            whole = journal.counted_output_tokens.sum() - whole_before
            came = journal.tokens.sum() - came_before
            # Else the phase ended where hardly a token was under way, or the server went on: on a busy machine.
            if told - whole > 512 and 0.8 * (told - whole) < came - whole:
                break
            whole_before, came_before = whole_before + whole, came_before + came
    # All that were under way, and those that followed while the worker had not heard yet that the phase is over.
    assert 8 <= (journal.end_s >= span.end_s).sum() <= 16
    assert (journal.status == Status.CANCELLED).any()
    assert whole > 0
    # The server is up to one event ahead in every answer.
    assert 0.8 * (told - whole) < came - whole < 1.1 * (told - whole)


@pytest.mark.parametrize(
    ("model", "args", "cause"),
    [
        ("/no/such/model", {}, "the model was not found; "),
        (
            "synthetic:tiny",
            {"max_model_len": 8192, "kv_cache_memory_bytes": 4 * 2**20},
            "the KV cache is too small for max_model_len 8192: 0.01 GiB needed, ",
        ),
    ],
)
def test_a_failed_start_names_its_cause(
    vllm_python: str, tmp_path: Path, family: Family, model: str, args: dict[str, int], cause: str
) -> None:
    with pytest.raises(ServerStartError) as caught:
        start_vllm(ServerSpec(model, args=VllmArguments(args), python=vllm_python, env=family.env, log_dir=tmp_path))
    assert caught.value.cause.startswith(cause)
    assert 0 < len(caught.value.log_tail.splitlines()) <= 30
    assert "nanobind" not in caught.value.log_tail
    assert caught.value.log_path is not None
    assert caught.value.log_path.exists()
    assert family.alive() == []
