"""One inner session with real servers, which several tests look at: a start of a vLLM costs fifteen core-seconds.

It has four vLLM servers, one after the other: one that tests share and whose engine is killed at last, another in its
place whose engine is stopped, one with adapters, and one that embeds. Beside these it has a transformers serve.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_gpucap.results import result_file
from pytest_gpucap.results.result import Result, ResultFile
from tests.conftest import OUTER_RUN, SHARED_HOST

CONFTEST = """
import psutil
import pytest

from pytest_gpucap.load import self_check
from pytest_gpucap.measure import constants

# What is measured here shows in short phases too, however busy the machine is.
constants.WARM_UP_S = constants.HOLD_S = constants.LOW_HOLD_S = constants.SEARCH_HOLD_S = constants.OPEN_S = 4.0
constants.MEASURE_CYCLES = constants.LEAST_MEASURE_CYCLES = 2
constants.STEADY_S = 8.0
self_check.LATENESS_FLOOR_S = self_check.RATE_SHARE = self_check.CPU_LIMIT = self_check.STOPPED_S = 1e6


class Servers:
    '''Those that the session has had.'''

    def __init__(self):
        self._models, self._processes = [], []

    def is_new(self, server):
        '''Assert that it is another one than all before, of which nothing is left.'''
        assert server.model not in self._models
        assert not [each for each in self._processes if each.is_running()]
        self._models.append(server.model)
        self._processes += [psutil.Process(pid) for pid in server.pids()]

    def is_the_last(self, server):
        assert server.model == self._models[-1]


@pytest.fixture(scope="session")
def servers():
    return Servers()
"""
ONE = 'model="synthetic:tiny", max_model_len=1024'
"""The arguments of the server that most tests share."""
ADAPTERS = 'adapters={"a": 1, "b": 1}, adapter_rank=8'
SHARED = f"""
import asyncio

import pytest

one = pytest.mark.vllm({ONE})


@one
def test_plain(vllm_server, servers):
    servers.is_new(vllm_server)
    reply = vllm_server.client.chat.completions.create(
        model=vllm_server.model, messages=[{{"role": "user", "content": "hello"}}], max_tokens=4
    )
    assert reply.usage.completion_tokens <= 4
    assert vllm_server.base_url.startswith("http://127.0.0.1:")
    assert "startup complete" in vllm_server.log.text()
    assert vllm_server.api_key not in repr(vllm_server)


@pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
@pytest.mark.gpucap({ADAPTERS})
def test_another_server_starts_when_the_first_has_ended(gpucap, vllm_server, servers):
    servers.is_new(vllm_server)


@one
def test_streamed_by_the_async_client_of_the_same_server(vllm_server, servers):
    servers.is_the_last(vllm_server)

    async def count():
        stream = await vllm_server.async_client.chat.completions.create(
            model=vllm_server.model, messages=[{{"role": "user", "content": "hello"}}], max_tokens=4, stream=True
        )
        chunks = [chunk async for chunk in stream]
        await vllm_server.async_client.close()
        return len(chunks)

    assert asyncio.run(count()) >= 2


@one
@pytest.mark.gpucap(input_tokens=64, output_tokens=16)
def test_a_window_is_measured_on_the_same_server(gpucap, vllm_server, servers):
    servers.is_the_last(vllm_server)
    names = ("vllm:request_success_total", "vllm:generation_tokens_total")
    before = vllm_server.metrics()
    window = gpucap.sample(rate=8, duration="4s")
    after = vllm_server.metrics()
    requests, tokens = (after.value(name) - before.value(name) for name in names)
    assert window.errors == {{}}
    assert 0 < window.latencies["ttft"].p50_s < window.latencies["e2e"].p50_s
    # Beside the window's own there are those of its warm-up, of 16 tokens each, and a few that calibrate prompts.
    assert requests > window.requests
    assert abs(tokens - 16 * requests) <= 16 * 8


