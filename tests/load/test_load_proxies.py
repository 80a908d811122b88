"""Proxies of the environment: never on the way to this machine, always named on the way to another."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_gpucap.accuracy.chat_client import ask_all
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.engines.url import attach
from pytest_gpucap.load.address import ServerAddress, one_name
from pytest_gpucap.load.protocol import LoadError, Status
from pytest_gpucap.load.proxies import is_loopback, proxy_for, shown
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.requirement import Length, Workload
from tests.load.proxy import Proxy
from tests.load.tokenserver import TokenServer
from tests.waiting import FOREVER_S, refused_url

TLS = Path(__file__).with_name("tls")
LENGTHS = Workload(Length.fixed(40), Length.fixed(3))
VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine's environment says of proxies."""
    for name in (*VARIABLES, "no_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def listing(server: TokenServer) -> None:
    """Let it list its model, as every server does."""
    from aiohttp import web

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 99}]})

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text="x 1\n")

    server.app.router.add_get("/v1/models", models)
    server.app.router.add_get("/metrics", metrics)


def use_every_client(url: str) -> None:
    """Reach a server in every way that we have: calibration, load, questions, plain requests, both OpenAI clients."""
    with HttpLoadRunner(url, "m", "secret", LENGTHS, 1, workers=1) as runner:
        runner.run(open_loop(LENGTHS, 20.0, 0.2, 1, 0))
        assert runner.settle(FOREVER_S)
        assert runner.journal().status.size > 0
        assert (runner.journal().status == Status.OK).all(), runner.error_texts()
    address = ServerAddress.parse(url, "secret")
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    assert ask_all(address, [body], in_flight=1, time_s=FOREVER_S)[0].error is not None  # it answers without a choice
    assert HttpServer(url, "m", "secret").max_model_len == 99
    with HttpServer(url, "m", "secret") as server:
        assert server.models() == ["m"]
        assert server.client.models.list().data[0].id == "m"
        assert server.metrics().value("x") == 1

        async def ask() -> str:
            async with server.async_client as client:
                return (await client.models.list()).data[0].id

        assert asyncio.run(ask()) == "m"


@pytest.fixture(params=["127.0.0.1", "localhost", "[::1]", "TLS"])
def near(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenServer]:
    """A server of this machine under one of its names, and the URL it has there."""
    context = None
    if request.param == "TLS":
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "cert.pem"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    elif request.param == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    server = TokenServer(tls=context, host="::1" if request.param == "[::1]" else "127.0.0.1")
    listing(server)
    with server:
        name = "127.0.0.1" if request.param == "TLS" else request.param
        server.name = f"http{'s' if context else ''}://{name}:{server.port}/v1"
        yield server


