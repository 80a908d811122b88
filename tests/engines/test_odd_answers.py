"""Servers that answer anything on any path: what is not what we know is not supported, and never a crash."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from pytest_gpucap.engines.errors import EndpointError, MetricsUnavailable
from pytest_gpucap.engines.url import ExternalServer, attach
from pytest_gpucap.vllm_arguments import VllmArguments


def page(body: bytes, kind: str = "application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        kind.encode(),
        len(body),
        body,
    )


ANSWERS = {
    "a page": page(b"<!doctype html><title>Welcome to nginx!</title>", "text/html"),
    "an empty object": page(b"{}"),
    "a list": page(b"[1, 2]"),
    "a text": page(b'"ok"'),
    "a number": page(b"42"),
    "null": page(b"null"),
    "no success": page(b'{"success": "maybe", "version": 3, "vllm_config": [1], "data": {"id": 1}}'),
    "odd sections": page(
        b'{"vllm_config": {"model_config": [1], "parallel_config": {"tensor_parallel_size": "many"}}, "data": [7]}'
    ),
    "a model of odd shape": page(b'{"data": [{"id": "m", "max_model_len": "long", "root": ["x"]}, null]}'),
    "a deep nest": page(b"[" * 200_000),
    "no UTF-8": page(b"\xff\xfe{\x00"),
    "half an answer": b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"data"',
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "an endless line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
}


@contextlib.contextmanager
def answering(answer: bytes, *, endless: bytes = b"") -> Iterator[str]:
    """A server that answers every connection with the same bytes, then repeats `endless` for as long as it is read."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), sock:
                sock.recv(65536)
                sock.sendall(answer)
                while endless:
                    sock.sendall(endless)
                sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_unexpected_answer_means_not_supported(name: str) -> None:
    with answering(ANSWERS[name]) as url, ExternalServer(url, "m") as server:
        assert server.version is None
        assert not server.reset_caches()
        known = server.capabilities()
        assert known.max_model_len is None
        assert known.arguments == VllmArguments()
        assert server.facts()["server"] == url
        with contextlib.suppress(MetricsUnavailable):
            assert list(server.metrics()) == []
        # It may have no list of models: whatever answers over HTTP runs.
        whole = ANSWERS[name].startswith(b"HTTP/1.1 200 OK\r\nContent-") and name != "half an answer"
        assert server.running == whole


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "no success"])
def test_attaching_to_it_is_one_clear_error(name: str) -> None:
    with (
        answering(ANSWERS[name]) as url,
        pytest.raises(EndpointError, match="no OpenAI-compatible server at") as caught,
    ):
        attach(url)
    assert "\n" not in str(caught.value)


def test_a_page_without_an_end_is_given_up() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    with answering(head, endless=b"x" * (1 << 20)) as url, ExternalServer(url, "m") as server:
        with pytest.raises(EndpointError, match="has no end"):
            server.request("/metrics")
        assert server.version is None