@one
@pytest.mark.gpucap(
    # Answers last longer than a busy machine lets a process wait: their tokens do not arrive at once.
    input_tokens=320, shared_prefix_tokens=256, output_tokens=128,
    startup="30m", kv_tokens=2000, prefix_hit_rate=0.5, preemptions=0,
)
def test_limits_beside_the_rate_on_the_same_server(gpucap, vllm_server, servers):
    servers.is_the_last(vllm_server)
    start, kv, hits, preemptions = gpucap.measure().secondary
    assert 0 < start.measured.value == vllm_server.startup_s
    assert kv.measured.value == vllm_server.kv_tokens
    # Two blocks of 128 tokens, or 16 of 16, of every prompt but the first.
    assert hits.measured.value == pytest.approx(0.8, abs=0.05)
    assert preemptions.measured.value == 0
"""
COMPARED = f"""
import pytest

from pytest_gpucap.measure import constants

pytestmark = pytest.mark.gpucap(
    qps=3, gpus=1, headroom=1.0, input_tokens=32, output_tokens=8, e2e_p95="60s", max_time="60s"
)


@pytest.fixture(autouse=True)
def enough_requests(monkeypatch):
    '''For latencies at one rate.'''
    for name in ("OPEN_S", "DIRECT_S"):
        monkeypatch.setattr(constants, name, 9.0)


@pytest.mark.gpucap(name="on vLLM")
@pytest.mark.vllm({ONE})
def test_vllm(gpucap, vllm_server, servers):
    servers.is_the_last(vllm_server)
    gpucap.check()


@pytest.mark.gpucap(name="on transformers")
@pytest.mark.engine("transformers", model="synthetic:tiny", python=PYTHON, dtype="float32")
def test_transformers(gpucap):
    gpucap.check()
"""
LLAMA = """

@pytest.mark.gpucap(name="on llama.cpp")
@pytest.mark.engine("llama.cpp", model="synthetic:tiny", program=PROGRAM, parallel=4, threads=1)
def test_llama_cpp(gpucap):
    gpucap.check()
"""
DYING = f"""
import os
import signal
import threading
import time

import psutil
import pytest

pytestmark = [
    pytest.mark.vllm({ONE}),
    pytest.mark.gpucap(qps=5, gpus=1, input_tokens=64, output_tokens=64, max_time="90s", e2e_p95="20s"),
]


def engine(server):
    return next(pid for pid in server.pids() if "EngineCore" in " ".join(psutil.Process(pid).cmdline()))


def under_load(server, pid, number):
    while server.metrics().value("vllm:num_requests_running") < 1:
        time.sleep(0.05)
    os.kill(pid, number)


