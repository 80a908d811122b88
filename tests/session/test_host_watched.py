"""Which servers' hosts are watched."""

from __future__ import annotations

import pytest

from pytest_gpucap.engines.protocol import Capabilities
from pytest_gpucap.engines.server import HttpServer
from pytest_gpucap.options.table import Options
from pytest_gpucap.session.server_manager import ServerManager


class Told(HttpServer):
    """A server of these capabilities that nobody asks anything."""

    def __init__(self, url: str, *, simulated: bool = False) -> None:
        super().__init__(url, "m")
        self._simulated = simulated

    def capabilities(self) -> Capabilities:
        return Capabilities(simulated=self._simulated, loopback=self.loopback)


HERE, ELSEWHERE = "http://127.0.0.1:8000/v1", "http://gateway.example:8000/v1"


@pytest.mark.parametrize(
    ("server", "leased", "check", "watched"),
    [
        pytest.param(Told(HERE), False, "error", True, id="behind a URL of this machine"),
        pytest.param(Told(HERE), True, "warn", True, id="started here, a remark only"),
        pytest.param(Told(ELSEWHERE), True, "error", True, id="on leased devices, so here"),
        pytest.param(Told(ELSEWHERE), False, "error", False, id="elsewhere"),
        pytest.param(Told(HERE, simulated=True), False, "error", False, id="simulated"),
        pytest.param(Told(HERE), True, "off", False, id="switched off"),
    ],
)
def test_a_host_is_watched_where_there_is_one(server: Told, check: str, *, leased: bool, watched: bool) -> None:
    manager = ServerManager(Options(host_check=check))
    assert (manager._host_watch(server, here=leased) is not None) is watched
