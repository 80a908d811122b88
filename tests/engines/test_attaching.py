"""Attaching to a server: what is waited for, what is refused at once and with which words, what every request has."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from pytest_gpucap import __version__
from pytest_gpucap.access import Access
from pytest_gpucap.engines import url as url_module
from pytest_gpucap.engines.errors import EndpointError, MetricsUnavailable
from pytest_gpucap.engines.url import attach
from pytest_gpucap.masking import Secret
from tests.engines.scripted import CHAT, MODELS, NOT_FOUND, Asked, ScriptedServer, Told, openai_like
from tests.load.rawserver import RawServer
from tests.namespaces import unshared
from tests.own_ca import OWN_CA, server_tls
from tests.planted import PLANTED
from tests.test_foreign_text import obeyed
from tests.waiting import refused_url

"""A CA made for these tests, and the certificate that it gave a server at 127.0.0.1."""
LONG_S = 600.0
ASK = """
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.engines.url import attach
try:
    attach("http://gpus.example.com:8000/v1")
except EndpointError as error:
    print(error)
"""
ACCESS = Access((("X-Team", Secret("team-value-1")), ("Cookie", Secret('a=b; c="d"'))))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def by_path(table: Mapping[str, Told]) -> Callable[[Asked], Told]:
    return lambda asked: table.get(asked.path, NOT_FOUND)


@pytest.mark.parametrize("models", [NOT_FOUND, Told(405), Told(403, "no list for you"), Told(200, "<p>Hello</p>")])
def test_a_model_that_is_given_needs_no_list(models: Told) -> None:
    with ScriptedServer(by_path({"/v1/models": models, "/v1/chat/completions": CHAT})) as server:
        found = attach(server.url, model="team/m")
        assert found.model == "team/m"
        assert found.running
        assert attach(server.url, likely_model="team/m").model == "team/m"


def test_completions_are_an_endpoint_as_well() -> None:
    with ScriptedServer(by_path({"/v1/completions": CHAT})) as server:
        assert attach(server.url, model="m").model == "m"


def test_a_server_may_give_vectors_alone() -> None:
    vectors = Told(200, {"data": [{"embedding": "AAAA"}], "usage": {"prompt_tokens": 3}})
    for path in ("/v1/embeddings", "/pooling", "/classify"):
        with ScriptedServer(by_path({path: vectors})) as server:
            assert attach(server.url, model="m").model == "m"


def test_adapters_are_no_models_to_choose_from() -> None:
    cards = [{"id": "a"}, {"id": "lora", "parent": "a"}]
    with ScriptedServer(by_path({"/v1/models": Told(200, {"data": cards}), "/v1/completions": CHAT})) as server:
        assert attach(server.url).model == "a"
        assert attach(server.url, model="lora").model == "lora"
        assert attach(server.url).models() == ["a", "lora"]


def test_the_test_s_own_model_chooses_from_a_list() -> None:
    two = Told(200, {"data": [{"id": "a"}, {"id": "b", "root": "org/b"}]})
    with ScriptedServer(by_path({"/v1/models": two, "/v1/chat/completions": CHAT})) as server:
        found = attach(server.url, likely_model="b")
        assert (found.model, found.origin) == ("b", "org/b")
        with pytest.raises(EndpointError, match="it serves a, b: name one with --gpucap-model"):
            attach(server.url, likely_model="c")


def test_a_long_list_is_bounded() -> None:
    many = Told(200, {"data": [{"id": f"m{number:03}"} for number in range(500)]})
    with ScriptedServer(by_path({"/v1/models": many})) as server, pytest.raises(EndpointError) as caught:
        attach(server.url)
    assert "it serves m000, m001, m002, m003, m004, ... (500 models): name one with --gpucap-model" in str(caught.value)


LOADING: dict[str, Callable[[Asked], Told]] = {
    "everything": lambda _: Told(503, {"error": {"message": "Loading model", "code": 503}}),
    "a gateway": lambda _: Told(502, "<html><style>x{}</style><h1>502 Bad\nGateway</h1>Loading model</html>"),
    "a gateway that waits": lambda _: Told(504, "upstream: Loading model"),
    "the chats alone": lambda asked: MODELS if asked.path == "/v1/models" else Told(503, "Loading model"),
    "an empty list": lambda asked: Told(200, {"data": []}) if asked.path == "/v1/models" else Told(503),
}


@pytest.mark.parametrize("kind", LOADING)
def test_a_server_that_loads_is_waited_for(kind: str) -> None:
    told: list[str] = []

    def respond(asked: Asked) -> Told:
        return LOADING[kind](asked) if asked.number < 6 else openai_like(asked)

    with ScriptedServer(respond) as server:
        assert attach(server.url, wait_s=LONG_S, on_wait=told.append).model == "m"
        assert len(server.asked) > 6
        waits = [text for text in told if "is not ready" in text]
        assert waits
        assert all(server.url in text for text in waits)
        expected = "serves no model at all" if kind == "an empty list" else "Loading model"
        assert all(expected in text for text in waits), waits


@pytest.mark.parametrize("kind", LOADING)
def test_a_server_that_never_loads_is_one_line_with_its_words(kind: str) -> None:
    with ScriptedServer(LOADING[kind]) as server, pytest.raises(EndpointError) as caught:
        attach(server.url, wait_s=0.02)
    text = str(caught.value)
    assert "\n" not in text
    assert re.match(r"no OpenAI-compatible server ready after \d+ s at ", text)
    assert text.endswith("give it more time with --gpucap-startup-timeout")
    assert ("serves no model" if kind == "an empty list" else "Loading model") in text


def test_a_port_where_nobody_listens_is_waited_for() -> None:
    with refused_url() as url, pytest.raises(EndpointError, match=r"refused; give it more time") as caught:
        attach(url, wait_s=0.02)
    assert caught.value.loading


def test_a_name_that_is_nobody_s_is_one_line() -> None:
    # No resolver knows a name in this domain (RFC 6761).
    with pytest.raises(EndpointError, match=r"^no OpenAI-compatible server .*http://gpucap\.invalid:8000/v1") as caught:
        attach("http://gpucap.invalid:8000/v1")
    assert re.search(r"GET http://gpucap\.invalid:8000/v1/models failed: \[Errno -\d\] \w", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_resolver_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    """In a mount namespace of its own, with a name server that takes every question and answers none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        try:
            silent.bind(("127.0.0.53", 53))
        except OSError as error:
            pytest.skip(f"no name server can be stood in for here: {error}")
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:1 attempts:1\n")
        mount = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf"
        ran = unshared("-Urm", "sh", "-c", f'{mount} && exec "$0" "$@"', sys.executable, "-c", ASK)
        silent.setblocking(False)
        assert silent.recv(512)  # the question came here
    assert ran.stderr == ""
    (line,) = ran.stdout.splitlines()
    assert re.match(r"no OpenAI-compatible server .*: GET \S+ failed: .*[Nn]ame resolution", line)


