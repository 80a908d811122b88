"""Servers that already run, and the samples of any."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Thread

import pytest

from pytest_gpucap.access import Access
from pytest_gpucap.engines.errors import EndpointError, MetricsUnavailable
from pytest_gpucap.engines.pages import Page
from pytest_gpucap.engines.prometheus import Metrics
from pytest_gpucap.engines.server_spec import ServerSpec
from pytest_gpucap.engines.url import ExternalServer, attach
from pytest_gpucap.engines.vllm import VllmServer, start_vllm
from pytest_gpucap.masking import Secret
from tests.serving import ThreadedServer
from tests.waiting import FOREVER_S, refused_url


@pytest.fixture
def running(stand_in: Callable[..., ServerSpec], monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmServer]:
    with start_vllm(stand_in()) as server:
        monkeypatch.setenv("MY_KEY", f"{server.api_key}")
        yield server


def test_attach_uses_the_server_and_never_stops_it(running: VllmServer) -> None:
    with attach(running.root_url, api_key_env="MY_KEY") as server:
        assert server.model == running.model
        assert server.base_url == running.base_url
        assert server.running
        assert server.log is None
        assert server.pids() == set()
        assert server.capabilities().max_num_seqs is None
        assert server.version == "0.0.stand-in"
        assert server.metrics().value("vllm:generation_tokens_total", model_name="b") == 4
        assert server.client.models.list().data[0].id == running.model
        assert f"{running.api_key}" not in repr(server)
    assert running.running


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_end_in_v1(running: VllmServer, suffix: str) -> None:
    assert attach(running.root_url + suffix, api_key_env="MY_KEY").base_url == running.base_url


def test_a_wrong_key_is_told_with_the_name_of_its_variable(
    running: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(EndpointError, match=r"401 Unauthorized; the key is read from \$MY_KEY") as caught:
        attach(running.root_url, api_key_env="MY_KEY")
    assert "wrong" not in str(caught.value)


def test_a_model_it_does_not_serve(running: VllmServer) -> None:
    with pytest.raises(EndpointError, match=f"serves no other; it serves {running.model}"):
        attach(running.root_url, model="other", api_key_env="MY_KEY")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "is not a server's URL: write http://HOST:PORT/v1"),
        ("ftp://localhost", "is not a server's URL"),
        ("http://", "is not a server's URL"),
        ("http://user:secret@localhost", "carries a user or password"),
        ("http://localhost/v1?key=secret", "has a query or fragment"),
    ],
)
def test_a_url_that_cannot_be_meant(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        attach(url)
    assert "secret" not in str(caught.value)


def test_nobody_there() -> None:
    with refused_url() as url, pytest.raises(EndpointError, match=rf"no OpenAI-compatible server at {url}: .* refused"):
        attach(url)


ANSWERS = {
    "/two/v1/models": '{"data": [{"id": "a"}, {"id": "b"}]}',
    "/one/v1/models": '{"data": [{"id": "a"}]}',
    "/none/v1/models": '{"data": []}',
    "/page/v1/models": "<html>welcome</html>",
    "/page/metrics": "<html>welcome</html>",
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Servers of several kinds, none of them vLLM."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = ANSWERS.get(self.path, "")
            self.send_response(200 if answer else 404)
            self.end_headers()
            self.wfile.write(answer.encode())

    with ThreadedServer(Handler) as server:
        yield server.root


def test_which_model_where_there_are_several(elsewhere: str) -> None:
    with pytest.raises(EndpointError, match="serves a, b: name one with --gpucap-model"):
        attach(f"{elsewhere}/two")
    with pytest.raises(EndpointError, match="serves no model at all: name one"):
        attach(f"{elsewhere}/none")
    assert attach(f"{elsewhere}/two", model="b").model == "b"


def test_a_server_without_metrics_says_so(elsewhere: str) -> None:
    server = attach(f"{elsewhere}/one")
    with pytest.raises(MetricsUnavailable, match=r"/one/metrics gives no Prometheus metrics: GET .* answered 404"):
        server.metrics()
    assert server.version is None
    assert server.capabilities().kv_tokens is None
    assert server.reset_caches() is False


def test_a_page_is_no_server(elsewhere: str) -> None:
    with pytest.raises(EndpointError, match="does not answer as an OpenAI-compatible server"):
        attach(f"{elsewhere}/page")


TEXT = """# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 3.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="length"} 5.0
vllm:request_success_total{engine="0",finished_reason="stop"} 1.0
"""


def test_values_sum_over_what_the_labels_leave_open() -> None:
    metrics = Metrics.parse(TEXT)
    assert metrics.value("vllm:num_requests_running") == 5
    assert metrics.value("vllm:num_requests_running", engine="1") == 3
    assert metrics.value("vllm:request_success_total", finished_reason="stop") == 1
    assert len(metrics.find("vllm:request_success_total")) == 2
    assert metrics.find("nothing") == []
    assert len(list(metrics)) == 4


def test_a_name_that_is_not_there_gets_near_matches() -> None:
    metrics = Metrics.parse(TEXT)
    with pytest.raises(KeyError, match="no metric vllm:num_request_running; similar: vllm:num_requests_running"):
        metrics.value("vllm:num_request_running")
    with pytest.raises(KeyError, match=r"vllm:num_requests_running has no sample with .*'engine': '7'"):
        metrics.value("vllm:num_requests_running", engine="7")
    with pytest.raises(KeyError, match="similar: none at all"):
        Metrics.parse("").value("x")


@pytest.mark.parametrize("engine", ["answers", "is not known", "is late too", "is gone"])
def test_a_gateway_that_lets_a_look_wait_has_not_ended_unless_the_engine_behind_it_has(
    running: VllmServer, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr("pytest_gpucap.engines.url._LAST_LOOK_S", 0.2)
    key = Secret(f"Bearer {running.api_key}")
    with socket.create_server(("127.0.0.1", 0)) as waiting, refused_url() as nowhere:  # nobody accepts
        busy = f"http://127.0.0.1:{waiting.getsockname()[1]}"
        gateway = ExternalServer(f"{busy}/v1", "m")
        if engine != "is not known":
            gateway.watch_engines([Page(f"{running.root_url}/metrics", Access((("Authorization", key),)))])
            assert gateway.software == "vLLM"
            assert gateway.metrics().value("vllm:generation_tokens_total", model_name="b") == 4
        if engine in {"is late too", "is gone"}:
            gateway.pages = [Page(f"{busy if engine == 'is late too' else nowhere}/metrics")]
        told = gateway.ended(0.2)
    # What waits is all that is known of a busy gateway. Nobody listens where the engine was.
    assert bool(told) == (engine == "is gone")
    assert not told or told.startswith(f"the server can answer no more: GET {nowhere}/metrics")


@pytest.mark.parametrize(
    ("owner", "software"),
    [("vllm", "vLLM"), ("sglang", "SGLang"), ("tensorrt_llm", "TensorRT-LLM"), ("openai", ""), (None, "")],
)
def test_an_engine_is_called_what_its_list_of_models_says(
    elsewhere: str, monkeypatch: pytest.MonkeyPatch, owner: str | None, software: str
) -> None:
    """TensorRT-LLM and many gateways have a /version too."""
    monkeypatch.setitem(ANSWERS, "/owned/v1/models", json.dumps({"data": [{"id": "a", "owned_by": owner}]}))
    monkeypatch.setitem(ANSWERS, "/owned/version", '{"version": "1.2.3"}')
    server = attach(f"{elsewhere}/owned")
    assert server.software == software
    assert server.facts()["server"] == (f"{software} 1.2.3" if software else "a server, version 1.2.3")


@contextmanager
def resetting(times: int) -> Iterator[str]:
    """A server that resets so many connections, as a process does that ends, and answers the next one."""
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\n{"data": []}'

    def serve(listener: socket.socket) -> None:
        for number in range(min(times + 1, 2)):  # it is looked at no more than twice
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                if number < times:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


@pytest.mark.parametrize(("times", "said"), [(0, ""), (1, ""), (2, "the server can answer no more: ")])
def test_a_look_that_meets_an_ending_process_is_not_the_last_one(times: int, said: str) -> None:
    with resetting(times) as url, ExternalServer(url, "m") as server:
        told = server.ended(FOREVER_S)
        assert told.startswith(said)
        assert bool(told) == bool(said)
