"""Whatever a server answers to a plain request: one clear line, bounded time and memory. Nothing optional aborts."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from pytest_gpucap.engines import server as server_module
from pytest_gpucap.engines.errors import EndpointError, MetricsUnavailable
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.url import attach
from pytest_gpucap.load import plain_request
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.calibrate import calibrate
from pytest_gpucap.load.plain_request import NoAnswer, ask
from pytest_gpucap.load.protocol import LoadError
from pytest_gpucap.requirement import Length, Workload
from tests.load.hostile import NO_ANSWER, PAGES, Behaviour, HostileServer, body, hangs, told

TIMEOUT_S = 0.5
"""Of a request to a server that never ends its answer. The others end by themselves."""
MOST_BYTES = 1 << 20
ALL = {**NO_ANSWER, **PAGES}

each_server = pytest.mark.parametrize("behaviour", ALL.values(), ids=ALL.keys())


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_gpucap.engines.server._MOST_BYTES", MOST_BYTES)
    monkeypatch.setattr("pytest_gpucap.engines.server.TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr("pytest_gpucap.engines.url._ANSWER_S", TIMEOUT_S)
    monkeypatch.setattr("pytest_gpucap.load.token_probe.PROBE_TIMEOUT_S", TIMEOUT_S)


def one_line(error: Exception) -> str:
    text = str(error)
    assert text.strip()
    assert len(text) < 1500
    assert "\n" not in text
    assert all(each.isprintable() for each in text), text
    text.encode()  # a lone surrogate could not be printed
    return text


@pytest.mark.parametrize("behaviour", NO_ANSWER.values(), ids=NO_ANSWER.keys())
def test_no_answer_is_one_line_within_bounds(behaviour: Behaviour) -> None:
    with HostileServer(behaviour) as server:
        tracemalloc.start()
        try:
            with pytest.raises(NoAnswer) as raised:
                ask(ServerAddress.parse(server.url, "k"), "/version", timeout_s=TIMEOUT_S, most_bytes=MOST_BYTES)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert one_line(raised.value).startswith(f"GET {server.url}/version failed: ")
    assert peak < 16 * MOST_BYTES


@pytest.mark.parametrize("behaviour", PAGES.values(), ids=PAGES.keys())
def test_a_page_of_any_kind_is_an_answer(behaviour: Behaviour) -> None:
    with HostileServer(behaviour) as server:
        reply = ask(ServerAddress.parse(server.url, None), "/v1/models", timeout_s=1e6, most_bytes=MOST_BYTES)
    assert 200 <= reply.status < 800


@pytest.mark.parametrize("model", ["m", None])
@pytest.mark.parametrize("behaviour", NO_ANSWER.values(), ids=NO_ANSWER.keys())
def test_attaching_where_nothing_answers_is_one_line(behaviour: Behaviour, model: str | None) -> None:
    with HostileServer(behaviour) as server, pytest.raises(EndpointError) as raised:
        attach(server.url, model=model)
    assert one_line(raised.value).startswith(f"no OpenAI-compatible server at {server.url}: ")


@pytest.mark.parametrize("model", ["m", None])
@pytest.mark.parametrize("behaviour", PAGES.values(), ids=PAGES.keys())
def test_attaching_where_anything_answers_is_one_line_or_a_server(behaviour: Behaviour, model: str | None) -> None:
    """Whether a JSON object is an answer shows when load is sent."""
    with HostileServer(behaviour) as server:
        try:
            attached = attach(server.url, model=model)
        except EndpointError as error:
            one_line(error)
        else:
            assert attached.model.isprintable()


@each_server
def test_nothing_optional_aborts(behaviour: Behaviour) -> None:
    with HostileServer(behaviour) as listener:
        server = HttpServer(f"{listener.url}/v1", "m")
        assert server.version is None or 0 < len(server.version) <= 100
        assert isinstance(server.config, dict)
        assert server.max_model_len is None
        assert server.capabilities().simulated is False
        assert isinstance(server.reset_caches(), bool)
        assert server.facts()
        try:
            server.metrics()
        except MetricsUnavailable as error:
            one_line(error)


@pytest.mark.parametrize("name", ["silence", "a page", "NaN", "deep JSON", "a gzip bomb", "slow loris in the body"])
def test_calibration_is_one_line(name: str) -> None:
    workload = Workload(Length.fixed(32), Length.fixed(4))
    with HostileServer(ALL[name]) as server, pytest.raises(LoadError) as raised:
        calibrate(ServerAddress.parse(server.url, None), "m", workload, 0, 0)
    one_line(raised.value)


def test_a_client_of_tls_is_told_that_none_is_spoken() -> None:
    with HostileServer(body(b"{}")) as server, pytest.raises(NoAnswer, match="no TLS is spoken there; write http://"):
        ask(ServerAddress.parse(server.url.replace("http:", "https:"), None), "/", timeout_s=1e6)


def test_a_tls_handshake_that_never_comes_ends_in_time() -> None:
    with HostileServer(hangs()) as server, pytest.raises(NoAnswer):
        ask(ServerAddress.parse(server.url.replace("http:", "https:"), None), "/", timeout_s=TIMEOUT_S)


def test_a_request_that_nobody_reads_ends_in_time() -> None:
    unread = b"x" * (64 << 20)
    with HostileServer(hangs(), silent=True) as server, pytest.raises(NoAnswer):
        ask(ServerAddress.parse(server.url, None), "/", method="POST", body=unread, timeout_s=TIMEOUT_S)


def test_a_caller_that_wants_no_more_waits_no_longer() -> None:
    with HostileServer(hangs()) as server, pytest.raises(NoAnswer, match="given up"):
        ask(ServerAddress.parse(server.url, None), "/", timeout_s=1e6, stop=lambda: True)


def test_a_good_answer_is_read_whole_in_every_form() -> None:
    for behaviour in (
        told({"version": "1"}),
        body(b'{"version": "1"}', b"X-A: 1"),
    ):
        with HostileServer(behaviour) as server:
            assert HttpServer(f"{server.url}/v1", "m").version == "1"


CHILD = """
import resource, sys
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.plain_request import NoAnswer, ask
address = ServerAddress.parse(sys.argv[1], None)
try:
    ask(address, "/", timeout_s=1e6, most_bytes=int(sys.argv[2]))
except NoAnswer:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(url: str, most_bytes: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, url, str(most_bytes)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("name", ["a body without an end", "headers without an end", "a header without an end"])
def test_an_answer_without_an_end_takes_no_more_memory_than_a_page(name: str) -> None:
    with HostileServer(ALL[name]) as endless, HostileServer(body(b"{}")) as good:
        assert peak_kib(endless.url, MOST_BYTES) < 1.5 * peak_kib(good.url, MOST_BYTES)


def test_every_plain_request_goes_through_one_place() -> None:
    """What opens connections by itself is the load, the OpenAI clients that tests get, and the one place."""
    package = Path(plain_request.__file__).parents[1]
    opens = (
        "urlopen(",
        "HTTPConnection(",
        "build_opener(",
        ".AsyncClient(",
        ".Client(",
        "httpx.",
        "create_connection(",
    )
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for word in opens
        if word in path.read_text()
    }
    # These connect to a node's door or port, and speak no HTTP.
    bare = {"fleet/ray_cluster.py", "fleet/ray_load.py", "fleet/ray_server.py"}
    assert found - bare == {"load/plain_request.py", "load/library_loop.py"}
    assert "openai" not in Path(server_module.__file__).with_name("readiness.py").read_text().replace("OpenAI", "")