@pytest.mark.usefixtures("patience")
def test_nothing_for_this_machine_reaches_a_proxy(near: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(near.port) as proxy:
        for variable in VARIABLES:
            monkeypatch.setenv(variable, proxy.url)
        use_every_client(near.name)
        assert (proxy.connections, proxy.heard) == (0, b"")


@pytest.mark.usefixtures("patience")
def test_a_proxy_that_is_not_for_http_does_not_matter_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1")
    server = TokenServer()
    listing(server)
    with server:
        use_every_client(server.url)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("variable", ["ALL_PROXY"])
def test_a_server_elsewhere_is_reached_through_the_proxy_by_every_client(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TokenServer()
    listing(server)
    with server, Proxy(server.port) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        use_every_client("http://model.invalid/v1")
        heard = proxy.heard
    for path in ("/v1/models", "/metrics", "/v1/chat/completions"):
        assert f" http://model.invalid{path} ".encode() in heard


def test_the_proxy_is_named_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_url() as dead:
        monkeypatch.setenv("http_proxy", dead.replace("http://", "http://me:secret@"))
        named = rf"\(through the proxy {dead} that the environment names\)"
        with pytest.raises(EndpointError, match=f"GET http://model.invalid/v1/models failed: .*refused {named}"):
            attach("http://model.invalid")
        with HttpLoadRunner("http://model.invalid", "m", None, LENGTHS, 1) as runner:
            assert runner.uses_library == f"the proxy {dead}"
            with pytest.raises(LoadError, match=f"/v1/chat/completions failed: .*refused {named}"):
                runner.prepare()
        reply = ask_all(ServerAddress.parse("http://model.invalid", None), [{}], in_flight=1, time_s=FOREVER_S)[0]
        assert reply.error is not None
        assert reply.error.endswith(f"(through the proxy {dead} that the environment names)")


def test_a_refusal_of_the_proxy_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp import web

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=407, text="who are you?")

    with TokenServer(handler=refuse) as server, Proxy(server.port) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with (
            HttpLoadRunner("http://model.invalid", "m", None, LENGTHS, 1) as runner,
            pytest.raises(LoadError, match=rf"HTTP 407: who are you\? \(through the proxy {proxy.url} "),
        ):
            runner.prepare()


def test_a_proxy_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@jump.example:1080")
    said = r"names the proxy socks5://jump\.example:1080 for model\.invalid, .*set no_proxy=model\.invalid"
    with pytest.raises(EndpointError, match=said):
        attach("http://model.invalid")
    with HttpLoadRunner("http://model.invalid", "m", None, LENGTHS, 1) as runner, pytest.raises(LoadError, match=said):
        runner.prepare()


NEAR = json.loads(
    '["127.0.0.1", "127.8.9.10", "localhost", "LOCALHOST", "localhost.", "a.localhost", "::1", "::ffff:127.0.0.1", '
    '"0.0.0.0", "127.1", "::"]'
)


@pytest.mark.parametrize("host", NEAR)
def test_names_of_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    assert is_loopback(host)
    assert proxy_for(f"http://{f'[{host}]' if ':' in host else host}:8000/v1") is None


@pytest.mark.parametrize("host", ["10.0.0.1", "model.invalid", "localhost.example.invalid", "2001:db8::1", ""])
def test_names_of_other_machines(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "http://10.1.2.3", None),
        ({"http_proxy": "http://p:1"}, "http://10.1.2.3", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, "http://10.1.2.3", "http://p:1"),
        ({"http_proxy": "p:1"}, "http://10.1.2.3", "http://p:1"),
        ({"http_proxy": "http://p:1"}, "https://10.1.2.3", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://10.1.2.3", "http://p:1"),
        ({"ALL_PROXY": "http://p:1"}, "https://10.1.2.3", "http://p:1"),
        ({"all_proxy": "http://p:1", "http_proxy": "http://q:1"}, "http://10.1.2.3", "http://q:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "10.1.2.3"}, "http://10.1.2.3:8000", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:8000", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "10.0.0.0/24"}, "http://10.1.2.3:8000", "http://p:1"),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, "http://10.1.2.3", None),
        ({"http_proxy": "http://p:1", "no_proxy": ".corp.invalid"}, "http://a.corp.invalid:1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "other"}, "http://a.corp.invalid:1", "http://p:1"),
    ],
)
def test_the_rule(environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


def test_a_proxys_password_is_not_shown() -> None:
    assert shown("http://me:secret@proxy:3128/") == "http://proxy:3128"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://127.0.0.1:8000/v1", "http://localhost:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://LOCALHOST.:8000/v1"),
        ("http://[::1]:8000/v1", "http://0.0.0.0:8000/v1"),
        ("http://127.0.0.1/v1", "http://localhost:80/v1"),
        ("https://127.0.0.1/v1", "https://localhost:443/v1"),
        (f"http://{socket.gethostname()}:8000/v1", f"http://{socket.gethostname().upper()}:8000/v1/"),
        ("http://Model.invalid:8000/v1", "http://model.invalid:8000/v1"),
    ],
)
def test_a_server_has_one_name(one: str, other: str) -> None:
    assert one_name(one) == one_name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8001/v1"),
        ("http://127.0.0.1:8000/a/v1", "http://127.0.0.1:8000/b/v1"),
        ("http://127.0.0.1:8000/v1", "http://model.invalid:8000/v1"),
        ("http://10.0.0.1/v1", "https://10.0.0.1/v1"),
    ],
)
def test_servers_have_names_of_their_own(one: str, other: str) -> None:
    assert one_name(one) != one_name(other)