@pytest.mark.xfail(reason="what dies is no budget that does not hold", strict=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_engine(gpucap, vllm_server, servers, number):
    if number == signal.SIGKILL:
        servers.is_the_last(vllm_server)
    else:
        servers.is_new(vllm_server)
    assert vllm_server.models() == [vllm_server.model]
    threading.Thread(target=under_load, args=(vllm_server, engine(vllm_server), number), daemon=True).start()
    gpucap.check()
"""
SERVED_ADAPTERS = f"""
import pytest


@pytest.mark.vllm(model="synthetic:tiny", max_model_len=512)
@pytest.mark.gpucap(input_tokens=32, output_tokens=8, {ADAPTERS})
def test_adapters(gpucap, vllm_server, servers):
    servers.is_the_last(vllm_server)
    found = gpucap.sample(rate=8, duration="3s")
    assert found.errors == {{}}
    first, second = found.adapters
    assert first.requests > 0 and second.requests > 0
    assert set(vllm_server.models()) == {{vllm_server.model, "a", "b"}}

    def says(model):
        return vllm_server.client.completions.create(
            model=model, prompt="hello world", max_tokens=16, temperature=0, extra_body={{"ignore_eos": True}}
        ).choices[0].text

    # They are applied: greedy answers differ.
    assert len({{says(model) for model in ("a", "b", vllm_server.model)}}) == 3
"""
EMBEDDING = """
import pytest

pytestmark = pytest.mark.vllm(model="synthetic:tiny", max_model_len=2048, runner="pooling", convert="embed")


@pytest.mark.gpucap(input_tokens=64, endpoint="embeddings")
def test_embeddings(gpucap, vllm_server, servers):
    servers.is_new(vllm_server)
    before = vllm_server.metrics().value("vllm:prompt_tokens_total")
    found = gpucap.sample(rate=8, duration="3s")
    assert found.errors == {} and set(found.latencies) == {"e2e"}
    grown = vllm_server.metrics().value("vllm:prompt_tokens_total") - before
    assert grown >= 64 * found.requests


@pytest.mark.gpucap(input_tokens=64, endpoint="rerank", documents=3)
def test_rerank(gpucap):
    assert gpucap.sample(rate=4, duration="3s").errors == {}
"""


@dataclass(frozen=True)
class RealSession:
    """What the session left.

    Attributes:
        folder: of its tests.
        shown: what it printed.
    """

    folder: Path
    shown: str

    @property
    def file(self) -> Path:
        """Its results on disk."""
        return self.folder / ".gpucap" / "result.json"

    @cached_property
    def kept(self) -> ResultFile:
        """Its results."""
        return result_file.read(self.file)

    @cached_property
    def results(self) -> Mapping[str, Sequence[Result]]:
        """Results by the name of the test's function, with its parameters."""
        found: dict[str, list[Result]] = {}
        for each in self.kept.results:
            found.setdefault(each.test.partition("::")[2], []).append(each)
        return found

    @cached_property
    def failures(self) -> Mapping[str, str | None]:
        """In the order in which they ran: why each test failed, None for one that passed."""
        found: dict[str, str | None] = {}
        for case in ET.parse(self.folder / "junit.xml").iter("testcase"):
            bad = [child for child in case if child.tag in {"failure", "error", "skipped"}]
            found[case.attrib["name"]] = "\n".join(child.text or child.tag for child in bad) if bad else None
        return found

    def failed(self, test: str) -> bool:
        """Whether it failed."""
        return self.failures[test] is not None

    def passed(self, *tests: str) -> None:
        """Assert that these tests passed."""
        for test in tests:
            assert self.failures[test] is None, self.failures[test]


def run(folder: Path, vllm_python: str, transformers_python: str | None, llama_server: str | None) -> RealSession:
    """Run the session.

    Args:
        folder: an empty one for its tests.
        vllm_python: an interpreter that has vLLM.
        transformers_python: one that has ``transformers serve``; None: no engine is compared with vLLM.
        llama_server: the program, where there is one.
    """
    (folder / "conftest.py").write_text(CONFTEST)
    suites = [SHARED, DYING, SERVED_ADAPTERS, EMBEDDING]
    if transformers_python is not None:
        others = COMPARED.replace("PYTHON", repr(transformers_python))
        suites.insert(1, others + ("" if llama_server is None else LLAMA.replace("PROGRAM", repr(llama_server))))
    for place, suite in enumerate(suites):
        (folder / f"test_{place}.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", f"--basetemp={folder / 'tmp'}", "-Werror", "--junit-xml=junit.xml"]
    command += ["--gpu-class=cpu", f"--gpucap-vllm-python={vllm_python}", "--gpucap-inconclusive=pass"]
    kept = {name: value for name, value in os.environ.items() if name not in OUTER_RUN}
    # Its models and adapters are made anew, whatever the user's cache has.
    env = kept | {"PYTEST_ADDOPTS": SHARED_HOST, "XDG_CACHE_HOME": str(folder / "cache")}
    ran = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    print(ran.stdout + ran.stderr)
    return RealSession(folder, ran.stdout)
