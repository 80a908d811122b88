"""The simulated server over HTTP, against real clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pytest_gpucap import jit
from pytest_gpucap.load import schedule
from pytest_gpucap.load.protocol import Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.requirement import ApiKind, Length, Workload
from pytest_gpucap.simulator import engine
from pytest_gpucap.simulator import profile as profiles
from pytest_gpucap.simulator.live import LiveEngine
from pytest_gpucap.simulator.runner import SimRunner
from pytest_gpucap.simulator.serve import start_simulator
from pytest_gpucap.simulator.web import Answers, ClientConnection, serve
from tests.simulator.no_waits import without_waits
from tests.waiting import FOREVER_S, until


@pytest.fixture(scope="module")
def server() -> Any:
    with start_simulator("cpu_tiny") as server:
        yield server


def test_the_openai_client_gets_what_it_asked_for(server: Any) -> None:
    reply = server.client.completions.create(model=server.model, prompt="one two three", max_tokens=5)
    assert reply.usage.prompt_tokens == 3
    assert reply.usage.completion_tokens == 5
    stream = server.client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "hello there"}],
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(texts) == 4
    assert chunks[-1].usage.completion_tokens == 4


def test_it_says_simulated_everywhere(server: Any) -> None:
    for path in ("/version", "/metrics", "/v1/models"):
        with urllib.request.urlopen(server.root_url + path) as reply:
            assert b"SIMULATED" in reply.read()


def test_its_metrics_are_named_as_those_of_vllm(server: Any) -> None:
    server.client.completions.create(model=server.model, prompt="a b", max_tokens=3)
    metrics = server.metrics()
    for name in ("num_requests_running", "kv_cache_usage_perc"):
        assert metrics.find(f"vllm:{name}")
    text = urllib.request.urlopen(server.root_url + "/metrics").read().decode()
    generated = next(line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total"))
    assert float(generated.split()[-1]) >= 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{}", b"prompt"),
        (b'{"prompt": "a", "max_tokens": 0.5}', b"max_tokens"),
        (b'{"prompt": "a", "max_tokens": 99999999}', b"context length"),
        (b"{", b"Expecting"),
    ],
)
def test_bad_requests_are_answered_with_400(server: Any, body: Any, said: Any) -> None:
    request = urllib.request.Request(server.base_url + "/completions", data=body)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    with error.value as reply:
        assert reply.code == 400
        assert said in reply.read()


@pytest.mark.parametrize("endpoint", [ApiKind.CHAT, ApiKind.COMPLETIONS])
def test_the_load_generator_gets_exact_counts(server: Any, endpoint: Any) -> None:
    workload = Workload(Length.fixed(64), Length.parse("uniform:1-40", "o"), endpoint=endpoint)
    with HttpLoadRunner(server.base_url, server.model, "none", workload, 1, workers=1) as runner:
        span = runner.run(schedule.open_loop(workload, 30, 2.0, 1, 0))
        assert runner.settle(FOREVER_S)
        journal = runner.journal()
    assert span.end_row > 20
    assert (journal.status == Status.OK).all()
    assert np.array_equal(journal.counted_output_tokens, journal.output_tokens)
    assert np.array_equal(journal.counted_prompt_tokens, journal.prompt_tokens)


def test_a_client_that_leaves_frees_its_place(server: Any) -> None:
    workload = Workload(Length.fixed(64), Length.fixed(2000), endpoint=ApiKind.COMPLETIONS)
    with HttpLoadRunner(server.base_url, server.model, "none", workload, 1, workers=1) as runner:
        phase = schedule.closed_loop(workload, 16, 3600.0, 10, 1, 0, hot=False)
        runner.run(phase, lambda _: server.metrics().value("vllm:num_requests_running") > 0)
        assert runner.settle(FOREVER_S, cancel=True)
    until(lambda: server.metrics().value("vllm:num_requests_running") == 0)
    until(lambda: server.metrics().value("vllm:kv_cache_usage_perc") == 0)


CHOKED = """
[engine]
base_s = 0.02
per_seq_s = 0.00001
per_prompt_token_s = 0.000001
noise = 0.0
stall_per_s = 0.0
warm_extra = 0.0
front_token_s = 0.001
front_loss = 2.0
front_backlog_s = 0.3
[workload]
input_tokens = 16
output_tokens = 60
"""


class Client(asyncio.Transport):
    """One client of the server's protocol, without a socket: asks again as soon as it has been answered."""

    def __init__(self, server: ClientConnection, body: bytes) -> None:
        super().__init__()
        self._server = server
        self._request = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        self.tokens = 0
        server.connection_made(self)

    def ask(self) -> None:
        self._server.data_received(self._request)

    def write(self, data: Any) -> None:
        self.tokens += data.count(b'"text":')
        if b"[DONE]" in data:
            asyncio.get_running_loop().call_soon(self.ask)

    def is_closing(self) -> bool:
        return False