def test_a_name_of_several_addresses_is_asked_at_the_one_that_answers() -> None:
    with ScriptedServer(openai_like) as server:  # at 127.0.0.1 alone, and localhost is often ::1 too
        assert attach(server.url.replace("127.0.0.1", "localhost")).model == "m"


def test_a_connection_that_closes_is_waited_for() -> None:
    with ScriptedServer(lambda asked: None if asked.number < 3 else openai_like(asked)) as server:
        assert attach(server.url, wait_s=LONG_S).model == "m"


FINAL: list[tuple[Told, str]] = [
    (Told(401, {"error": "bad"}), "answered 401 Unauthorized: bad; no key was sent: set $OPENAI_API_KEY, or name"),
    (Told(403, "behind a wall"), "answered 403 Forbidden: behind a wall; no key was sent"),
    (Told(404, "no route"), "answered 404 Not Found: no route; mend the URL, or name the model with --gpucap-model"),
    (Told(500, {"detail": "it broke"}), "answered 500 Internal Server Error: it broke"),
    (Told(200, "<html>welcome</html>"), "does not answer as an OpenAI-compatible server; mend the URL, or name the"),
    (Told(200, {"data": [{"name": "m"}]}), "does not answer as an OpenAI-compatible server; mend the URL"),
]


@pytest.mark.parametrize(("told", "message"), FINAL, ids=lambda value: str(getattr(value, "status", "")))
def test_other_answers_are_not_waited_for(told: Told, message: str) -> None:
    waits: list[str] = []
    with ScriptedServer(lambda _: told) as server, pytest.raises(EndpointError) as caught:
        attach(server.url, wait_s=LONG_S, on_wait=waits.append)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(server.asked) == 1
    assert not waits


