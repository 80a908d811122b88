"""Headers of one's own and a CA file reach every request of the load, by every transport, and show in no message."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pytest_gpucap import __version__
from pytest_gpucap.access import Access
from pytest_gpucap.accuracy.chat_client import ask_all
from pytest_gpucap.load.address import ServerAddress
from pytest_gpucap.load.protocol import LoadError, Status
from pytest_gpucap.load.runner import HttpLoadRunner
from pytest_gpucap.load.schedule import open_loop
from pytest_gpucap.masking import Secret
from pytest_gpucap.requirement import Length, Workload
from tests.load.h2server import H2Server
from tests.load.tokenserver import TokenServer
from tests.own_ca import OWN_CA
from tests.waiting import FOREVER_S

WORKLOAD = Workload(Length.fixed(40), Length.fixed(3))
SECRET = "s3cret-of-the-team"
HEADERS = (("X-Team", Secret(SECRET)),)


class Gate:
    """A gateway before a `TokenServer`: remembers headers, and repeats them all to whom it refuses."""

    def __init__(self, server: TokenServer, *, refuse_streams: bool = False) -> None:
        self.seen: list[Mapping[str, str]] = []
        self.refuse_streams = refuse_streams

        @web.middleware
        async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
            return await self._pass(request, handler)

        server.app.middlewares.append(middleware)

    async def _pass(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append({name.lower(): value for name, value in request.headers.items()})
        streamed = b'"stream":true' in await request.read()
        if request.headers.get("X-Team") != SECRET or (streamed and self.refuse_streams):
            return web.Response(status=403, text=f"refused: {dict(request.headers)}")
        answer: web.StreamResponse = await handler(request)
        return answer


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_every_request_of_the_load_carries_them(tls: bool, own_ca: ssl.SSLContext) -> None:
    access = Access(HEADERS, str(OWN_CA / "ca.pem") if tls else None)
    server = TokenServer(tls=own_ca if tls else None)
    gate = Gate(server)
    with server, HttpLoadRunner(server.url, "m", "the-key", WORKLOAD, 1, workers=1, access=access) as runner:
        runner.run(open_loop(WORKLOAD, 30.0, 0.3, 1, 0))
        assert runner.settle(FOREVER_S)
        assert (runner.journal().status == Status.OK).all(), runner.error_texts()
        commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in runner.worker_pids]
        assert commands
        assert not any(secret in command for command in commands for secret in (SECRET, "the-key"))
        ask_all(
            runner.server, [{"model": "m", "messages": [{"content": "x"}], "max_tokens": 1}], in_flight=1, time_s=60
        )
    assert len(gate.seen) > len(server.seen.bodies) > 3
    for headers in gate.seen:
        assert headers["x-team"] == SECRET
        assert headers["authorization"] == "Bearer the-key"
        assert headers["user-agent"] == f"pytest-gpucap/{__version__}"


def test_a_ca_of_one_s_own_over_http2(own_ca: ssl.SSLContext) -> None:
    del own_ca  # for the environment without another
    access = Access(ca_file=str(OWN_CA / "ca.pem"))
    with (
        H2Server(OWN_CA) as server,
        HttpLoadRunner(server.url, "m", None, WORKLOAD, 1, workers=1, access=access) as runner,
    ):
        runner.run(open_loop(WORKLOAD, 30.0, 0.3, 1, 0))
        assert runner.settle(FOREVER_S)
        assert (runner.journal().status == Status.OK).all(), runner.error_texts()
    assert server.versions == {"2"}


def test_what_a_server_repeats_is_masked() -> None:
    server = TokenServer()
    Gate(server, refuse_streams=True)
    with server:
        wrong = Access((("X-Other", Secret(SECRET)),))
        with HttpLoadRunner(server.url, "m", "the-key", WORKLOAD, 1, workers=1, access=wrong) as runner:
            with pytest.raises(LoadError, match=r"HTTP 403: refused: .*\*\*\*") as caught:
                runner.prepare()
            assert caught.value.__cause__ is None
            (reply,) = ask_all(runner.server, [{"model": "m"}], in_flight=1, time_s=60)
        with HttpLoadRunner(server.url, "m", "the-key", WORKLOAD, 1, workers=1, access=Access(HEADERS)) as runner:
            runner.run(open_loop(WORKLOAD, 30.0, 0.3, 1, 0))
            assert runner.settle(FOREVER_S)
            assert (runner.journal().status == Status.HTTP_4XX).all()
            texts = str(runner.error_texts())
    for text in (str(caught.value), str(reply.error), texts):
        assert "refused" in text
        assert "***" in text
        assert SECRET not in text
        assert "the-key" not in text


def test_no_repr_shows_them() -> None:
    address = ServerAddress.parse("http://h/v1", "the-key", access=Access(HEADERS))
    shown = repr((address, address.headers, address.request_head(WORKLOAD.endpoint)))
    assert SECRET not in shown
    assert "the-key" not in shown