def rate_over_http(profile: profiles.Profile, concurrency: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Tokens a second that the HTTP server streams to so many clients, on the clock of an event loop without waits."""

    async def streamed() -> float:
        engine, answers = LiveEngine(profile.engine), Answers(1.0, 0)
        serving = asyncio.create_task(engine.serve())
        workload = profile.workload
        prompt, output = int(workload.input_tokens.mean), int(workload.output_tokens.mean)
        body = json.dumps({"prompt": "a " * prompt, "max_tokens": output, "stream": True}).encode()
        clients = [Client(ClientConnection(profile, engine, "m", answers), body) for _ in range(concurrency)]
        for client in clients:
            client.ask()
        await asyncio.sleep(3.0)
        before = sum(client.tokens for client in clients)
        await asyncio.sleep(3.0)
        serving.cancel()
        return (sum(client.tokens for client in clients) - before) / 3.0

    return without_waits(streamed, monkeypatch)


def test_a_front_end_chokes_over_http_as_in_virtual_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "choked.toml"
    file.write_text(CHOKED)
    profile = profiles.load(file)

    def rate(runner: SimRunner, concurrency: int) -> float:
        runner.run(schedule.closed_loop(profile.workload, concurrency, 3.0, 100, 1, 0, hot=False))
        span = runner.run(schedule.closed_loop(profile.workload, concurrency, 3.0, 100, 1, 1, hot=False))
        journal = runner.journal()
        edges = journal.bins_start_s + journal.bin_s * np.arange(journal.tokens.size)
        tokens = journal.tokens[(edges >= span.start_s) & (edges < span.end_s)].sum()
        return float(tokens / (span.end_s - span.start_s))

    over_http = [rate_over_http(profile, concurrency, monkeypatch) for concurrency in (16, 80)]
    in_virtual_time = [rate(SimRunner(profile.engine), concurrency) for concurrency in (16, 80)]
    assert over_http[1] < 0.85 * over_http[0]
    assert over_http == pytest.approx(in_virtual_time, rel=0.1)


def test_it_dies_with_its_parent() -> None:
    script = (
        "from pytest_gpucap.simulator.serve import start_simulator; import time\n"
        "s = start_simulator('cpu_tiny'); print(*s.pids(), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_an_unknown_profile_is_one_line() -> None:
    command = [sys.executable, "-m", "pytest_gpucap.simulator", "--profile", "warp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no simulator profile 'warp'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("accuracy", ["-0.1", "1.5"])
def test_an_accuracy_that_is_no_share_is_refused(accuracy: str) -> None:
    command = [sys.executable, "-m", "pytest_gpucap.simulator", "--profile", "fast", "--accuracy", accuracy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--accuracy must lie between 0 and 1" in done.stderr


def test_known_questions_are_answered_and_end_when_all_is_said(server: Any) -> None:
    reply = server.client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "\nWhat is 860 + 822?\nStep by step."}],
        max_tokens=500,
    )
    assert reply.choices[0].message.content.endswith("\\boxed{1682}.")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens < 30


@pytest.mark.skipif(not jit.COMPILED, reason="nothing is compiled without Numba")
def test_a_server_is_ready_when_its_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first client waits for it, after an installation until a time limit of its own."""
    compiled: list[bool] = []

    async def at_once() -> None: ...

    def started(port: int) -> None:
        assert port
        compiled.append(bool(anew.signatures))

    step: Any = engine.step
    anew = type(step)(step.py_func)  # as a new process has it
    monkeypatch.setattr(engine, "step", anew)
    asyncio.run(serve(profiles.load("fast"), "127.0.0.1", 0, 1, started, at_once))
    assert compiled == [True]