@pytest.mark.parametrize("status", [401, 403])
def test_chats_that_are_refused_are_told_before_the_load(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "the-wrong-key")

    def respond(asked: Asked) -> Told:
        return MODELS if asked.path == "/v1/models" else Told(status, f"refused: {dict(asked.headers)}")

    with ScriptedServer(respond) as server, pytest.raises(EndpointError) as caught:
        attach(server.url, api_key_env="MY_KEY", access=ACCESS, wait_s=LONG_S)
    text = str(caught.value)
    assert f"/v1/chat/completions answered {status}" in text
    assert "the key is read from $MY_KEY; a gateway may need a header as well" in text
    assert "the-wrong-key" not in text
    assert "team-value-1" not in text
    assert text.count("***") >= 2


def test_a_model_without_any_endpoint_is_a_wrong_url() -> None:
    with ScriptedServer(lambda _: NOT_FOUND) as server, pytest.raises(EndpointError) as caught:
        attach(server.url, model="m", wait_s=LONG_S)
    assert "/v1/chat/completions answered 404" in str(caught.value)
    assert "mend the URL" in str(caught.value)
    assert len(server.asked) == 6


def test_endless_bodies_are_cut() -> None:
    with ScriptedServer(lambda _: Told(500, "long " * 10_000)) as server, pytest.raises(EndpointError) as caught:
        attach(server.url)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "//v1//", "/v1/models", "/v1/chat/completions", "/v1/completions/", "/v1/embeddings"],
)
@pytest.mark.parametrize("prefix", ["", "/team/a"])
def test_an_endpoint_s_url_is_understood(prefix: str, path: str) -> None:
    paths = {f"{prefix}/v1/models": MODELS, f"{prefix}/v1/chat/completions": CHAT}
    with ScriptedServer(by_path(paths)) as server:
        assert attach(server.url + prefix + path).base_url == f"{server.url}{prefix}/v1"


def test_every_request_carries_the_headers_and_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    with ScriptedServer() as server, attach(server.url, access=ACCESS) as found:
        found.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        _ = found.client.models.list().data
        asyncio.run(_ask(found.async_client))
        found.reset_caches()
        with pytest.raises(EndpointError):
            found.request("/metrics")
        assert "team-value" not in repr(found) + repr(found.access) + repr(found.access.request_headers("the-key"))
    assert len(server.asked) >= 7
    for asked in server.asked:
        assert asked.headers["user-agent"] == f"pytest-gpucap/{__version__}", asked
        assert asked.headers["x-team"] == "team-value-1"
        assert asked.headers["cookie"] == 'a=b; c="d"'
        assert asked.headers["authorization"] == "Bearer the-key"


async def _ask(client: openai.AsyncOpenAI) -> None:
    async with client:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])


def test_an_authorization_of_one_s_own_replaces_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    access = Access((("authorization", Secret("Basic dTpw")), ("user-agent", Secret("mine/1"))))
    with ScriptedServer() as server, attach(server.url, access=access) as found:
        found.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert {(asked.headers["authorization"], asked.headers["user-agent"]) for asked in server.asked} == {
        ("Basic dTpw", "mine/1")
    }


def test_nothing_secret_follows_a_redirect_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    with ScriptedServer() as other:

        def elsewhere(asked: Asked) -> Told:
            return Told(307, "", {"Location": f"{other.url}{asked.path}?token=secret"})

        with ScriptedServer(elsewhere) as server:
            with pytest.raises(EndpointError, match=f"307 .*it points to {other.url}, where no key is sent") as caught:
                attach(server.url, access=ACCESS, wait_s=LONG_S)
            assert "token=secret" not in str(caught.value)
            with pytest.raises(EndpointError, match="307"):
                attach(server.url, access=ACCESS, model="m", wait_s=LONG_S)
        with (
            ScriptedServer(lambda asked: openai_like(asked) if asked.number < 2 else elsewhere(asked)) as server,
            attach(server.url, access=ACCESS) as found,
            pytest.raises(openai.APIStatusError),
        ):
            found.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert other.asked == []


def test_a_redirect_within_the_server_is_not_followed_either() -> None:
    def respond(asked: Asked) -> Told:
        if asked.path == "/metrics":
            return Told(307, "", {"Location": "/metrics/"})
        return Told(200, "up 1.0\n") if asked.path == "/metrics/" else openai_like(asked)

    with (
        ScriptedServer(respond) as server,
        attach(server.url) as found,
        pytest.raises(MetricsUnavailable, match=r"answered 307 .*: it points to /metrics/, where no key is sent"),
    ):
        found.metrics()
    assert not [asked for asked in server.asked if asked.path == "/metrics/"]


def test_a_ca_of_one_s_own_is_trusted_by_every_client(own_ca: ssl.SSLContext) -> None:
    with ScriptedServer(tls=own_ca) as server:
        with pytest.raises(EndpointError, match=r"certificate is not trusted: .*; name its CA's certificate with --g"):
            attach(server.url, wait_s=LONG_S)
        with attach(server.url, access=Access(ca_file=str(OWN_CA / "ca.pem"))) as found:
            found.client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
            asyncio.run(_ask(found.async_client))
        other = Access(ca_file=str(OWN_CA.parent / "cert.pem"))
        with pytest.raises(EndpointError, match="certificate is not trusted"):
            attach(server.url, access=other, wait_s=LONG_S)


def test_a_certificate_of_another_name_is_not_trusted(own_ca: ssl.SSLContext) -> None:
    trusted = Access(ca_file=str(OWN_CA / "ca.pem"))
    with ScriptedServer(tls=own_ca) as server, pytest.raises(EndpointError, match="address mismatch") as caught:
        attach(server.url.replace("127.0.0.1", "[::ffff:127.0.0.1]"), access=trusted, wait_s=LONG_S)
    assert "its certificate is not trusted" in str(caught.value)


def test_an_expired_certificate_is_not_trusted() -> None:
    expired = OWN_CA.parent / "expired"
    trusted = Access(ca_file=str(expired / "cert.pem"))
    with (
        ScriptedServer(tls=server_tls(expired)) as server,
        pytest.raises(EndpointError, match="certificate has expired") as caught,
    ):
        attach(server.url, access=trusted, wait_s=LONG_S)
    assert "\n" not in str(caught.value)


def test_https_at_a_port_without_tls() -> None:
    with ScriptedServer() as server, pytest.raises(EndpointError, match="no TLS is spoken there; write http://"):
        attach(server.url.replace("http://", "https://"), wait_s=LONG_S)


def test_an_answer_that_is_no_http_is_no_traceback() -> None:
    class Garbage(RawServer):
        def _serve(self, sock: Any, carrier: int) -> None:
            del carrier
            with sock:
                sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

    with Garbage() as server, pytest.raises(EndpointError, match="no OpenAI-compatible server at"):
        attach(server.url)


@pytest.mark.parametrize("kind", PLANTED)
def test_what_a_server_says_is_masked_and_harmless(kind: str) -> None:
    """Its models are named like secrets and workflow commands."""
    planted = PLANTED[kind]
    names = [f"{planted.argument} ::error::{number} ##[error]" for number in range(2)]

    def respond(asked: Asked) -> Told:
        return Told(200, json.dumps({"data": [{"id": name} for name in names]}))

    with ScriptedServer(respond) as server, pytest.raises(EndpointError, match="name one with --gpuc") as caught:
        attach(server.url)
    assert planted.core not in str(caught.value)
    assert obeyed(str(caught.value)) == []


def test_a_key_that_ends_in_a_line_break_is_sent_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the-key-of-a-file\r\n")
    with ScriptedServer() as server, attach(server.url) as found:
        found.client.models.list()
        assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer the-key-of-a-file"}
